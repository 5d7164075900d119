"""Steps that a gradient scaler skips (fp16) are counted, and a training in which nothing else happens is not `done`."""

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from loop_helpers import Regression, Sgd, loop
from torch import nn

from flexlora.results.record import RunRecord
from flexlora.training.outcome import SKIPS, Outcome
from flexlora.training.summary import fill_in


class NotFinite(Regression):
    """The loss is finite, and its gradient is not, in the forward passes whose number is in `bad`."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__(8, [0.5] * 99)
        self.bad, self.passes = bad, 0

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        if torch.is_grad_enabled():
            self.passes += 1
            if self.passes in self.bad:
                loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss


def scaled(task: Regression, steps: int):
    """Train with the loss scaler of fp16, which works on the CPU too."""
    model = nn.Linear(3, 1)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    training = loop(task, Sgd(), steps, model, eval_every=0, log_every=1)
    scaler = training.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    training.stepper = AcceleratedOptimizer(training.optimizer, device_placement=False, scaler=scaler)
    training.accelerator._optimizers = [training.stepper]
    outcome = training.run()
    moved = any(not torch.equal(a, b) for a, b in zip(model.parameters(), start, strict=True))
    return outcome, moved


def test_skipped_steps_are_counted_in_the_record():
    outcome, moved = scaled(NotFinite({2, 3, 5}), 6)
    assert (outcome.status, outcome.steps, outcome.skipped_steps, moved) == ("done", 6, 3, True)
    words = dict.fromkeys(("scale", "task", "model", "method", "variant", "config_hash", "started"), "")
    others = {"seed": 0, "data_seed": 0, "config": {}, "versions": {}, "git": {}}
    record = RunRecord(status="failed", error="not yet", **words, **others)
    fill_in(record, outcome)
    assert record.skipped_steps == 3


def test_a_training_whose_steps_are_all_skipped_diverged():
    outcome, moved = scaled(NotFinite(set(range(1, 99))), 6)
    assert (outcome.status, outcome.skipped_steps, moved) == ("diverged", 6, False)
    assert outcome.error.startswith("the gradients are not finite: the last 6 steps were skipped: lower training.learn")


def test_a_training_that_stops_moving_diverged():
    outcome, moved = scaled(NotFinite(set(range(4, 99))), 60)
    assert (outcome.status, outcome.steps, moved) == ("diverged", 3 + SKIPS, True)


@pytest.mark.parametrize("name", ["skipped_steps", "skipped_in_a_row"])
def test_the_counts_survive_a_checkpoint(name):
    first, second = Outcome(), Outcome()
    for skipped in (True, False, True, True):
        first.count_step(skipped)
    second.take(first.kept())
    assert getattr(second, name) == getattr(first, name) == {"skipped_steps": 3, "skipped_in_a_row": 2}[name]
