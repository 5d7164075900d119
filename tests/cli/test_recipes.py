"""Recipes: the papers' numbers as the papers print them, and which row of a table counts for a run."""

import math
import os
import re
from pathlib import Path

import pytest
import yaml
from compose_helpers import settings_of_run
from glue_helpers import TASKS
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from yaml import SafeLoader, YAMLError

from flexlora.baselines.noah import MODULES, Subnet
from flexlora.cli.choices import choices
from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.results.folder import config_hash
from flexlora.settings import flat_keys, register_schemas, resolve
from flexlora.settings.recipes import (
    Found,
    check_recipes,
    declared,
    look_up,
    method_table,
    read,
    row_file,
    written_fields,
)

# Of the paper's tables on images alone: they have no recipe for text, and must be given a learning rate there.
VISION = {"adaptformer", "fact_tk", "fact_tt", "noah", "noah_supernet", "ssf", "vpt_deep", "vpt_shallow"}
ALL = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
METHODS = sorted({*ALL} - VISION)
INHERITING = {"adalora_r8", "flexlora_released", "ralora_pro"}
WINDOWS = ("tinit", "tfinal", "deltaT")
KNOWN = {group: choices(group, [conf_dir()]) for group in ("task", "benchmark", "scale", "model")}
# Of no use to a language model: no head to train, or no biases in a LLaMA; adapters of other tasks to fuse.
NOT_CAUSAL = {"linear", "bitfit", "adapter_fusion"}
CAUSAL = sorted({*METHODS} - NOT_CAUSAL)

# Training rows of each task.
ROWS = {
    "cola": 8551,
    "mnli": 392702,
    "mrpc": 3668,
    "rte": 2490,
    "qnli": 104743,
    "sst2": 67349,
    "stsb": 5749,
    "qqp": 363846,
}
# FlexLoRA's Table 8: length, learning rate, epochs, t_warmup = t_final, delta T; batch 32.
TABLE_8 = {
    "cola": (64, 8e-4, 20, 1000, 200),
    "mnli": (256, 5e-4, 12, 5000, 1000),
    "mrpc": (256, 1e-3, 30, 500, 100),
    "rte": (512, 1.2e-3, 50, 500, 100),
    "qnli": (256, 5e-4, 5, 1000, 200),
    "sst2": (256, 8e-4, 20, 5000, 1000),
    "stsb": (256, 2.2e-3, 20, 1000, 200),
    "qqp": (320, 8e-4, 5, 5000, 1000),
}
# QingruZhang/AdaLoRA d10f5eb, NLU/scripts: learning rate, epochs, init and final warmup, mask interval, coefficient.
ADALORA = {
    "cola": (8e-4, 25, 800, 3500, 10, 0.1),
    "mnli": (5e-4, 7, 8000, 50000, 100, 0.1),
    "mrpc": (1e-3, 30, 600, 1800, 1, 0.1),
    "rte": (1.2e-3, 50, 600, 1800, 1, 0.3),
    "qnli": (5e-4, 5, 2000, 8000, 100, 0.1),
    "sst2": (8e-4, 24, 6000, 22000, 100, 0.1),
    "stsb": (2.2e-3, 25, 800, 2000, 10, 0.3),
    "qqp": (8e-4, 5, 8000, 25000, 100, 0.1),
}
LORA_TABLE_9 = {
    "mnli": 5e-4,
    "sst2": 5e-4,
    "mrpc": 4e-4,
    "cola": 4e-4,
    "qnli": 4e-4,
    "qqp": 5e-4,
    "rte": 5e-4,
    "stsb": 4e-4,
}


def rows(method: str) -> dict[str, dict[str, object]]:
    """The recipes of a method's own file."""
    return yaml.load((conf_dir() / "method" / f"{method}.yaml").read_text(encoding="utf-8"), SafeLoader)["recipes"]


def found(key: str, method: str, task: str, benchmark: str, scale: str = "paper") -> Found | None:
    """The value that the recipes give a run. Most tests do without composing whole runs, which takes 0.2 s each."""
    config = {
        "scale": scale,
        "task": {"name": task},
        "benchmark": benchmark,
        "model": {"name": None},
        "method": {"recipes": method_table(method, [conf_dir()])},
        "recipes": read(conf_dir() / "scale" / f"{scale}.yaml").get("recipes"),
    }
    return look_up(key, config)


def rate_of(*run: str) -> float:
    """The learning rate that the recipes give a run; the arguments are those of `found`."""
    rate = found("training.learning_rate", *run)
    assert rate is not None
    return rate.value


# Every method once, and every task with an eighth of the methods.
SOME_PAIRS = [(method, TASKS[number % len(TASKS)]) for number, method in enumerate(METHODS)]


