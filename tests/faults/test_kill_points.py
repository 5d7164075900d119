"""A run that dies at any of its moments goes on and ends as if nothing had happened: `scripts/torture.py` takes aim."""

import importlib.util
import random
import signal
from pathlib import Path

import pytest

from flexlora.results.record import read_record

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("torture", ROOT / "scripts" / "torture.py")
torture = importlib.util.module_from_spec(SPEC)


@pytest.fixture(scope="module")
def trainings(cola, tiny_bert, tmp_path_factory):
    import sys

    sys.modules["torture"] = torture  # a forked process imports it by that name
    sys.path.append(str(ROOT / "scripts"))
    SPEC.loader.exec_module(torture)
    return torture.Trainings(tmp_path_factory.mktemp("torture"), tiny_bert, cola)


@pytest.mark.parametrize(
    "place",
    ["half a checkpoint's file", "half a line", "after a rank event", "after a step", "in an evaluation"],
)
@pytest.mark.parametrize(("action", "code"), [("SIGKILL", -signal.SIGKILL), ("two SIGINTs", 130)])
def test_an_aimed_blow_leaves_no_trace(trainings, place, action, code):
    method, name = "flexlora", f"{place}-{action}".replace(" ", "-").replace("'", "")
    times = trainings.unbroken(method)[1].counts[place]
    blow = torture.Blow(place, times * 2 // 3, action)
    struck = trainings.start(method, name, blow)
    assert struck.code == code, struck.stderr
    record = trainings.folder(method, name) / "result.json"
    if action == "SIGKILL":
        assert not record.exists()
    else:
        assert "Traceback" not in struck.stderr
        assert read_record(record).status == "interrupted"
    again = trainings.start(method, name, torture.Blow())
    assert again.code == 0, again.stderr
    assert again.found.startswith("resumed after step")
    assert trainings.differences(method, name) == []


@pytest.mark.parametrize(
    "method",
    [
        "full",
        "adalora",  # masks and smoothed scores
        "flexlora_released",
        "sora",  # a proximal step
        "lora_dash",  # directions chosen on the way
        "lori",  # a mask made on the way
        "dynamic_dora",  # ranks by norms
        "mlae",  # random experts
        "pissa",  # a backbone changed at the start by its weights
        "lora_ga",  # or by gradients
        "lora_fa",  # optimizers of PEFT's
        "prec_lora",
    ],
)
def test_other_kinds_of_state(trainings, method):
    blow = torture.Blow("after a step", 19)  # between a checkpoint at 16, or 14, and the next at 21
    assert trainings.start(method, method, blow).code == -signal.SIGKILL
    again = trainings.start(method, method, torture.Blow())
    assert (again.code, again.found) == (0, "resumed after step 16"), again.stderr
    assert trainings.differences(method, method) == []


@pytest.mark.slow
def test_random_blows(trainings, capsys, tmp_path):
    assert torture.torture(trainings, torture.METHODS, 12, random.Random(1), keep=True) == 0, capsys.readouterr().out
    assert "12 blows in " in capsys.readouterr().out


def test_a_training_that_ends_differently_is_told_of(trainings, monkeypatch, capsys):
    monkeypatch.setattr(trainings, "differences", lambda method, name: ["metrics.jsonl"])
    assert torture.torture(trainings, ["flexlora"], 1, random.Random(2)) == 1
    assert "flexlora run0000: metrics.jsonl differs" in capsys.readouterr().out
