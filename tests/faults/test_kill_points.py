"""A run that is killed at any point resumes and ends with the results of a run that was never interrupted."""

import random
import signal

import pytest
from marks import slow_but

from flexlora.results.record import read_record
from flexlora.testing import kill_and_resume
from flexlora.testing.kill_and_resume import Kill, Start, Trainings


@pytest.fixture(scope="module")
def trainings(cola, tiny_bert, tmp_path_factory):
    return Trainings(tmp_path_factory.mktemp("killed"), tiny_bert, cola)


# The pairs of `make test`; the slow set has the others.
KILLS = {
    ("half a checkpoint's file", "SIGKILL"),
    ("after a rank event", "SIGKILL"),
    ("in an evaluation", "two SIGINTs"),
}


@pytest.mark.parametrize(
    ("place", "action"),
    slow_but(
        KILLS,
        [
            (place, action)
            for place in (
                "half a checkpoint's file",
                "half a line",
                "after a rank event",
                "after a step",
                "in an evaluation",
            )
            for action in ("SIGKILL", "two SIGINTs")
        ],
    ),
)
def test_a_killed_run_resumes_and_ends_with_equal_results(trainings, place, action):
    method, name = "flexlora", f"{place}-{action}".replace(" ", "-").replace("'", "")
    times = trainings.unbroken(method)[1].counts[place]
    start = trainings.start(method, name, Kill(place, times * 2 // 3, action))
    assert start.code == (-signal.SIGKILL if action == "SIGKILL" else 130), start.stderr
    record = trainings.folder(method, name) / "result.json"
    if action == "SIGKILL":
        assert not record.exists()
    else:
        assert "Traceback" not in start.stderr
        assert read_record(record).status == "interrupted"
    again = trainings.start(method, name, Kill())
    assert again.code == 0, again.stderr
    assert again.found.startswith("resumed after step")
    assert trainings.differences(method, name) == []


@pytest.mark.parametrize(
    "method",
    slow_but(
        {"adalora", "lora_dash"},
        [
            "full",
            "adalora",  # masks and smoothed scores
            "flexlora_released",
            "sora",  # a proximal step
            "lora_dash",  # directions chosen during training
            "lori",  # a mask made during training
            "dynamic_dora",  # ranks by norms
            "mlae",  # random experts
            "pissa",  # changes the backbone at the start by its weights
            "e2_lori",  # a sharing plan from gradients, and a mask made during training
            "gora",  # ranks from gradients, and B started along them
            "lora_ga",  # changes the backbone at the start by gradients
            "lora_fa",  # an optimizer of PEFT's
            "prec_lora",
        ],
    ),
)
def test_every_kind_of_method_state_is_resumed(trainings, method):
    kill = Kill("after a step", 19)  # between a checkpoint at 16, or 14, and the next at 21
    assert trainings.start(method, method, kill).code == -signal.SIGKILL
    again = trainings.start(method, method, Kill())
    assert (again.code, again.found) == (0, "resumed after step 16"), again.stderr
    assert trainings.differences(method, method) == []


@pytest.mark.slow
def test_random_kills(trainings, capsys):
    code = kill_and_resume.kill_and_resume(trainings, kill_and_resume.METHODS, 12, random.Random(1), keep=True)
    output = capsys.readouterr().out
    assert code == 0, output
    assert "12 kills in " in output


def test_a_training_that_ends_differently_is_reported(trainings, monkeypatch, capsys):
    monkeypatch.setattr(trainings, "differences", lambda method, name: ["metrics.jsonl"])
    killed = Start(-signal.SIGKILL, "step 3", {}, "", "", 1.0)
    starts = iter([killed, Start(0, "", {}, "", "", 1.0)])
    monkeypatch.setattr(trainings, "start", lambda *_: next(starts))
    monkeypatch.setattr(trainings, "unbroken", lambda method: (trainings.root, killed))
    assert kill_and_resume.kill_and_resume(trainings, ["flexlora"], 1, random.Random(2), keep=True) == 1
    assert "flexlora run0000: metrics.jsonl differs" in capsys.readouterr().out