@pytest.mark.parametrize(("method", "task"), SOME_PAIRS)
def test_every_method_has_its_numbers(method, task):
    """Composed whole for one task, with nothing left to say; for every task, a row of each number without a default."""
    run = settings_of_run(f"task=glue/{task}", f"method={method}")
    assert "???" not in run.method.fields.values()
    assert run.training.learning_rate == rate_of(method, f"glue/{task}", "glue")
    fields = declared(written_fields(method, [conf_dir()])).values()
    wanted = [key for key, has_default in fields if not has_default]
    for other in TASKS:
        assert rate_of(method, f"glue/{other}", "glue") > 0
        assert not [key for key in wanted if found(key, method, f"glue/{other}", "glue") is None], other


# Learning rates of the methods' own authors, or of LLM-Adapters; all others have LoRA's.
COMMONSENSE = {
    "dora": 1e-4,
    "flora": 1e-4,
    "full": 1e-5,
    "hira": 1e-3,
    "liera": 1e-4,
    "lora_dash": 1e-4,
    "lori": 5e-4,
    "randlora": 1e-4,
    "e2_lori": 5e-4,
    "vera": 1e-3,
    "e2_vera": 1e-3,
}


@pytest.mark.parametrize("method", CAUSAL)
def test_every_method_has_its_numbers_for_commonsense170k(method):
    """Composed whole; what the paper gives every method (Table 9) stays as it is."""
    run = settings_of_run("task=commonsense170k", f"method={method}")
    assert "???" not in run.method.fields.values()
    assert run.training.learning_rate == COMMONSENSE.get(method, 3e-4)
    assert (run.training.batch_size, run.training.epochs, run.training.warmup_steps) == (16, 3, 100)
    assert (run.task.max_length, run.training.lr_scheduler.value) == (256, "linear")
    dropout = {key: value for key, value in run.method.fields.items() if key.endswith("a_dropout")}
    assert {*dropout.values()} == ({0.05} if dropout else set()), "Table 9, and every source at hand"


@pytest.mark.parametrize("method", sorted(NOT_CAUSAL | VISION))
def test_other_methods_have_no_learning_rate_for_commonsense170k(method):
    with pytest.raises(UserError, match=r"training\.learning_rate is not set"):
        settings_of_run("task=commonsense170k", f"method={method}")


@pytest.mark.parametrize("task", TASKS)
def test_flexlora_is_table_8(task):
    length, rate, epochs, window, interval = TABLE_8[task]
    run = settings_of_run(f"task=glue/{task}", "method=flexlora")
    assert (run.task.max_length, run.training.epochs, run.training.batch_size) == (length, epochs, 32)
    assert run.training.learning_rate == rate
    assert run.training.warmup_ratio == 0.1
    assert [run.method.fields[name] for name in ("r", "lora_alpha", "init_b")] == [8, 16, 4]
    assert [run.method.fields[name] for name in ("tinit", "tfinal", "deltaT")] == [window, window, interval]
    assert run.paper_steps == math.ceil(ROWS[task] / 32) * epochs


@pytest.mark.parametrize("task", TASKS)
def test_adalora_is_its_authors_script(task):
    rate, epochs, init, final, interval, weight = ADALORA[task]
    row = rows("adalora")[f"glue/{task}"]
    assert row == {
        "training.learning_rate": rate,
        "method.tinit": init,
        "method.tfinal": final,
        "method.deltaT": interval,
        "method.orth_reg_weight": weight,
        "paper_steps": math.ceil(ROWS[task] / 32) * epochs,
    }
    assert init + final < row["paper_steps"]


@pytest.mark.parametrize("task", TASKS)
def test_the_other_baselines_have_rates_of_their_own_sources(task):
    rates = {method: rate_of(method, f"glue/{task}", "glue") for method in ("lora", "full", "bitfit", "linear")}
    assert rates == {
        "lora": LORA_TABLE_9[task],
        "full": 1.5e-5 if task == "mnli" else 2e-5,
        "bitfit": 1e-3,
        "linear": 1e-3,
    }


@pytest.mark.parametrize(
    ("method", "other"), [("flexlora_released", "flexlora"), ("adalora_r8", "adalora")], ids=["released", "rank 8"]
)
def test_a_variant_has_its_methods_numbers(method, other):
    """Of all tasks in the files, and of one in the settings of a run."""
    assert method_table(method, [conf_dir()]) == method_table(other, [conf_dir()])
    a, b = (settings_of_run("task=glue/cola", f"method={name}") for name in (method, other))
    assert (a.training, a.paper_steps) == (b.training, b.paper_steps)
    assert [a.method.fields[name] for name in WINDOWS] == [b.method.fields[name] for name in WINDOWS]


