"""`flexlora-run --help` and the lists of `flexlora-doctor` say what each setting means, from the YAML comments."""

import re
import sys
from pathlib import Path

import pytest

from flexlora.cli import doctor
from flexlora.conf_path import conf_dir
from flexlora.doctor.lists import LISTS
from flexlora.errors import UserError
from flexlora.testing.commands import RunCommand


@pytest.fixture(scope="module")
def page(flexlora_run: RunCommand) -> str:
    """The page in a process of its own, because Hydra prints it and keeps global state."""
    told = flexlora_run("--help", "task=glue/cola", "method=adalora_r8")
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_help_fits_80_columns(page: str) -> None:
    assert [line for line in page.splitlines() if len(line) > 80] == []


def test_help_has_groups_and_every_choice(page: str) -> None:
    assert re.findall("^-- (.*) --$", page, re.M) == [
        "Run", "Training", "Task glue/cola", "Method adalora_r8", "Model deberta_v3_base",
    ]  # fmt: skip
    choices = " ".join(page.partition("== Settings")[0].split())
    assert "task: commonsense170k, " in choices
    assert ", vtab/svhn method: adalora, " in choices
    assert " scale: paper, tiny " in choices
    assert "none" not in choices


SAID = {
    "of the run": "seed=0 of the initialisation and of dropout",
    "a choice": "training.precision=fp32 of forward and backward: fp32 | bf16 | fp16",
    "of the benchmark, not of the task's value": "task.max_length=64 most tokens of an example; a longer text is cut",
    "of a default of the training": "task.epochs=20 passes over the training split",
    "inherited by the method": "method.lora_dropout=0.0 dropout on the adapter's input",
    "of the model": "model.dtype=float32 of the weights: float32 | bfloat16 | float16",
    "with a dollar sign": "default: tokens/ in $FLEXLORA_CACHE or ~/.cache/flexlora",
}


@pytest.mark.parametrize("case", SAID)
def test_help_says_what_a_setting_means(page: str, case: str) -> None:
    assert SAID[case] in " ".join(page.split())


def test_help_has_the_number_of_the_recipe(page: str) -> None:
    assert re.search(r"training\.learning_rate=0\.\d+ +AdamW's peak learning rate", page)


def test_without_a_task_the_help_has_no_setting_of_a_task_and_no_number_of_a_recipe(flexlora_run: RunCommand) -> None:
    """In a process of its own, as above."""
    told = " ".join(flexlora_run("--help").stdout.split())
    assert "flexlora-run task=NAME --help lists the settings of a task." in told
    assert "training.learning_rate=(recipe) AdamW's peak learning rate" in told
    assert "task.max_length" not in told


FOUND = {
    ("tasks", ""): "csv A table of your own: one or two texts and a label in each row, as CSV, TSV, JSON",
    ("tasks", "nearest vehicle"): "vtab/kitti KITTI: how far is the nearest vehicle?",
    ("experiments", "table4"): "table4 The paper's Table 4: importance metrics of FlexLoRA on GLUE.",
    ("settings", "WARMUP"): "training.warmup_ratio=0.1 share of the optimizer steps in which the learning rate rises",
    ("settings", "smoothing factor"): "method.beta1=0.85 smoothing factor of",
    ("settings", "is nearest"): "parameter_budget=null Wanted number of active adapter parameters.",
}


@pytest.mark.parametrize(("name", "word"), FOUND)
def test_a_list_has_what_a_word_is_in(name: str, word: str) -> None:
    text = LISTS[name]([conf_dir()], word)
    assert FOUND[name, word] in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_never_empty_and_has_every_file(name: str) -> None:
    with pytest.raises(UserError, match="has 'xyzzy' in its name or"):
        LISTS[name]([conf_dir()], "xyzzy")
    if name != "settings":
        group = conf_dir() / name.removesuffix("s")
        names = {file.relative_to(group).with_suffix("").as_posix() for file in group.rglob("*.yaml")} - {"none"}
        assert {line.split()[0] for line in LISTS[name]([conf_dir()], "").splitlines() if line[0] != " "} == names


def test_the_doctor_lists_the_tasks_of_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("# Mine: a task of my own.\nname: mine\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["flexlora-doctor", "tasks", "own", "--config-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        doctor.main()
    assert end.value.code == 0
    assert "\nmine  " in (out := capsys.readouterr().out)
    assert out.endswith(" Mine: a task of my own.\n")
