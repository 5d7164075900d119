"""Random settings, all the way to the first step: a run could start, or there is one clear line. Never anything else.

Every key of the composed configs is overridden, one that is added later by itself: with values of other types, extreme
and unheard-of ones, and with keys that do not exist. What is accepted is then held against rules of this file's own
(`nonsense`), which know nothing of `LIMITS`.
"""

import dataclasses
import re
import struct
from functools import cache
from pathlib import Path
from random import Random

import pytest
from doctor_helpers import check, command, config_of, examine
from fuzz_helpers import fuzz
from hypothesis import note
from omegaconf import OmegaConf
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from flexlora.conf_path import conf_dir
from flexlora.hub import hub_is_offline
from flexlora.results.record import Ending
from flexlora.settings import flat_keys

pytestmark = [pytest.mark.fuzz, pytest.mark.usefixtures("hydra_in_this_process")]

METHODS = sorted(file.stem for file in (conf_dir() / "method").glob("*.yaml"))
TASKS = sorted(
    str(file.relative_to(conf_dir() / "task").with_suffix("")) for file in (conf_dir() / "task").rglob("*.yaml")
)
MODELS = sorted(file.stem for file in (conf_dir() / "model").glob("*.yaml"))
GROUPS = (
    "task",
    "method",
    "model",
    "scale",
    "experiment",
    "benchmark",
    "schema/task",
    "hydra/launcher",
    "hydra/sweeper",
)

# --- what is tried ----------------------------------------------------------------------------------------------------


