"""A folder that a run would read is refused at once where it is missing, and only where that is certain."""

import pytest
from compose_helpers import settings_of_run
from runner_helpers import one_line

from flexlora.errors import UserError
from flexlora.training.inputs import refuse_missing_inputs

LOCAL = ["model=local", "model.path={here}"]
MISSING = {
    "data": (["task.data_dir=nowhere"], "task.data_dir: there is no folder nowhere"),
    "data of images": (["task=vtab/kitti", "task.data_dir=nowhere"], "task.data_dir: there is no folder nowhere"),
    "a model": (["model=local", "model.path=nowhere"], "model.path: there is no folder nowhere"),
    "a model by its whole path": (["model.path=/nowhere/at/all"], "model.path: there is no folder /nowhere/at/all"),
    "an adapter": (["adapter=nowhere"], "adapter: there is no folder nowhere"),
    "a run to take ranks from": (
        ["method.ranks_from=nowhere"],
        "method.ranks_from: nowhere/result.json is not",
    ),
}
PRESENT = {
    "folders": [*LOCAL, "task.data_dir={here}", "adapter={here}"],
    "a hub's model": ["model.path=nobody/nothing"],
    "data that is generated": ["scale=tiny", "task.data_dir=nowhere"],
    "a kind of model from elsewhere": ["model=local", "model.kind=my.kind", "model.path=nowhere"],
}


def refuse(overrides: list[str], here: object) -> None:
    spelled = [override.format(here=here) for override in overrides]
    refuse_missing_inputs(settings_of_run("task=glue/cola", "method=flexlora", "training.learning_rate=1e-3", *spelled))


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_folder_is_refused(case, tmp_path):
    overrides, message = MISSING[case]
    with pytest.raises(UserError) as error:
        refuse(overrides, tmp_path)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("case", PRESENT)
def test_what_may_be_there_is_not_refused(case, tmp_path):
    refuse(PRESENT[case], tmp_path)


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
