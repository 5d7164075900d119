"""`flexlora-doctor` through the installed command: what it says is what the run then does or refuses."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from compose_helpers import composed
from marks import slow_but
from method_helpers import METHODS

import flexlora.cli.doctor
from flexlora.conf_path import conf_dir
from flexlora.doctor.findings import Mark
from flexlora.doctor.method_rows import method_rows
from flexlora.doctor.run_check import check_run
from flexlora.results.folder import RunFolder
from flexlora.results.record import read_record
from flexlora.settings import resolve, resolve_method
from flexlora.testing.commands import COMMAND, run_command
from flexlora.training import memory
from flexlora.training.memory import step_memory

DOCTOR = COMMAND.with_name("flexlora-doctor")


@pytest.fixture(scope="session")
def doctor() -> Callable[..., subprocess.CompletedProcess[str]]:
    return partial(run_command, DOCTOR)


def rows(page: str) -> dict[str, str]:
    """`{"rank events.events": "19: the first …"}`, a row's continued lines joined to it; problems begin with ✗."""
    found: dict[str, str] = {}
    section = key = ""
    for line in page.splitlines():
        if re.match(r"  [✓!✗ ] \S", line):
            mark, rest = line[2], line[4:]
            name, _, text = rest.partition("  ")
            key = f"{section}.{name}"
            found[key] = (f"{mark} " if mark in "!✗" else "") + text.strip()
        elif line.startswith("      ") and key:
            found[key] += " " + line.strip()
        else:
            section, key = line.strip(), ""
    return found