@cache
def known(method: str) -> dict[str, tuple[bool, list[str]]]:
    """Every key of `method=<method>`, and every field of PEFT's config class beside them: whether the key is composed
    (an override of another is `++key`), and words that may be meant: its value, and what its comments speak of."""
    keys = flat_keys(OmegaConf.to_container(config_of(["task=glue/cola", f"method={method}"]), resolve=False))
    # The tables of recipes are no settings: nobody types them, and almost every change of one is refused.
    keys = {key: value for key, value in keys.items() if not key.startswith(("recipes", "method.recipes", "benchmark"))}
    words = words_of_conf()
    found = {key: (True, [str(value), *words.get(key.rpartition(".")[2], [])]) for key, value in keys.items()}
    if "method.peft_type" in keys:
        by_name = {str(kind.value): config_class for kind, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        fields = [field.name for field in dataclasses.fields(by_name[keys["method.peft_type"]]) if field.init]
        found |= {
            f"method.{name}": (False, ["true", "1", "[query]"]) for name in fields if f"method.{name}" not in keys
        }
        found["method.peft_type"] = (True, list(by_name))
    return found


@cache
def words_of_conf() -> dict[str, list[str]]:
    """By name of a key, the words that stand behind it in any YAML file, comments included."""
    words: dict[str, list[str]] = {}
    for file in conf_dir().rglob("*.yaml"):
        for name, text in re.findall(r"^ *(\w+): (.*)", file.read_text(encoding="utf-8"), re.MULTILINE):
            words.setdefault(name, []).extend(re.findall(r"[\w./-]+", text))
    return words


# As typed on the command line.
EXTREMES = [
    "null", "None", "~", "", "''", '""', "true", "false", "yes", "nan", "NaN", "-nan", "inf", "-inf", ".inf", "1e400",
    "-1e400", "-0", "-0.0", "0", "1", "-1", "2", "0.5", "-0.5", "1e-320", "1e308", "3.5", "1e3", "1_000", "0x10",
    "007", str(2**31 - 1), str(2**31), str(2**63), str(-(2**63)), str(2**64), str(10**30), str(10**400), "9" * 5000,
    "[]", "[1]", "[1,2]", "[a,b]", "[null]", "[nan]", "[[1]]", "['']", "{}", "{a:1}", "{a:{b:2}}", "{1:2}", "???",
    "a,b", "1,2", "range(1,4)", "choice(1,2)", "glob(*)", "interval(0,1)", "sort(2,1)", "int(3.7)", "str(1)",
    "float(1)", "${seed}", "${training.epochs}", "${nope}", "${task}", "${method.r}", "${training}", "${oc.env:HOME}",
    "${..seed}", "${oc.env:FLEXLORA_NOT_SET}", "${now:%Y}", "${nope:1}", "${", "${}", "$", "\\${seed}", "'${seed'",
    "${data_seed}", "${oc.decode:nan}", "${oc.decode:1e400}", "${hydra:job.name}", "'a\nb'", "'\n'", "'\\'", "a b",
    "'a b'", "été", "'été'", "'\u2028'", "'\u202e'", "'🙂'", "'\x1b[31m'", "'\udcff'", "'..'", "'.'", "/", "'/'",
    "a/b", "'../x'", "'a/../b'", "-", "--", "=", "a=b", "#", "'#'", ":", "'a: b'", "%", "*", "(", "[", "{", "]", "'",
    '"', "x" * 300, f"'{'é' * 200}'", "'CON'", "'~'", "'~nobody'", "'~/x'", "'/proc/x'", "'/dev/null'", "os.path",
    "'..x'", "'a..b'", "'.x'", "'x.'", "_target_",
]  # fmt: skip

LETTERS = "aZ09_-./:=,;#$%&@!?*+~^|<>()[]{}'\"\\ \t\n\r\x07\x1b\x85éßжア字\u200d\u2028\ufeff\U0001f642\U000e0041"


def number(draw: Random) -> str:
    return draw.choice(
        [
            lambda: draw.randint(-3, 70),
            lambda: draw.randint(-(2**70), 2**70),
            lambda: draw.random(),
            lambda: 10 ** draw.uniform(-8, 2),
            lambda: struct.unpack("<d", draw.randbytes(8))[0],
        ]
    )().__str__()


def text(draw: Random) -> str:
    letters = "".join(draw.choices(LETTERS, k=draw.randint(0, 8)))
    return letters if draw.random() < 0.3 else "'" + letters.replace("\\", "\\\\").replace("'", "\\'") + "'"


def value(draw: Random, words: list[str]) -> str:
    """What stands behind the =: half of the time something that may be meant."""
    kind = draw.random()
    if kind < 0.4:
        return draw.choice(words)
    if kind < 0.65:
        return number(draw)
    if kind < 0.85:
        return draw.choice(EXTREMES)
    if kind < 0.9:
        return text(draw)
    items = [draw.choice([number(draw), text(draw), draw.choice(words)]) for _ in range(draw.randint(0, 3))]
    if kind < 0.96:
        return f"[{','.join(items)}]"
    return "{" + ",".join(f"{draw.choice(['a', 'validation', '0', 'name'])}:{item}" for item in items) + "}"


def near(key: str, place: int, how: int) -> str:
    """A key that is almost `key`."""
    place %= len(key)
    return [
        key[:place] + key[place + 1 :], key[:place] + "x" + key[place:], key[:place] + "é" + key[place:], key[::-1],
        key.upper(), key.replace(".", "/"), key.replace("_", "-"), key.rpartition(".")[0], key.rpartition(".")[2],
        f"{key}.x", f"{key}s", f"{key}@{key}", f"{key}.{place}", f".{key}", f"{key}[0]", f"{key}:",
    ][how]  # fmt: skip


def override(draw: Random, method: str) -> str:
    """One word of the command line; most are of a key that exists."""
    keys = known(method)
    key = draw.choice(list(keys))
    is_composed, words = keys[key]
    sign = "" if is_composed else "++"
    kind = draw.randint(0, 19)
    if kind == 0:
        key = near(key, draw.randint(0, 40), draw.randint(0, 15))
    elif kind == 1:
        sign = draw.choice(["+", "++", "~", "~", "--", "+~"])
    elif kind == 2:
        key, words = draw.choice(GROUPS), CHOICES
    elif kind == 3:
        return draw.choice(
            [f"~{key}", key, f"{sign}{key}", f"{key}=", "=", value(draw, words), f"={value(draw, words)}"]
        )
    elif kind == 4 and "." in key:
        key = key.rpartition(".")[0]
    return f"{sign}{key}={value(draw, words)}"


def overrides(draw: Random, method: str) -> list[str]:
    return [override(draw, method) for _ in range(draw.choice([1, 1, 1, 2, 3]))]


CHOICES = [
    *TASKS,
    *METHODS,
    *MODELS,
    "paper",
    "tiny",
    "glue",
    "none",
    "any",
    "basic",
    "joblib",
    "submitit_local",
    "[lora]",
]


# --- what may come of it ----------------------------------------------------------------------------------------------


def assert_one_line(ending: Ending, stderr: str) -> None:
    """Nothing on stderr where a run could start; else one line, that says something, and nothing beside it."""
    if ending.status != "refused":
        assert stderr == ""
        return
    assert ending.reason
    assert stderr.startswith("flexlora-doctor: ")
    assert stderr.endswith("\n")
    assert len(stderr.splitlines()) == 1, stderr
    assert len(stderr.strip()) > len("flexlora-doctor: ") + 10, stderr
    assert not re.search(r": \w+Error:?$", stderr), stderr


@pytest.mark.parametrize("method", METHODS)
def test_any_settings_are_a_run_or_one_line(method: str) -> None:
    seen = {"ready": 0, "refused": 0}

    @fuzz(1800 // len(METHODS))
    def every(number: int) -> None:
        draw = Random(number)
        base = [f"task={draw.choice(['glue/cola', *TASKS])}", f"method={method}", "training.learning_rate=1e-3"]
        typed = [*base, *overrides(draw, method)]
        note(" ".join(map(repr, typed)))
        ending, stderr = command(check, typed)
        assert_one_line(ending, stderr)
        seen[ending.status] += 1

    every()
    alone = command(check, ["task=glue/cola", f"method={method}", "training.learning_rate=1e-3"])[0]
    if alone.status == "ready" and sum(seen.values()) >= 20:  # else the method needs what only a user has
        assert min(seen.values()) >= 1, seen


def test_any_settings_are_a_page_of_the_doctors_or_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it, on a tiny model: beyond `check`, what only data, tokens, model and method can tell."""
    (tmp_path / "here").mkdir()  # where a relative path, or one at home, leads to
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub_is_offline.cache_clear()
    seen = {"ready": 0, "not ready": 0, "refused": 0}

    @fuzz(200)
    def every(number: int) -> None:
        draw = Random(number)
        method = draw.choice(METHODS)
        typed = [*arguments, f"output_root={tmp_path / 'out'}", f"method={method}", *overrides(draw, method)]
        note(" ".join(map(repr, typed)))
        ending, stderr = command(examine, typed)
        assert_one_line(ending, stderr)
        seen[ending.status] += 1

    every()
    assert min(seen.values()) >= 1 or sum(seen.values()) < 100, seen
    hub_is_offline.cache_clear()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
