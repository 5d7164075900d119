"""The configuration: every key explained, every method's numbers its own, nothing past the schema."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest
from compose_helpers import composed
from omegaconf import OmegaConf

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError, did_you_mean
from flexlora.methods import check_method
from flexlora.settings import TASK_SCHEMAS, Precision, Schedule, flat_keys, resolve
from flexlora.settings.resolve import FOLDER_NAMES, LIMITS, POSITIVE

FILES = sorted(conf_dir().rglob("*.yaml"))
METHODS = ("flexlora", "lora", "linear")


def settings(*overrides: str):
    return resolve(composed(*overrides))[0]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(conf_dir())) for path in FILES])
def test_every_key_is_explained_where_it_is_declared(path: Path):
    """A comment stands beside the key or above it. A task's file only fills in what its benchmark's file explains."""
    if path.parent.name == "glue" or path.stem == "none":
        return
    before = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("recipes:")[0].splitlines(), start=1):
        if re.match(r"\s*\w+:\s*[^\s#|]", line):
            explained = line.count("  # ") == 1 or before.lstrip().startswith("#")
            assert explained, f"{path.name}, line {number} has no comment: {line}"
        before = line


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(conf_dir())) for path in FILES])
def test_no_line_is_longer_than_120_characters(path: Path):
    """A long comment is above its key; a long sweep is one quoted string over several lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, start=1) if len(line) > 120] == []


def test_flexlora_on_cola_is_the_papers():
    run = settings("task=glue/cola", "method=flexlora")
    assert (run.training.learning_rate, run.training.epochs, run.training.batch_size) == (8e-4, 20, 32)
    assert (run.task.max_length, run.training.warmup_ratio, run.training.weight_decay) == (64, 0.1, 0.0)
    windows = {name: run.method.fields[name] for name in ("tinit", "tfinal", "deltaT", "r", "lora_alpha", "init_b")}
    assert windows == {"tinit": 1000, "tfinal": 1000, "deltaT": 200, "r": 8, "lora_alpha": 16, "init_b": 4}
    assert run.paper_steps == -(-8551 // 32) * 20
    assert (run.schedule, run.training.precision) == (Schedule.scaled, Precision.fp32)


def test_a_baseline_does_not_inherit_flexloras_learning_rate():
    rates = {method: settings("task=glue/cola", f"method={method}").training.learning_rate for method in METHODS}
    assert rates == {"flexlora": 8e-4, "lora": 4e-4, "linear": 1e-3}
    assert settings("task=glue/cola", "method=lora").paper_steps is None


def test_a_method_without_a_recipe_must_be_given_a_learning_rate():
    with pytest.raises(UserError) as error:
        settings("task=glue/cola", "method=noah")
    assert str(error.value) == (
        "training.learning_rate is not set: conf/method/noah.yaml has no recipe row for task glue/cola. Add "
        "training.learning_rate to row 'glue/cola' or 'glue' of its recipes, or give training.learning_rate=VALUE."
    )
    assert settings("task=glue/cola", "method=noah", "training.learning_rate=1e-3").training.learning_rate == 1e-3


def test_a_setting_that_is_left_out_is_named():
    with pytest.raises(UserError, match=r"^training.log_every is not set: give it in the YAML, or as training.log_ev"):
        settings("task=glue/cola", "training.log_every=???")


def test_the_data_seed_follows_the_seed_unless_set():
    assert settings("task=glue/cola", "seed=3").data_seed == 3
    assert settings("task=glue/cola", "seed=3", "data_seed=1").data_seed == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+training.foo=1", "there is no setting 'training.foo'"),
        ("+training.learning_rte=1", r"Did you mean training\.learning_rate\?"),
        ("+task.max_train_row=1", r"there is no setting 'task\.max_train_row'\. Did you mean task\.max_train_rows\?"),
        ("+model.pat=1", r"Did you mean model\.path\?"),
        ("+foo=1", "there is no setting 'foo'"),
        ("+task.tsv.headr=true", r"Did you mean task\.tsv\.header\?"),
    ],
)
def test_an_added_key_does_not_slip_past_the_schema(override, message):
    with pytest.raises(UserError, match=message):
        settings("task=glue/cola", override)


def test_a_mask_takes_no_key_of_another_method():
    with pytest.raises(UserError, match=r"there is no setting 'method\.r'"):
        check_method(settings("task=glue/cola", "method=linear", "+method.r=8"))


@pytest.mark.parametrize(("text", "held"), [("0", 0.0), ("1", 1.0), ("0.5", 0.5)])
def test_a_number_is_held_as_its_yaml_declares_it(text, held):
    """Otherwise `method.lora_dropout=0` and the default `0.0` would be two runs with two hashes."""
    run, plain = resolve(composed("task=glue/cola", "method=lora", f"method.lora_dropout={text}"))
    assert (run.method.fields["lora_dropout"], plain["method"]["lora_dropout"]) == (held, held)
    assert type(plain["method"]["lora_dropout"]) is float


