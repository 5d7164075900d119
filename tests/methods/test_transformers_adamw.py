"""The optimizer of the released code against transformers 4.4.2's formulas, number by number in float64."""

import copy
import math

import pytest
import torch
from torch import nn

from flexlora.methods.transformers_adamw import TransformersAdamW

LR, BETA1, BETA2, EPS, DECAY = 0.01, 0.9, 0.999, 1e-3, 0.1


def by_hand(start: float, gradients: list[float | None], decay: float) -> list[float]:
    """The parameter after every step, from the formulas. None: the parameter had no gradient in that step."""
    value, m, v, t, seen = start, 0.0, 0.0, 0, []
    for g in gradients:
        if g is not None:
            t += 1
            m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
            value -= LR * math.sqrt(1 - BETA2**t) / (1 - BETA1**t) * m / (math.sqrt(v) + EPS)
            value -= LR * decay * value
        seen.append(value)
    return seen


def made(values: list[float], decay: float = DECAY) -> tuple[list[nn.Parameter], TransformersAdamW]:
    parameters = [nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in values]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.0}]
    return parameters, TransformersAdamW(groups, lr=LR, eps=EPS, weight_decay=decay)


def give(parameters: list[nn.Parameter], gradients: list[float | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor([gradient], dtype=torch.float64)


STEPS = [(2.0, 1e-4, None), (-1.0, 3e-4, 0.5), (0.5, -1e-4, None), (0.1, 2e-5, -0.2)]


def test_every_step_follows_the_formulas_with_a_step_count_for_each_parameter():
    parameters, optimizer = made([1.0, -2.0, 3.0])
    seen = []
    for gradients in STEPS:
        give(parameters, list(gradients))
        optimizer.step()
        seen.append([float(parameter.detach()) for parameter in parameters])
    for i, (start, decay) in enumerate([(1.0, DECAY), (-2.0, 0.0), (3.0, 0.0)]):
        assert [row[i] for row in seen] == pytest.approx(by_hand(start, [g[i] for g in STEPS], decay), abs=1e-13)
    assert [int(optimizer.state[parameter]["step"]) for parameter in parameters] == [4, 4, 2]


def test_the_first_step_on_a_tiny_gradient_is_smaller_than_torchs():
    """At the first step eps is √1000 = 32 times as large here. A gradient of 1e-7 shows it at eps = 1e-8."""
    steps = {}
    for kind in (TransformersAdamW, torch.optim.AdamW):
        parameter = nn.Parameter(torch.zeros(1))
        optimizer = kind([{"params": [parameter]}], lr=LR, weight_decay=0.0)
        parameter.grad = torch.full((1,), 1e-7)
        optimizer.step()
        steps[kind] = -float(parameter.detach()) / LR
    assert steps[TransformersAdamW] == pytest.approx(1 / (1 + 0.1 * math.sqrt(1000)), rel=1e-4)
    assert steps[torch.optim.AdamW] == pytest.approx(1 / 1.1, rel=1e-4)


def test_a_large_gradient_makes_no_difference():
    ends = []
    for kind in (TransformersAdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(50, dtype=torch.float64))
        optimizer = kind([{"params": [parameter]}], lr=LR, weight_decay=0.0)
        for _ in range(20):
            parameter.grad = torch.randn(50, dtype=torch.float64) + 3.0
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_a_closure_computes_the_gradients_inside_the_step():
    parameters, optimizer = made([1.0, -2.0])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(parameter.square().sum() for parameter in parameters)
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == pytest.approx(5.0)
    assert float(parameters[0].detach()) == pytest.approx(by_hand(1.0, [2.0], DECAY)[0])


def test_a_saved_state_continues_bit_for_bit():
    parameters, optimizer = made([1.0, -2.0, 3.0])
    for gradients in STEPS[:2]:
        give(parameters, list(gradients))
        optimizer.step()
    others, other = made([float(parameter.detach()) for parameter in parameters])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gradients in STEPS[2:]:
        for trained, by in ((parameters, optimizer), (others, other)):
            give(trained, list(gradients))
            by.step()
    assert [float(p.detach()) for p in parameters] == [float(p.detach()) for p in others]
