"""The time in which a process is stopped is no time of training."""

import os
import signal
import time

import pytest
import torch

from flexlora.training import stopped_time
from flexlora.training.clock import TrainingClock
from flexlora.training.outcome import Outcome
from flexlora.training.stopped_time import KEPT_LOOKS, StoppedTime, stopped


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(stopped_time.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize("order", ["the thread first", "the signal first"])
def test_a_gap_before_a_continuation_is_a_stop(monkeypatch, order):
    clock = Clock(monkeypatch)
    time_stopped = StoppedTime()
    clock.now = 100.0
    if order == "the thread first":
        time_stopped.look()
        clock.now += 0.1
    time_stopped.continued()
    assert time_stopped.seconds == 100.0
    clock.now += 0.1
    time_stopped.continued()  # without a stop
    assert time_stopped.seconds == 100.0


def test_a_busy_machine_is_no_stop(monkeypatch):
    clock = Clock(monkeypatch)
    time_stopped = StoppedTime()
    clock.now = 5.0
    time_stopped.look()
    assert time_stopped.seconds == 0
    for _ in range(KEPT_LOOKS + 1):
        clock.now += 0.1
        time_stopped.look()
    time_stopped.continued()
    assert time_stopped.seconds == 0


def test_the_training_clock_stands_still_in_a_stop(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(stopped, "seconds", 0.0)
    outcome = Outcome()
    training = TrainingClock(outcome, torch.device("cpu"))
    clock.now += 7.0
    monkeypatch.setattr(stopped, "seconds", 5.0)
    training.pause()
    assert outcome.train_seconds == 2.0


def test_a_real_stop(tmp_path):
    """In a process of its own, which the test stops: no other way shows that the signals arrive."""
    said = tmp_path / "said"
    process = os.fork()
    if process == 0:
        watched = StoppedTime()
        with watched.watched():
            said.touch()
            while watched.seconds == 0:
                time.sleep(0.01)
            said.write_text(str(watched.seconds))
        os._exit(0)
    while not said.exists():
        time.sleep(0.01)
    began = time.perf_counter()
    os.kill(process, signal.SIGSTOP)
    time.sleep(0.5)
    stopped_for = time.perf_counter() - began
    os.kill(process, signal.SIGCONT)
    assert os.waitpid(process, 0)[1] == 0
    assert 0.3 < float(said.read_text()) < stopped_for + 5
