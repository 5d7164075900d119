"""FlexLoRA as released, against a small simulation of the released trainer's loop and its optimizer bookkeeping."""

import dataclasses
import itertools
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from method_helpers import context, make_loop, settings_of, tiny, wrapped
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from flexlora import FlexLoraConfig
from flexlora.errors import UserError
from flexlora.methods import build_method
from flexlora.methods.flexlora_released import BEHAVIOURS
from flexlora.methods.transformers_adamw import TransformersAdamW
from flexlora.settings import LrScheduler
from flexlora.training.checkpoint import Checkpoints
from flexlora.training.loop import Loop
from flexlora.training.schedule import warmup_and_decay

STEPS = 12
EVENTS = (4, 6, 8)  # tinit 2, tfinal 3, deltaT 2
RATE, DECAY, WARMUP = 0.01, 0.1, 0.25
RUN = [
    "method.tinit=2", "method.tfinal=3", "method.deltaT=2", f"training.weight_decay={DECAY}",
    f"training.warmup_ratio={WARMUP}", f"training.learning_rate={RATE}", "training.max_grad_norm=null",
]  # fmt: skip


def released(*overrides: str) -> tuple[Loop, nn.Module]:
    """A run of `flexlora_released`, ready to start."""
    settings = settings_of("flexlora_released", *RUN, *overrides)
    method = build_method(settings.method, context("bert", STEPS))
    model = method.wrap(tiny("bert"))
    return make_loop(method, model, settings, STEPS), model


def trace(loop: Loop, events: tuple[int, ...] = EVENTS) -> list[SimpleNamespace]:
    """Record the optimizer's groups and state before each of its steps, in a training with these events."""
    seen = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        counts = {int(state["step"]) for state in optimizer.state.values()}
        seen.append(
            SimpleNamespace(
                rates=[group["lr"] for group in optimizer.param_groups],
                decays=[group["weight_decay"] for group in optimizer.param_groups],
                steps_counted=counts or {0},
                state=len(optimizer.state),
            )
        )

    loop.optimizer.register_step_pre_hook(look)
    assert loop.run().status == "done"
    assert tuple(event["step"] for event in loop.outcome.events) == events
    return seen


def simulated() -> list[SimpleNamespace]:
    """The released trainer's bookkeeping on one weight and one bias: NLU/src/transformers/trainer.py at 2c63d06.

    Every step: optimizer.step(), lr_scheduler.step(), then at an event `optimizer = type(optimizer)(parameters,
    **optimizer.defaults)` and lr_scheduler.step() once more. The schedule was made for the first optimizer.
    """
    weight, bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    defaults = {"lr": RATE, "weight_decay": 0.0}  # of the class; the real decay is given in the group only
    groups = [{"params": [weight], "weight_decay": DECAY}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, **defaults)
    schedule = LambdaLR(optimizer, warmup_and_decay(STEPS, math.ceil(WARMUP * STEPS), LrScheduler.linear))
    seen = []
    for step in range(1, STEPS + 1):
        of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        seen.append(
            SimpleNamespace(
                rates=[of[id(p)]["lr"] for p in (weight, bias)],
                decays=[of[id(p)]["weight_decay"] for p in (weight, bias)],
                steps_counted={int(optimizer.state[p]["step"]) if p in optimizer.state else 0 for p in (weight, bias)},
                state=len(optimizer.state),
            )
        )
        weight.grad, bias.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        schedule.step()
        if step in EVENTS:
            optimizer = type(optimizer)([weight, bias], **defaults)
            schedule.step()
    return seen


def test_rates_decays_and_moments_equal_the_released_loops():
    loop, _ = released()
    ours, theirs = trace(loop), simulated()
    assert len(ours) == len(theirs) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        # Adapter's factors and weights decay, biases do not; λ is a group of its own.
        assert {round(rate, 12) for rate in mine.rates} == {round(rate, 12) for rate in other.rates}
        assert set(mine.decays) == set(other.decays)
        assert mine.steps_counted == other.steps_counted
        assert (mine.state == 0) == (other.state == 0)


