"""The loop on a model of one linear: gradients, learning rates, evaluations and hooks, against arithmetic by hand."""

import math
from pathlib import Path

import pytest
import torch
from loop_helpers import Regression, Sgd, loop
from torch import nn

from flexlora.settings import LrScheduler
from flexlora.training.batching import epoch_batches
from flexlora.training.checkpoint import Checkpoints
from flexlora.training.journal import Journal
from flexlora.training.schedule import warmup_and_decay


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_takes_the_gradient_of_the_mean_over_all_its_examples(accumulation):
    """Eleven examples in batches of 4 and 3: averaging the batches' means instead would weigh examples unequally."""
    task, method = Regression(11, [0.0]), Sgd()
    model = nn.Linear(3, 1)
    reference = nn.Linear(3, 1)
    reference.load_state_dict(model.state_dict())
    loop(task, method, 1, model, gradient_accumulation=accumulation, eval_every=1).run()
    batches = epoch_batches(task.train.lengths, 4, seed=0, epoch=0)[:accumulation]
    task.loss(reference, task.collate([task.train.examples[i] for batch in batches for i in batch])).backward()
    for trained, start in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(trained, start - 0.1 * start.grad)


def test_the_learning_rate_rises_and_falls_once_a_step():
    method = Sgd()
    loop(Regression(12, [0.0] * 9), method, 10, gradient_accumulation=2, warmup_ratio=0.2).run()
    expected = [0.0, 0.05, 0.1, *(0.1 * (10 - step) / 8 for step in range(3, 10))]
    assert method.rates == pytest.approx(expected)


def test_half_a_cosine_after_a_warmup_in_steps():
    method = Sgd()
    task = Regression(12, [0.0] * 9)
    loop(task, method, 10, gradient_accumulation=2, warmup_steps=2, lr_scheduler=LrScheduler.cosine).run()
    expected = [0.0, 0.05, *(0.1 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 8)) for step in range(2, 10))]
    assert method.rates == pytest.approx(expected)


