"""An interrupted run continues only with the files it began with, and says so where the machine or the code differs."""

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from fault_helpers import strike
from runner_helpers import one_line

from flexlora.errors import UserError
from flexlora.results.record import read_record
from flexlora.tasks.rows import Rows
from flexlora.testing.commands import COMMAND, run_command
from flexlora.training.inputs import refuse_other

STOP = partial(strike, "flexlora.training.loop:Loop._step", [signal.SIGTERM], 3)


@pytest.fixture(scope="module")
def stopped(arguments, cola, tiny_bert, tmp_path_factory) -> tuple[Callable, Path, Path]:
    """The command, the folder of its run, which was stopped after step 3, and a folder with all that it read."""
    root = tmp_path_factory.mktemp("stopped")
    inputs = root / "inputs"
    shutil.copytree(tiny_bert, inputs / "bert")
    shutil.copytree(cola, inputs / "glue")
    rest = [item for item in arguments if not item.startswith(("training.epochs", "model.path", "task.data_dir"))]
    own = [f"model.path={inputs / 'bert'}", f"task.data_dir={inputs / 'glue'}", "training.max_steps=6", "method=lora"]
    run = partial(run_command, COMMAND, *rest, *own, f"output_root={root / 'out'}")
    assert run(fault=STOP).returncode == 143
    (record,) = (root / "out").rglob("result.json")
    return run, record.parent, inputs


# One of the weights, one of the configuration, one of the tokenizer, one of the data; more files are read the same way.
@pytest.mark.parametrize(
    "name", ["bert/model.safetensors", "bert/config.json", "bert/tokenizer.json", "glue/CoLA/dev.tsv"]
)
def test_another_file_is_refused_and_the_right_one_continues(stopped, name):
    run, folder, inputs = stopped
    file = inputs / name
    before = file.read_bytes()
    after = bytearray(before)
    if name.endswith(".safetensors"):
        after[-3] ^= 1
    else:
        after += b" \n" if name.endswith(".json") else b"made\t1\t\tthe dog helps the cat .\n"
    file.write_bytes(after)
    result = run()
    file.write_bytes(before)
    assert result.returncode == 2
    what = "model" if name.startswith("bert") else "data"
    assert one_line(result) == (
        f"the {what} is not what it was when the run was stopped ({file.name} differs): begin a new one with "
        "variant=NAME"
    )
    assert read_record(folder / "result.json").status == "failed"


def two_threads() -> None:
    torch.set_num_threads(2)


def test_a_run_keeps_its_sessions_and_says_in_one_line_how_the_new_one_differs(stopped):
    """The last test on this folder: the run is finished then."""
    run, folder, inputs = stopped
    again = run(fault=two_threads)
    assert again.returncode == 0, again.stderr
    lines = [line for line in again.stdout.splitlines() if "continues with" in line]
    assert lines == ["the run continues with torch_threads 1 → 2: its results may differ in the last digits"]
    record = read_record(folder / "result.json")
    assert [session["first_step"] for session in record.sessions] == [0, 3]
    assert [session["hardware"]["torch_threads"] for session in record.sessions] == [1, 2]
    assert all({"versions", "git", "started"} < session.keys() for session in record.sessions)
    assert record.resumed_at == [3]

    # Its record vouches for every file of the folder but these, and knows every file that it read.
    others = {"result.json", "log.txt", ".lock", "adapter/README.md"}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert present - others == record.files.keys()
    read = {group: {Path(path) for path in files} for group, files in record.inputs.items()}
    assert read["data"] == {inputs / "glue" / "CoLA" / name for name in ("train.tsv", "dev.tsv")}
    assert read["model"] == {
        path for path in (inputs / "bert").iterdir() if path.suffix in (".json", ".safetensors", ".txt")
    }
    assert record.backbone["sha256"].keys() == {path.name for path in read["model"]}
    assert "is finished: skipped" in run().stdout


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        ({"config": "a"}, {"config": "b"}, "the configuration is not"),
        ({"data": {"path": "a", "sha256": {}}}, {"data": {"path": "b", "sha256": {}}}, "the data is not"),
        ({"model": {"a": "1"}}, {"model": {"a": "1", "b": "2"}}, r"the model .* \(b differs\)"),
        (
            {"data": {"sha256": None, "content": {"train": "1"}}},
            {"data": {"sha256": None, "content": {"train": "2"}}},
            r"the data .* \(train differs\)",
        ),
        ({"adapter": {"a": "1"}}, {}, "the adapter is not"),
        ({}, {"model revision": "a"}, "the model revision is not"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(before, now, line):
    refuse_other(before, before)
    with pytest.raises(UserError, match=line):
        refuse_other(before, now)


def test_rows_from_the_hub_are_known_by_their_content():
    """A revision may be a branch, or none: the rows can change behind it."""
    rows = Rows((["a", "b"], ["c", "d"]), [0, 1])
    others = [Rows((["a", "b"], ["c", "d"]), [1, 0]), Rows((["ab", ""], ["c", "d"]), [0, 1])]
    assert rows.content() == Rows((["a", "b"], ["c", "d"]), [0, 1]).content()
    assert rows.content() not in {other.content() for other in others}
