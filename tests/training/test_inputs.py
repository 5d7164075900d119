"""A folder that a run would read is refused at once where it is missing, and only where that is certain."""

import shutil
from pathlib import Path

import pytest
from compose_helpers import settings_of_run
from runner_helpers import one_line

from flexlora.errors import UserError
from flexlora.models.saved_files import check_saved_model
from flexlora.training.inputs import refuse_missing_inputs

LOCAL = ["model=local", "model.path={bert}"]
MISSING = {
    "data": (["task.data_dir=nowhere"], "task.data_dir: there is no folder nowhere"),
    "data of images": (["task=vtab/kitti", "task.data_dir=nowhere"], "task.data_dir: there is no folder nowhere"),
    "another task's data": (
        ["task=glue/mrpc", "task.data_dir={cola}"],
        "task.data_dir: neither {cola}/MRPC nor {cola} has",
    ),
    "images of another task": (["task=vtab/kitti", "task.data_dir={cola}"], "task.data_dir: neither {cola}/kitti nor "),
    "a model": (["model=local", "model.path=nowhere"], "model.path: there is no folder nowhere"),
    "a model by its whole path": (["model.path=/nowhere/at/all"], "model.path: there is no folder /nowhere/at/all"),
    "an adapter": (["adapter=nowhere"], "adapter: there is no folder nowhere"),
    "a run to take ranks from": (
        ["method.ranks_from=nowhere"],
        "method.ranks_from: nowhere/result.json is not",
    ),
}
PRESENT = {
    "folders": [*LOCAL, "task.data_dir={cola}", "adapter={bert}"],
    "a hub's model": ["model.path=nobody/nothing"],
    "data that is generated": ["scale=tiny", "task.data_dir=nowhere"],
    "a kind of model from elsewhere": ["model=local", "model.kind=my.kind", "model.path=nowhere"],
}


@pytest.fixture(scope="module")
def places(cola: Path, tiny_bert: Path) -> dict[str, Path]:
    return {"cola": cola, "bert": tiny_bert}


def refuse(overrides: list[str], places: dict[str, Path]) -> None:
    spelled = [override.format(**places) for override in overrides]
    refuse_missing_inputs(settings_of_run("task=glue/cola", "method=flexlora", "training.learning_rate=1e-3", *spelled))


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_folder_is_refused(case, places):
    overrides, message = MISSING[case]
    with pytest.raises(UserError) as error:
        refuse(overrides, places)
    assert str(error.value).startswith(message.format(**places))


@pytest.mark.parametrize("case", PRESENT)
def test_what_may_be_there_is_not_refused(case, places):
    refuse(PRESENT[case], places)


DAMAGE = {
    "no config": ("config.json", None, "has no config.json: it is not a saved model"),
    "half a config": ("config.json", lambda whole: whole[: len(whole) // 2], "is damaged: "),
    "half of the weights": (
        "model.safetensors",
        lambda whole: whole[: len(whole) // 2],
        " by its header: copy it again",
    ),
    "no header": ("model.safetensors", lambda whole: b"x" * 100, "model.safetensors has no valid header"),
    "a header of another kind": ("model.safetensors", lambda whole: b"\x02" + b"\0" * 7 + b"[]", "no valid header"),
    "empty weights": ("model.safetensors", lambda whole: b"", "no valid header"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_model_is_refused_before_torch_is_imported(case, tiny_bert, tmp_path):
    name, damaged, message = DAMAGE[case]
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    check_saved_model(str(folder))
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if damaged is not None:
        (folder / name).write_bytes(damaged(whole))
    with pytest.raises(UserError) as error:
        check_saved_model(str(folder))
    assert message in str(error.value)


def imported(stderr: str) -> set[str]:
    """The modules that a command with `PYTHONPROFILEIMPORTTIME` imported."""
    return {line.rpartition("|")[2].strip() for line in stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    ("command_line", "code"),
    [
        (["task=glue/cola", "method=lora", "task.data_dir=nowhere", "output_root={here}"], 2),
        (["task=glue/cola", "method=lora", "output_root=/proc/none"], 2),
        (["--help"], 0),
    ],
    ids=["a missing folder", "a folder that cannot be written", "help"],
)
def test_the_command_answers_before_torch_is_imported(flexlora_run, tmp_path, command_line, code):
    """In a process of its own, because this one has imported torch."""
    words = [word.format(here=tmp_path) for word in command_line]
    result = flexlora_run(*words, PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == code
    modules = imported(result.stderr)
    assert "flexlora.cli.run" in modules
    assert not modules & {"torch", "transformers", "accelerate", "datasets", "pandas", "peft"}


def test_a_sweep_names_every_missing_input_before_its_first_run_and_before_torch_is_imported(
    flexlora_run, arguments, tmp_path
):
    """In a process of its own, because this one has imported torch."""
    swept = [word for word in arguments if not word.startswith("task=")]
    words = ["-m", *swept, "task=glue/cola,glue/rte,glue/mrpc", "seed=0,1", "method=linear", f"output_root={tmp_path}"]
    result = flexlora_run(*words, PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == 2
    assert not list(tmp_path.rglob("result.json"))
    assert "torch" not in imported(result.stderr)
    rte, mrpc, last = [line for line in result.stderr.splitlines() if line.startswith("flexlora-run: ")]
    assert "/RTE nor " in rte
    assert rte.endswith("(2 of 6 runs: task=glue/rte)")
    assert mrpc.endswith("(2 of 6 runs: task=glue/mrpc)")
    assert last == "flexlora-run: no run was started, because 4 of 6 could not read their data or model"


def test_a_run_that_is_finished_is_skipped_before_torch_is_imported(flexlora_run, arguments, tmp_path):
    run = [*arguments, "method=linear", "training.max_steps=2", f"output_root={tmp_path}"]
    assert flexlora_run(*run).returncode == 0
    again = flexlora_run(*run, PYTHONPROFILEIMPORTTIME="1")
    assert "is finished: skipped" in again.stdout
    assert "torch" not in imported(again.stderr)


def test_a_missing_folder_is_recorded_as_a_failed_run(flexlora_run, arguments, tmp_path):
    result = flexlora_run(*arguments, "method=linear", "task.data_dir=nowhere", f"output_root={tmp_path}")
    assert one_line(result) == "task.data_dir: there is no folder nowhere"
    (record,) = tmp_path.rglob("result.json")
    assert '"error": "task.data_dir: there is no folder nowhere"' in record.read_text(encoding="utf-8")
