"""A checkpoint or a record whose fields are forged is refused in one line, or used: never a traceback.

Its checksums are right, as those of a file that another program wrote. tests/faults/test_fuzz_files.py damages bytes.
"""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_helpers import Regression, loop
from report_helpers import write_run

from flexlora.doctor.tree_check import check_tree
from flexlora.errors import UserError
from flexlora.methods import Method
from flexlora.methods.transplant import final_ranks
from flexlora.results.folder import RunFolder, config_hash
from flexlora.training.checkpoint import Checkpoints, restore
from flexlora.training.dry_run import DryRun
from flexlora.training.job import fitting
from flexlora.training.journal import Journal

STEPS = 4
FORGED = [None, -1, 10**400, float("nan"), "x", [], {}, [None], torch.zeros(2), "absent"]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field, those that hold others too; of a long list the first."""
    if path:
        yield path
    if isinstance(value, dict):
        items = list(value.items())
    else:
        items = list(enumerate(value))[:1] if isinstance(value, list | tuple) else []
    for key, item in items:
        yield from leaves(item, (*path, key))


def forged(values: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at `path`."""
    if not path:
        return new
    key, *rest = path
    inner = forged(values[key], tuple(rest), new)
    if isinstance(values, dict):
        changed = {**values, key: inner}
        return {
            name: value
            for name, value in changed.items()
            if not (name == key and isinstance(inner, str) and inner == "absent")
        }
    changed = list(values)
    changed[key] = inner
    return type(values)(changed)


def training(journal: Journal, checkpoints: Checkpoints | None = None):
    files = {"journal": journal, "checkpoints": checkpoints}
    return loop(Regression(8, [0.5] * 9), Method(), STEPS, files=files, eval_every=2, log_every=1, checkpoint_every=1)


def test_a_forged_field_of_a_checkpoint_is_one_line_or_harmless(tmp_path):
    with Journal(tmp_path) as journal:
        training(journal, Checkpoints(tmp_path)).run()
    whole = Checkpoints(tmp_path).load()
    assert whole is not None
    tensors, state = whole
    written = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "ranks.jsonl")}
    paths = [path for path in leaves(state) if path[0] != "identity"]  # compared as a whole
    assert len(paths) > 40
    refused = 0
    for number, path in enumerate(paths):
        for new in FORGED[number % 3 :: 3]:
            for name, content in written.items():
                (tmp_path / name).write_bytes(content)
            saved = (tensors, forged(copy.deepcopy(state), path, new))
            try:
                with fitting(tmp_path):
                    journal = Journal(tmp_path, saved[1]["files"])
                    resumed = training(journal)
                    restore(resumed, saved)
            except UserError:  # its message is one line by itself
                refused += 1
                continue
            resumed.run()
            journal.close()
            assert resumed.outcome.steps == STEPS, (path, new)
    assert refused > len(paths)


def answer(call: Any, *arguments: Any) -> None:
    """Call a reader, which may refuse: the message of a UserError is one line by itself."""
    with contextlib.suppress(UserError):
        call(*arguments)


@pytest.mark.parametrize("status", ["done", "interrupted"])
def test_a_forged_field_of_a_record_is_one_line_or_harmless(tmp_path, status):
    config = {"task": {"name": "t"}, "seed": 0}
    events = {"count": 1, "first_step": 1, "last_step": 1, "final_ranks": {"a": 3}, "alarms": []}
    path = write_run(tmp_path, 0.5, config=config, config_hash=config_hash(config), rank_events=events)
    file: Path = path / "result.json"
    values = json.loads(file.read_text())
    values |= {"status": status, "error": None if status == "done" else "why"}
    values["files"] = {"a": {"bytes": 1, "ctime_ns": 1, "sha256": "x"}}
    values["inputs"] = {"data": {str(tmp_path / "a"): {"bytes": 1, "ctime_ns": 1, "sha256": "x"}}}
    (tmp_path / "a").write_text("a")
    new = [value for value in FORGED if not isinstance(value, torch.Tensor)]
    for number, place in enumerate(leaves(values)):
        for value in new[number % 3 :: 3]:
            file.write_text(json.dumps(forged(values, place, value)))
            answer(RunFolder(path, config).is_finished)
            answer(RunFolder(path, config | {"seed": 1}).is_finished)
            answer(DryRun().look, path, config)
            answer(DryRun().look, path.parent / "seed9", config)
            answer(final_ranks, str(path))
            assert str(check_tree(tmp_path))