@pytest.mark.parametrize(("value", "shown"), [("abc", "'abc'"), ("true", "True")])
def test_a_number_of_a_method_is_no_text(value, shown):
    with pytest.raises(UserError, match=f"^method.r must be a number, not {shown}$"):
        settings("task=glue/cola", "method=lora", f"method.r={value}")


@pytest.mark.parametrize("name", ["flexlora", "lora"])
def test_a_methods_keys_are_fields_of_its_peft_config(name):
    from peft import LoraConfig

    from flexlora import FlexLoraConfig

    config_class = {"flexlora": FlexLoraConfig, "lora": LoraConfig}[name]
    keys = set(settings("task=glue/cola", f"method={name}").method.fields) - {"peft_type", "ranks_from"}
    assert keys <= {field.name for field in dataclasses.fields(config_class)}


def test_flexloras_yaml_gives_the_configs_own_defaults():
    """The YAML shows a user every default; it may not differ from what a script of their own would get."""
    from flexlora import FlexLoraConfig

    defaults = {field.name: field.default for field in dataclasses.fields(FlexLoraConfig)}
    yaml = typing.cast(dict, OmegaConf.to_container(OmegaConf.load(conf_dir() / "method" / "flexlora.yaml")))
    shown = {key: value for key, value in yaml.items() if not str(value).startswith("${recipe:")}
    for key in set(shown) - {"name", "kind", "peft_type", "ranks_from", "recipes"}:
        assert shown[key] == defaults[key], key


@pytest.mark.parametrize(
    ("word", "options", "answer"),
    [
        ("glue/colaa", ["glue/cola", "glue/rte"], " Did you mean glue/cola?"),
        ("cola", ["glue/cola", "glue/rte"], " Did you mean glue/cola?"),
        ("training.lr", ["training.log_every", "training.learning_rate"], " Did you mean training.learning_rate?"),
        ("trainin.epochs", ["task.epochs", "training.epochs"], " Did you mean training.epochs?"),
        ("flexlra", ["flexlora", "lora"], " Did you mean flexlora?"),
        ("cola", ["csv", "glue/cola"], " Did you mean glue/cola?"),
        ("LoRA", ["dora", "lora"], " Did you mean lora?"),
        ("zzz", ["flexlora", "lora"], ""),
    ],
)
def test_did_you_mean(word, options, answer):
    assert did_you_mean(word, options) == answer


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=0", "training.epochs must be at least 1, not 0"),
        ("training.max_steps=-1", "training.max_steps must be at least 1, not -1"),
        ("training.batch_size=0", "training.batch_size must be at least 1, not 0"),
        ("training.eval_batch_size=0", "training.eval_batch_size must be at least 1, not 0"),
        ("training.gradient_accumulation=0", "training.gradient_accumulation must be at least 1, not 0"),
        ("training.eval_every=-1", "training.eval_every must be at least 0, not -1"),
        ("training.log_every=0", "training.log_every must be at least 1, not 0"),
        ("training.warmup_ratio=2", "training.warmup_ratio must be between 0 and 1, not 2.0"),
        ("training.min_lr_rate=1.5", "training.min_lr_rate must be between 0 and 1, not 1.5"),
        ("training.weight_decay=-1", "training.weight_decay must be at least 0, not -1.0"),
        ("training.weight_decay=nan", "training.weight_decay must be at least 0, not nan"),
        ("training.learning_rate=0", "training.learning_rate must be above 0, not 0.0"),
        ("training.learning_rate=inf", "training.learning_rate must be a finite number, not inf"),
        ("training.max_grad_norm=0", "training.max_grad_norm must be above 0, not 0.0"),
        ("task.max_train_rows=0", "task.max_train_rows must be at least 1, not 0"),
        ("task.max_eval_rows=-2", "task.max_eval_rows must be at least 1, not -2"),
        ("paper_steps=0", "paper_steps must be at least 1, not 0"),
        ("seed=-1", "seed must be between 0 and 2147483647, not -1"),
        ("variant=../x", "variant becomes a folder name; '../x' is not a valid folder name."),
        (
            "task.family=glu",
            f"there is no task.family 'glu'. Did you mean glue? There are: {', '.join(TASK_SCHEMAS)}.",
        ),
        ("data_seed=99999999999", "data_seed must be between 0 and 2147483647, not 99999999999"),
    ],
)
def test_a_value_out_of_range_is_refused(override, message):
    with pytest.raises(UserError) as error:
        settings("task=glue/cola", override)
    assert str(error.value) == message


def test_every_limit_is_of_a_setting_that_exists():
    keys = set()
    for task in (
        "glue/cola",
        "commonsense170k",
        "gsm8k",
        "humaneval",
        "vtab/kitti",
        "images/folder",
        "csv",
        "instructions",
    ):
        for method in ("flexlora", "adalora"):
            keys |= set(flat_keys(resolve(composed(f"task={task}", f"method={method}"))[1]))
    assert {*LIMITS, *POSITIVE, *FOLDER_NAMES} <= keys
