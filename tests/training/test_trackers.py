"""Trackers by setting: what metrics.jsonl holds reaches them, and one that is not there is refused at once."""

import importlib.util
import json

import pytest
from runner_helpers import one_line

from flexlora.training.trackers import scalars


def test_rows_are_named_by_their_kind_and_hold_numbers_only():
    row = {"kind": "eval", "step": 8, "f1": 0.5, "eval_loss": {"validation": 0.25}, "ranks": {"max": 9}, "note": "x"}
    assert scalars(row) == {"eval/f1": 0.5, "eval/eval_loss/validation": 0.25, "eval/ranks/max": 9}


def test_tensorboard_gets_every_row(flexlora_run, arguments, tiny_bert, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = flexlora_run(*arguments, "method=flexlora", f"output_root={tmp_path}", "trackers=[tensorboard]")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "local" / "glue" / "cola" / tiny_bert.name / "flexlora" / "test" / "seed0"
    events = EventAccumulator(str(folder / "tensorboard" / "flexlora"))
    events.Reload()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for kind, tag, key in [("train", "train/loss", "loss"), ("eval", "eval/train_loss", "train_loss")]:
        written = {row["step"]: row[key] for row in rows if row["kind"] == kind}
        tracked = {event.step: event.value for event in events.Scalars(tag)}
        assert tracked == pytest.approx(written), tag


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[tensorbord]", "trackers: there is no 'tensorbord'. Did you mean tensorboard? There are: "),
        ("[trackio]", "trackers: trackio is not installed: pip install trackio, or leave it out"),
    ],
)
def test_a_tracker_that_cannot_track_is_refused(flexlora_run, arguments, tmp_path, names, message):
    if names == "[trackio]" and importlib.util.find_spec("trackio"):
        pytest.skip("trackio is installed here")
    result = flexlora_run(*arguments, "method=lora", f"output_root={tmp_path}", f"trackers={names}")
    assert result.returncode == 2
    assert one_line(result).startswith(message)
    assert list(tmp_path.iterdir()) == []