def test_the_learning_rate_before_and_after_the_first_event():
    loop, _ = released()
    rates = [seen.rates[0] for seen in trace(loop)]
    # Three steps of warmup, one of decay; from the step after event 4 on the peak.
    assert rates == pytest.approx([0.0, RATE / 3, 2 * RATE / 3, RATE, *[RATE] * 8])
    loop, _ = released("method.rate_to_peak=false", "method.schedule_twice=false")
    rates = [seen.rates[0] for seen in trace(loop)]
    assert rates == pytest.approx([0.0, RATE / 3, 2 * RATE / 3, *[RATE * (12 - step) / 9 for step in range(3, 12)]])


def test_the_schedule_steps_twice_at_an_event():
    """Without the rebuilt optimizer the effect is visible: torch's scheduler takes one more step after each event."""
    loop, _ = released("method.rate_to_peak=false")
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=RATE)
    schedule = LambdaLR(optimizer, warmup_and_decay(STEPS, math.ceil(WARMUP * STEPS), LrScheduler.linear))
    expected = []
    for step in range(1, STEPS + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for _ in range(2 if step in EVENTS else 1):
            schedule.step()
    assert [seen.rates[0] for seen in trace(loop)] == pytest.approx(expected)
    assert expected[-2:] == [0.0, 0.0]


def test_moments_are_empty_after_an_event_and_kept_without_the_setting():
    loop, _ = released()
    assert [seen.state == 0 for seen in trace(loop)] == [step in (1, 5, 7, 9) for step in range(1, STEPS + 1)]
    loop, _ = released("method.reset_moments=false")
    assert [max(seen.steps_counted) for seen in trace(loop)] == list(range(STEPS))


def test_weight_decay_spares_biases_and_ends_with_the_first_event():
    loop, model = released()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [([names[id(p)] for p in g["params"]], g["weight_decay"]) for g in loop.optimizer.param_groups]
    assert sorted(decay for _, decay in groups) == [0.0, DECAY, DECAY]
    for members, decay in groups:
        assert {"bias" in name for name in members} == {decay == 0.0}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(itertools.chain.from_iterable(members for members, _ in groups)) == sorted(trained)
    decays = [max(seen.decays) for seen in trace(loop)]
    assert decays == [DECAY] * 4 + [0.0] * 8
    loop, _ = released("method.drop_weight_decay=false")
    assert [max(seen.decays) for seen in trace(loop)] == [DECAY] * STEPS


def test_without_its_behaviours_the_optimizer_is_flexloras():
    """With the same rank rules and steps, only the four settings differ."""
    off = [f"method.{name}=false" for name in BEHAVIOURS]
    rules = {
        key: value
        for key, value in settings_of("flexlora_released", *RUN).method.fields.items()
        if key not in BEHAVIOURS and key in settings_of("flexlora").method.fields
    }
    ends = []
    for name, overrides in (
        ("flexlora_released", off),
        ("flexlora", [f"method.{key}={'null' if value is None else value}" for key, value in rules.items()]),
    ):
        settings = settings_of(name, *RUN, *overrides, "training.weight_decay=0.0")
        method = build_method(settings.method.with_fields(max_rank=16), context("bert", STEPS))
        model = method.wrap(tiny("bert"))
        loop = make_loop(method, model, settings, STEPS)
        loop.run()
        ends.append((dict(model.named_parameters()), loop.outcome.events))
    assert all(torch.equal(p, ends[1][0][name]) for name, p in ends[0][0].items())
    assert ends[0][1] == ends[1][1]


def test_the_optimizer_is_that_of_transformers_and_torchs_without_the_setting():
    assert type(released()[0].optimizer) is TransformersAdamW
    assert type(released("method.eps_before_correction=false")[0].optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("behaviour", ["true", "false"])
def test_no_event_where_the_budget_is_zero(behaviour):
    """The released code then changes neither ranks nor the optimizer: its moments, decay and rate go on."""
    zero = ("method.budget_schedule=cubic_early", "method.init_b=2", f"method.eps_before_correction={behaviour}")
    loop, _ = released(*zero)
    seen = trace(loop, events=(4,))  # at 6 and 8, b(t) rounds to 0
    assert [max(one.steps_counted) for one in seen] == [0, 1, 2, 3, *range(8)]
    loop, _ = released(*zero, "method.rate_to_peak=false")
    factor = warmup_and_decay(STEPS, math.ceil(WARMUP * STEPS), LrScheduler.linear)
    rates = [RATE * factor(step + (step > 3)) for step in range(STEPS)]  # one event, so one more step
    assert [one.rates[0] for one in trace(loop, events=(4,))] == pytest.approx(rates)


def test_flexlora_itself_keeps_moments_decay_and_schedule():
    settings = settings_of("flexlora", *RUN)
    method = build_method(settings.method, context("bert", STEPS))
    model = method.wrap(tiny("bert"))
    seen = trace(make_loop(method, model, settings, STEPS))
    factor = warmup_and_decay(STEPS, math.ceil(WARMUP * STEPS), LrScheduler.linear)
    assert [s.rates[0] for s in seen] == pytest.approx([RATE * factor(step) for step in range(STEPS)])
    assert [max(s.steps_counted) for s in seen] == list(range(STEPS))
    assert [set(s.decays) for s in seen] == [{DECAY}] * STEPS
    assert not set(BEHAVIOURS) & set(settings.method.fields)


def test_the_tuner_has_the_settings_of_the_released_code():
    method, _ = wrapped("flexlora_released", "bert")
    expected = {
        "prune_by": "signed", "all_zero": "grow", "rank_one": "grow", "selection": "overlapping", "growth_std": 1.0,
        "budget_schedule": "constant", "orth_reg_weight": 0.0, "importance": "entropy", "direction": "both",
        "init_b": 4, "growth_init": "zero_impact",
    }  # fmt: skip
    config = dataclasses.asdict(method.config)
    assert {key: config[key] for key in expected} == expected


def test_there_is_no_rank_limit_by_default():
    """The released code has no limit. A module gains at most one direction per event."""

    def build(*values: str) -> FlexLoraConfig:
        return build_method(settings_of("flexlora_released", *values).method, context("bert", 1000)).config

    many = build("method.r=4", "method.tinit=0", "method.tfinal=0", "method.deltaT=10")
    assert len(many.event_steps()) == 99
    assert many.max_rank == 104 == 8 * math.ceil((4 + 99) / 8)
    assert build("method.max_rank=12").max_rank == 12


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_behaviour_is_true_or_false(name):
    settings = settings_of("flexlora_released").method.with_fields(**{name: "maybe"})
    with pytest.raises(UserError, match=f"method.{name}: 'maybe' is not bool"):
        build_method(settings, context("bert"))


@pytest.mark.parametrize("behaviour", ["method.rate_to_peak=true", "method.rate_to_peak=false"])
def test_a_run_resumed_after_events_keeps_their_effects(behaviour, tmp_path):
    """This includes the learning rate, which no later event would correct."""
    ends = []
    for resumed in (False, True):
        settings = settings_of("flexlora_released", *RUN, behaviour, "training.eval_every=10")
        method = build_method(settings.method, context("bert", STEPS))
        model = method.wrap(tiny("bert"))
        loop = make_loop(method, model, settings, STEPS, checkpoints=Checkpoints(tmp_path))
        if resumed:
            for folder in sorted((tmp_path / "checkpoints").iterdir())[1:]:
                shutil.rmtree(folder)
            loaded = Checkpoints(tmp_path).load()
            assert loaded is not None
            loop.load_state_dict(*loaded)
            assert loop.outcome.steps == 10
        assert loop.run().status == "done"
        ends.append((dict(model.named_parameters()), loop.scheduler.get_last_lr()))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(parameter, ends[1][0][name]) for name, parameter in ends[0][0].items())