@pytest.mark.parametrize("method", sorted(VISION))
def test_a_method_for_images_has_no_learning_rate_for_text(method):
    with pytest.raises(UserError, match=r"training\.learning_rate is not set"):
        settings_of_run("task=glue/cola", f"method={method}")


# JieShibo/PETL-ViT 026e4f1: the ranks and scales behind Table 16's FacT, by task.
FACT_TK = {32: 13, 16: 6}


def test_fact_has_the_parameters_of_table_16():
    """0.07M are the mean over the 19 tasks of its Tucker form at ranks of 16 and 32 on ViT-B/16."""
    ranks = [row["method.r"] for name, row in rows("fact_tk").items() if name.startswith("vtab/")]
    assert {rank: ranks.count(rank) for rank in set(ranks)} == FACT_TK
    parameters = [2 * 768 * rank + rank**3 + 12 * 12 * rank for rank in ranks]
    assert round(sum(parameters) / len(parameters) / 1e6, 2) == 0.07


def test_noah_has_the_parameters_of_table_16():
    """0.36M are the mean over the 19 tasks of the published subnets on ViT-B/16."""
    sizes = [row for name, row in rows("noah").items() if name.startswith("vtab/")]
    subnets = [Subnet(*(tuple(size[f"method.{name}"]) for name in MODULES)) for size in sizes]
    assert len(subnets) == 19
    assert {len(getattr(subnet, name)) for subnet in subnets for name in MODULES} == {12}
    assert round(sum(subnet.parameters(768) for subnet in subnets) / 19) == 360_134


@pytest.mark.parametrize("method", [name for name in ALL if name not in INHERITING])
def test_every_number_of_a_recipe_says_where_it_is_from(method):
    """A comment beside the row, or above it or above the table that it belongs to."""
    text = (conf_dir() / "method" / f"{method}.yaml").read_text(encoding="utf-8")
    said = False
    for line in text.partition("\nrecipes:\n")[2].splitlines():
        if line.startswith("  #"):
            said = True
        elif re.match(r"  \S+: {", line):
            assert said or "  # " in line, f"{method}: {line}"


@pytest.mark.parametrize("name", ALL)
def test_our_own_recipes_name_settings_tasks_and_backbones_that_exist(name):
    check_recipes(name, "tiny", KNOWN, [conf_dir()])


def test_a_small_run_has_one_learning_rate_for_all_methods_but_those_with_a_row_of_their_own():
    rates = {name: rate_of(name, "glue/rte", "glue", "tiny") for name in METHODS}
    others = {name: rate for name, rate in rates.items() if rate != 3e-3}
    assert others.keys() == {name for name in METHODS if name not in INHERITING and _tiny_rate(rows(name))}
    assert settings_of_run("task=glue/rte", "method=lora", "scale=tiny").training.learning_rate == rates["lora"]


def _tiny_rate(table: dict[str, dict[str, object]]) -> bool:
    return any("training.learning_rate" in table.get(row, {}) for row in ("tiny", "tiny/glue"))


# --- which row counts ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for `--config-dir` with a method `mine`."""
    (tmp_path / "method").mkdir()
    return tmp_path


def write(folder: Path, recipes: str, name: str = "mine", fields: str = "r: ${recipe:method.r,1}") -> None:
    text = f"name: {name}\nkind: peft\npeft_type: LORA\n{fields}\nrecipes:\n"
    (folder / "method" / f"{name}.yaml").write_text(text + recipes, encoding="utf-8")


def resolved(folder: Path, *overrides: str):
    """The settings of `method=mine` with the files of `folder`, typed and plain. The files change: none is cached."""
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("config", overrides=[f"hydra.searchpath=[{folder}]", "method=mine", *overrides])
    return resolve(config, [conf_dir(), folder])


def rank(folder: Path, *overrides: str) -> int:
    return resolved(folder, *overrides)[0].method.fields["r"]


# Each row is stronger than those after it.
STRENGTH = ["tiny/glue/cola@roberta_base", "tiny/glue/cola", "tiny/glue@roberta_base", "tiny/glue", "tiny@roberta_base",
            "tiny", "glue/cola@roberta_base", "glue/cola", "glue@roberta_base", "glue"]  # fmt: skip


def test_the_most_specific_row_wins(folder):
    for first in range(len(STRENGTH) + 1):
        present = [f"  {row}: {{method.r: {100 + STRENGTH.index(row)}}}\n" for row in STRENGTH[first:]]
        write(folder, "".join(reversed(present)) + "  vtab: {method.r: 2}\n")
        chosen = rank(folder, "task=glue/cola", "model=roberta_base", "scale=tiny")
        assert chosen == (100 + first if first < len(STRENGTH) else 1)