def test_a_cosine_ends_at_the_lowest_rate():
    method = Sgd()
    settings = {"warmup_steps": 0, "lr_scheduler": LrScheduler.cosine, "min_lr_rate": 0.1}
    loop(Regression(12, [0.0] * 9), method, 10, gradient_accumulation=2, **settings).run()
    expected = [0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert method.rates == pytest.approx(expected)
    assert warmup_and_decay(10, 0, LrScheduler.cosine, 0.1)(10) == pytest.approx(0.1)
    assert warmup_and_decay(10, 2, LrScheduler.linear, 0.1)(6) == pytest.approx(0.55)


def test_a_logged_loss_is_the_mean_of_the_steps_since_the_last_line():
    each, every_second = (
        dict(loop(Regression(12, [0.0] * 9), Sgd(), 6, log_every=log_every).run().losses) for log_every in (1, 2)
    )
    assert list(each) == [1, 2, 3, 4, 5, 6]
    assert list(every_second) == [2, 4, 6]
    for step, loss in every_second.items():
        assert loss == pytest.approx((each[step - 1] + each[step]) / 2, rel=1e-5)


def test_evaluations_at_the_end_only():
    task = Regression(12, [0.5])
    outcome = loop(task, Sgd(), 7, eval_every=0).run()
    assert [result["step"] for result in outcome.history] == [7]
    assert outcome.last["doubled"] == 1.0


def test_each_epoch_sees_examples_of_its_own():
    """Augmentation: a function of the seed of the data's order, the epoch and the example."""
    task, asked = Regression(8, [0.0] * 3), []
    task.train_examples = lambda seed, epoch: asked.append((seed, epoch)) or task.train.examples
    loop(task, Sgd(), 6).run()
    assert [epoch for seed, epoch in dict.fromkeys(asked)] == [0, 1, 2]


def test_hooks_come_in_order_and_once_a_step():
    method = Sgd()
    loop(Regression(12, [0.0] * 2), method, 3, gradient_accumulation=2, eval_every=2).run()
    steps = [entry for step in range(3) for entry in (("regularise", step), ("after_step", step + 1))]
    assert method.diary == [("attach", 0), *steps, ("finish", 3)]


def test_last_and_best_are_kept_apart():
    outcome = loop(Regression(12, [0.1, 0.7, 0.7, 0.2]), Sgd(), 8, eval_every=2).run()
    assert [row["step"] for row in outcome.history] == [2, 4, 6, 8]
    assert (outcome.best["step"], outcome.best["score"]) == (4, 0.7)
    assert (outcome.last["step"], outcome.last["score"]) == (8, 0.2)


def test_predictions_come_back_in_the_splits_order():
    task = Regression(12, [0.0])
    model = nn.Linear(3, 1)
    loop(task, Sgd(), 1, model).run()
    with torch.no_grad():
        expected = [float(model(example["x"])) for example in task.evaluation[0].examples]
    assert task.predictions[0] == pytest.approx(expected)


def test_the_training_loss_is_the_epochs_mean():
    task = Regression(12, [0.0])
    model = nn.Linear(3, 1)
    outcome = loop(task, Sgd(), 3, model, learning_rate=0.0).run()
    expected = task.loss(model, task.collate(task.train.examples)).item()
    assert outcome.train_loss == pytest.approx(expected, rel=1e-5)


def test_the_first_loss_that_is_not_finite_is_named_however_late_it_is_read():
    task = Regression(12, [])
    batches = epoch_batches(task.train.lengths, 4, seed=0, epoch=0)
    task.train.examples[batches[1][0]]["y"] = torch.tensor(torch.inf)
    outcome = loop(task, Sgd(), 30, log_every=25).run()
    assert outcome.status == "diverged"
    assert "not finite at step 2" in outcome.error
    assert outcome.steps == 3  # the epoch's end, where an evaluation would have been
    assert outcome.last is None


def test_a_last_update_that_breaks_the_model_is_no_finished_run():
    """Its loss was taken before it: only the evaluation shows what it did."""
    outcome = loop(Regression(12, [0.0]), Sgd(), 1, learning_rate=1e38).run()
    assert outcome.status == "diverged"
    assert "the evaluation's loss is not finite after step 1" in outcome.error


def test_a_training_that_is_stopped_is_not_done():
    training = loop(Regression(12, []), Sgd(), 3)
    with pytest.raises(StopIteration):  # no score is left for the evaluation
        training.run()
    assert (training.outcome.status, training.outcome.steps) == ("failed", 3)


def test_flops_of_the_first_step_are_those_of_the_formula():
    """A linear with a LoRA adapter below a frozen one: 2 · rows · in · out for each product there is."""
    from peft import LoraConfig, get_peft_model

    n, wide, r = 11, 7, 2
    base = nn.Sequential(nn.Linear(3, wide), nn.Linear(wide, 1))
    model = get_peft_model(base, LoraConfig(r=r, target_modules=["0"]))
    outcome = loop(Regression(n, [0.0]), Sgd(), 1, model, gradient_accumulation=3, count_flops=True).run()
    forward = 3 * wide + 3 * r + r * wide + wide * 1
    backward = wide * 1 + 2 * r * wide + 3 * r  # to the adapter's output, then B's gradient, into A's output, A's
    assert outcome.flops == 2 * n * (forward + backward)
    assert loop(Regression(n, [0.0]), Sgd(), 1).run().flops is None


def test_the_step_that_is_counted_is_in_no_clock(monkeypatch):
    """By a clock that only a loss moves, a second each; and what is learned is the same."""
    now = [0]
    monkeypatch.setattr("flexlora.training.stopped_time.time.perf_counter", lambda: float(now[0]))

    class Slow(Regression):
        def loss(self, model, batch):
            now[0] += 1
            return super().loss(model, batch)

    trained = {}
    for counted in (False, True):
        model = nn.Linear(3, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        outcome = loop(Slow(12, [0.0]), Sgd(), 5, model, eval_every=0, count_flops=counted).run()
        trained[counted] = (outcome.train_seconds, model.weight.detach())
    assert (trained[False][0], trained[True][0]) == (5, 4)
    assert torch.equal(trained[False][1], trained[True][1])


class Eventful(Sgd):
    """A rank event of a hundred modules after every step."""

    def after_step(self, step, optimizer):
        self.events = [{"step": step, "ranks": {f"layer{number}": step % 8 for number in range(100)}}]

    def rank_events(self):
        return self.events


def test_checkpoints_do_not_grow_with_rank_events_log_lines_and_evaluations(tmp_path, monkeypatch):
    """What checkpoints write over a run with n rank events grows as n: each is as large as the first."""
    written = []
    save = Checkpoints.save

    def counted(self, step, tensors, state):
        save(self, step, tensors, state)
        written.append(sum(file.stat().st_size for file in (self.folder / f"step-{step:09d}").iterdir()))

    monkeypatch.setattr(Checkpoints, "save", counted)
    with Journal(tmp_path) as journal:
        files = {"checkpoints": Checkpoints(tmp_path), "journal": journal}
        task = Regression(12, [0.5] * 60)
        outcome = loop(task, Eventful(), 60, files=files, log_every=1, eval_every=2, checkpoint_every=1).run()
    assert [len(rows) for rows in (outcome.events, outcome.losses, outcome.history)] == [60, 60, 30]
    assert len(written) == 60
    after_two_evaluations = written[4:]
    assert max(after_two_evaluations) - min(after_two_evaluations) < 200  # zip aligns to 64 bytes; one event has 1,300
    assert sum(written) < 60 * 1.05 * written[4]


def test_a_resumed_training_reads_back_what_its_checkpoint_leaves_to_the_files(tmp_path):
    values = {"log_every": 1, "eval_every": 2, "checkpoint_every": 1}
    with Journal(tmp_path) as journal:
        files = {"checkpoints": Checkpoints(tmp_path), "journal": journal}
        whole = loop(Regression(12, [0.1, 0.9, 0.5]), Eventful(), 6, files=files, **values).run()
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None
    assert loaded[1]["outcome"]["steps"] == 6
    assert not {"events", "losses", "history"} & loaded[1]["outcome"].keys()
    with Journal(tmp_path, loaded[1]["files"]) as journal:
        resumed = loop(Regression(12, [0.5]), Eventful(), 6, files={"journal": journal}, **values)
        resumed.load_state_dict(*loaded)
        assert resumed.outcome.history == whole.history[:2]  # the checkpoint is of before the last evaluation
        resumed.run()
    for name in ("events", "losses", "best"):
        assert getattr(resumed.outcome, name) == getattr(whole, name)
    assert [row["score"] for row in resumed.outcome.history] == [0.1, 0.9, 0.5]


def test_the_loop_names_no_method():
    source = Path(__file__).parents[2] / "flexlora" / "training" / "loop.py"
    code = source.read_text().lower().replace("from flexlora.", "").replace('getlogger("flexlora")', "")
    assert not any(name in code for name in ("lora", "peft_type", "isinstance(method"))