def files_under(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_run_that_can_start(doctor, arguments, tmp_path):
    root = tmp_path / "outputs"
    result = doctor(*arguments, "method=flexlora", f"output_root={root}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("ready to run")
    assert result.stderr == ""
    assert not root.exists()
    told = rows(result.stdout)
    # 64 sentences in batches of 8, four epochs: 32 of the recipe's 5,360 steps.
    assert told["steps.training"] == "64 rows, 8 optimizer steps an epoch, 32 in all"
    assert told["steps.warmup"].startswith("4 steps")
    assert told["steps.evaluations"].startswith("4, every 8 steps")
    assert "tinit 1000 → 6, tfinal 1000 → 6, deltaT 200 → 1" in told["rank events.windows"]
    assert told["rank events.events"].startswith("19: the first at step 7, the last at 25")
    assert told["rank events.capacity"].startswith("rank 32 ")
    assert told["folder.state"] == "new"
    assert "64 to train on, 40 validation" in told["data.rows"]
    long = [line for line in result.stdout.splitlines() if len(line) > 100 and str(tmp_path)[:8] not in line]
    assert long == []


SETTINGS = [
    ["method=flexlora", "training.max_steps=17", "training.gradient_accumulation=3"],
    ["method=flexlora", "schedule=absolute", "method.tinit=3", "method.tfinal=5", "method.deltaT=4", "method.init_b=2"],
    ["method=flexlora_released", "training.epochs=2", "task.max_train_rows=50"],
    ["method=adalora", "training.epochs=2", "training.batch_size=5"],
    ["method=bitfit", "training.epochs=1", "training.precision=bf16"],
]


@pytest.mark.parametrize("given", slow_but(SETTINGS[::4], SETTINGS), ids=lambda given: "-".join(given[:2]))
def test_what_it_says_is_what_the_run_does(doctor, flexlora_run, arguments, tmp_path, given):
    spelled = [*arguments, *given, f"output_root={tmp_path}"]
    page = doctor(*spelled)
    assert page.returncode == 0, page.stdout + page.stderr
    told = rows(page.stdout)
    run = flexlora_run(*spelled)
    assert run.returncode == 0, run.stdout + run.stderr
    record = read_record(Path(told["folder.path"]) / "result.json")

    assert f"{record.total_steps:,} in all" in told["steps.training"]
    assert record.steps == record.total_steps
    assert told["steps.evaluations"].startswith(f"{len(record.history)}, ")
    if record.rank_events is None:
        assert "rank events.events" not in told
    else:
        events = record.rank_events
        assert told["rank events.events"].startswith(
            f"{events['count']}: the first at step {events['first_step']}, the last at {events['last_step']}"
        )
        lines = (Path(told["folder.path"]) / "ranks.jsonl").read_text().splitlines()
        budgets = [json.loads(line)["budget"] for line in (lines[0], lines[-1])]
        assert told["rank events.budget"] == f"{budgets[0]} at the first, {budgets[1]} at the last"
    # The adapter's active parameters may move with its ranks; what is allocated, and the head, do not.
    counts = record.parameters
    assert f"{counts['adapter_allocated']:,}" in told["parameters.adapter"]
    assert told["parameters.head"] == f"{counts['head']:,}"


def test_a_finished_folder_and_one_of_another_config(doctor, flexlora_run, arguments, tmp_path):
    spelled = [*arguments, "method=linear", "training.max_steps=2", f"output_root={tmp_path}"]
    assert flexlora_run(*spelled).returncode == 0
    before = {file: file.stat().st_mtime_ns for file in files_under(tmp_path)}
    again = doctor(*spelled)
    assert again.returncode == 0
    assert "finished: it is skipped" in rows(again.stdout)["folder.state"]
    other = doctor(*spelled, "training.learning_rate=1e-4")
    assert other.returncode == 1
    assert (
        "holds a finished run of another config (training.learning_rate: 0.005 → 0.0001)"
        in (rows(other.stdout)["folder.state"])
    )
    assert {file: file.stat().st_mtime_ns for file in files_under(tmp_path)} == before


def test_an_adapter_to_start_from(doctor, flexlora_run, arguments, tiny_bert, tmp_path):
    first = [*arguments, "training.max_steps=8", f"output_root={tmp_path}"]
    assert flexlora_run(*first, "method=flexlora").returncode == 0
    adapter = tmp_path / "local" / "glue" / "cola" / tiny_bert.name / "flexlora" / "test" / "seed0" / "adapter"
    second = [*arguments, f"adapter={adapter}", f"output_root={tmp_path / 'second'}"]
    fits = doctor(*second, "method=flexlora")
    assert fits.returncode == 0, fits.stdout + fits.stderr
    assert rows(fits.stdout)["model.start"] == f"from the adapter in {adapter}"
    other = doctor(*second, "method=lora")
    assert other.returncode == 1
    assert "has a FLEXLORA adapter, but this method is LORA" in other.stdout.replace("\n", " ").replace("  ", "")


def test_a_locked_folder(doctor, arguments, tiny_bert, tmp_path):
    path = tmp_path / "local" / "glue" / "cola" / tiny_bert.name / "linear" / "test" / "seed0"
    spelled = [*arguments, "method=linear", f"output_root={tmp_path}"]
    with RunFolder(path, {}):
        held = doctor(*spelled)
    assert held.returncode == 1
    assert f"is in use by process {os.getpid()} on " in rows(held.stdout)["folder.state"]
    assert doctor(*spelled).returncode == 0


def test_without_the_hub_it_says_what_to_set(doctor, tmp_path):
    """And counts by the exact shapes: baselines' numbers for DeBERTaV3-base.

    Commands of the tests have HF_HUB_OFFLINE=1 and an empty cache. test_run_errors.py asks a hub that does not answer.
    """
    result = doctor("task=glue/cola", f"output_root={tmp_path}")
    assert result.returncode == 1
    told = rows(result.stdout)
    assert told["data.rows"].startswith("✗")
    assert "task.data_dir=DIR" in told["data.rows"]
    assert told["model.backbone"].startswith("✗")
    assert "model=local model.path=DIR" in told["model.backbone"]
    assert told["model.shapes"] == "exact shapes, hub not asked"
    assert told["parameters.adapter"].startswith("1,327,680 active, ")
    assert told["parameters.head"] == "592,130"
    assert "5,360 optimizer steps, from the recipe" in told["steps.assumed"]
    assert told["rank events.events"].startswith("16: the first at step 1,200, the last at 4,200")
    assert "cannot run: 2 problems" in result.stdout


PROBLEMS = {
    "no event": (["method=flexlora", "schedule=absolute"], "no rank event is possible"),
    "no such data": (["method=lora", "task.data_dir=nowhere"], "task.data_dir: there is no folder nowhere"),
    "no such model": (["method=lora", "model.path=nowhere"], "model.path: there is no folder nowhere"),
    "no such head": (["method=lora", "method.modules_to_save=[poolr]"], "'poolr'. Did you mean pooler?"),
    "a tracker": (["method=lora", "trackers=[tensorbord]"], "trackers: there is no 'tensorbord'. Did you mean"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_problem_is_on_the_page(doctor, arguments, tmp_path, case):
    """In the words with which the run refuses it (tests/test_run_errors.py)."""
    given, message = PROBLEMS[case]
    spelled = [*arguments, *given, f"output_root={tmp_path}"]
    result = doctor(*spelled)
    assert result.returncode == 1
    problems = [text for text in rows(result.stdout).values() if text.startswith("✗")]
    assert any(message in text for text in problems), result.stdout
    assert "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_written(doctor, arguments, tmp_path):
    (tmp_path / "file").write_text("")
    result = doctor(*arguments, "method=linear", f"output_root={tmp_path / 'file'}")
    assert result.returncode == 1
    assert "Set output_root=DIR" in rows(result.stdout)["folder.state"]


def test_memory_is_told_with_what_is_free(doctor, arguments, tmp_path):
    result = doctor(*arguments, "method=full", "training.batch_size=8", f"output_root={tmp_path}")
    assert result.returncode == 0
    assert re.fullmatch(
        r"[\d.]+ [KMG]iB at most, in (a training step|an evaluation); [\d.]+ GiB free",
        rows(result.stdout)["memory.peak"],
    )


@pytest.mark.parametrize(
    ("share", "mark", "words"),
    [(0.5, Mark.problem, "free: lower training.batch_size"), (1.5, Mark.warning, "may not fit"), (9, None, "")],
)
def test_memory_that_does_not_fit(arguments, cola, tiny_bert, tmp_path, monkeypatch, share, mark, words):
    """Half of what is needed is a problem with numbers and a remedy; what only malloc's fragments exceed, a warning."""
    needed = {}

    def measured(*given):
        needed["bytes"] = (told := step_memory(*given)).peak
        return told

    monkeypatch.setattr(memory, "step_memory", measured)
    monkeypatch.setattr(memory, "free_memory", lambda device: (int(share * needed.get("bytes", 1)), 2**40))
    settings, plain = resolve(composed(*arguments, "method=full", "training.eval_batch_size=1"))
    findings = check_run(settings, plain, tmp_path / "run")
    marked = [f for f in findings if f.section == "memory" and f.mark in (Mark.problem, Mark.warning)]
    assert [f.mark for f in marked] == ([mark] if mark else [])
    assert all(words in f.text for f in marked)


SETTINGS_REFUSED = {
    "no task": ([], "no task is given: task=NAME, one of commonsense170k, csv, glue/cola"),
    "unknown task": (["task=glue/colaa"], "there is no task 'glue/colaa'. Did you mean glue/cola?"),
    "unknown key": (["task=glue/cola", "training.lr=1"], "Did you mean training.learning_rate?"),
    "wrong type": (["-m", "task=glue/cola", "training.epochs=eight"], "training.epochs=eight: Value 'eight' of type"),
}


@pytest.mark.parametrize("case", SETTINGS_REFUSED)
def test_a_bad_setting_is_one_line(doctor, case):
    given, message = SETTINGS_REFUSED[case]
    result = doctor(*given)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("flexlora-doctor: ")
    assert message in line


def test_a_sweep_is_a_page_a_run_and_leaves_nothing(doctor, arguments, tmp_path):
    result = doctor("-m", *arguments, "method=linear,lora", "training.max_steps=2", f"output_root={tmp_path / 'out'}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("ready to run") == 2
    assert not (tmp_path / "out").exists()


def test_help_is_its_own(doctor):
    result = doctor("--help")
    assert result.returncode == 0
    assert result.stdout.startswith("flexlora-doctor says whether a run could start here")
    assert "training.learning_rate=(recipe)" in result.stdout


def test_every_method_is_listed_with_what_it_trains_here(arguments):
    """By trying each: on the paper's three kinds of backbones, and on the model of the command line."""
    result = run_command(DOCTOR, "methods", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    listed = {
        row[0]: row[1:] for row in (line.split() for line in result.stdout.splitlines()) if row and row[0] in METHODS
    }
    assert sorted(listed) == METHODS
    source, *backbones, merges, parameters = listed["flexlora"][:6]
    assert (source, backbones, merges) == ("ours", ["✓", "✓", "✓"], "✓")
    per_rank = 2 * (4 * (32 + 32) + (32 + 64) + (64 + 32))  # of each of two layers: in, out of six linears
    assert parameters == f"{8 * (per_rank + 12):,}"  # and a λ for each of the twelve
    assert listed["lora"][:6] == ["PEFT", "✓", "✓", "✓", "✓", f"{8 * per_rank:,}"]
    assert listed["vpt_deep"][:6] == ["ours", "–", "–", "✓", "no", "–"]
    assert listed["linear"][:6] == ["weights", "✓", "–", "✓", "–", "0"]


@pytest.mark.parametrize("given", [["task=glue/cola"], ["task=vtab/cifar100", "scale=tiny"]], ids=" ".join)
def test_the_list_has_the_settings_that_a_run_has(monkeypatch, given):
    """A method that inherits, one with rows for tasks and scales, one for images."""
    monkeypatch.setattr(flexlora.cli.doctor, "config_folders", lambda: [conf_dir()])
    monkeypatch.setattr(flexlora.cli.doctor, "compose", lambda _, overrides: composed(*overrides))
    files = {name: conf_dir() / "method" / f"{name}.yaml" for name in ("adalora_r8", "flexlora", "noah")}
    expected = {name: resolve_method(composed(*given, f"method={name}")) for name in files}
    assert flexlora.cli.doctor._methods(files, given) == expected


def test_the_list_of_methods_is_counted_once(arguments, tmp_path, monkeypatch):
    """A second call reads what the first one counted; with other settings the methods are counted anew."""
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path))
    settings, plain = resolve(composed(*arguments, "method=lora"))
    methods = {"lora": settings.method}
    files = {"lora": conf_dir() / "method" / "lora.yaml"}
    first = method_rows(settings, plain, methods, files)
    assert (first[0].name, first[0].source) == ("lora", "PEFT")
    monkeypatch.setitem(sys.modules, "flexlora.doctor.method_list", None)  # whose import would fail
    assert method_rows(settings, plain, methods, files) == first
    with pytest.raises(ImportError):
        method_rows(settings, plain | {"seed": 1}, methods, files)
    with pytest.raises(ImportError):
        method_rows(settings, plain, {"lora": settings.method.with_fields(r=4)}, files)