def test_a_file_is_read_as_omegaconf_reads_it(tmp_path):
    """Numbers without a point and dates included; a file that OmegaConf cannot read is empty."""
    file = tmp_path / "a.yaml"
    for text in ("a: 1e-3\nb: 2020-01-01\nc: [1_000, ~, on, .inf, 0x10]\nd: {e: ${seed}}\n", "a: 1\na: 2\n", "a: [\n"):
        file.write_text(text, encoding="utf-8")
        os.utime(file, ns=(0, len(text)))
        try:
            expected = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except YAMLError:
            expected = {}
        assert read(file) == expected
    assert read(conf_dir() / "method" / "lora.yaml")["name"] == "lora"


def test_rows_of_another_scale_backbone_or_task_do_not_count(folder):
    write(folder, "".join(f"  {row}: {{method.r: 2}}\n" for row in STRENGTH if row != "glue"))
    own = ["training.learning_rate=1e-3"]
    assert rank(folder, "task=glue/rte", *own) == 1
    assert rank(folder, "task=vtab/kitti", *own) == 1
    assert rank(folder, "task=glue/cola", *own) == 2


def test_a_key_that_a_row_lacks_is_looked_for_in_the_next(folder):
    write(folder, "  glue/cola: {method.r: 7}\n  glue: {training.learning_rate: 0.25}\n")
    run = resolved(folder, "task=glue/cola")[0]
    assert (run.method.fields["r"], run.training.learning_rate) == (7, 0.25)


def test_the_command_line_and_an_experiment_win(folder):
    write(folder, "  glue/cola: {method.r: 7, training.learning_rate: 0.25}\n")
    assert rank(folder, "task=glue/cola", "method.r=3") == 3
    (folder / "experiment").mkdir()
    (folder / "experiment" / "wide.yaml").write_text("# @package _global_\nmethod: {r: 9}\n", encoding="utf-8")
    assert rank(folder, "task=glue/cola", "experiment=wide") == 9
    assert rank(folder, "task=glue/cola", "experiment=wide", "method.r=3") == 3


def test_a_null_in_a_row_is_a_value(folder):
    write(folder, "  glue: {method.r: null, training.learning_rate: 1.0e-3}\n")
    assert rank(folder, "task=glue/cola") is None


def test_recipes_are_no_part_of_the_record(folder):
    """Another task's row may change without making a finished run another run."""
    hashes = set()
    for other in ("0.1", "0.2"):
        write(
            folder, f"  glue/cola: {{training.learning_rate: 0.25}}\n  glue/rte: {{training.learning_rate: {other}}}\n"
        )
        plain = resolved(folder, "task=glue/cola")[1]
        assert not [key for key in flat_keys(plain) if "recipe" in key or key == "benchmark"]
        hashes.add(config_hash(plain))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("recipes", "line"),
    [
        ("  glue/colla: {method.r: 2}\n", "row 'glue/colla': there is no task or benchmark 'glue/colla'. Did you mean"),
        ("  tiny/glu: {method.r: 2}\n", "row 'tiny/glu': there is no task or benchmark 'glu'. Did you mean glue?"),
        ("  glue@rob: {method.r: 2}\n", "row 'glue@rob': there is no model 'rob'."),
        ("  glue: {method.rr: 2}\n", "row 'glue': no setting there is declared as ${recipe:method.rr}. Did you mean"),
        ("  glue: {task.split: x}\n", "row 'glue': no setting there is declared as ${recipe:task.split}."),
        ("  glue: 3\n", "row 'glue': a row is a table of settings, as in glue: {training.learning_rate: 1.0e-3}"),
        ("  - 3\n", "must be a table of rows, as in glue: {training.learning_rate: 1.0e-3}"),
    ],
)  # fmt: skip
def test_a_recipe_that_no_run_could_use_is_one_line_with_file_and_row(folder, recipes, line):
    write(folder, recipes)
    with pytest.raises(UserError) as error:
        check_recipes("mine", "paper", KNOWN, [conf_dir(), folder])
    assert str(error.value).startswith(str(folder / "method" / "mine.yaml"))
    assert line in str(error.value)


def test_a_method_inherits_recipes_only_where_its_file_says_so(folder):
    write(folder, "  glue: {method.r: 5, training.learning_rate: 0.5}\n", name="parent")
    (folder / "method" / "mine.yaml").write_text("defaults: [parent, _self_]\nname: mine\n", encoding="utf-8")
    assert rank(folder, "task=glue/cola") == 5
    assert row_file("glue", "mine", [conf_dir(), folder]) == folder / "method" / "parent.yaml"
    assert row_file("vtab", "mine", [conf_dir(), folder]) is None
