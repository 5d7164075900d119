"""The masked tuner equals a dense tuner of variable shape, whose optimizer rows are sliced and appended.

The reference holds tensors of the true current rank and shares nothing with the tuner but the starting vectors and the
vectors of newborn directions, which are random draws. Entropy, budget, decisions, the penalty's gradient, sensitivities
and the surgery on the optimizer's state are written here anew; the update rules are torch's own.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from training_helpers import TARGETS, adapt, adapted, make_net, regression_batches

from flexlora import attach

STEPS, WARMUP, FINAL, PERIOD = 50, 2, 4, 4


class Dense:
    """ΔW = s · P diag(λ) Q of one linear at its true rank; `slots` says where the tuner keeps each direction."""

    def __init__(self, layer: nn.Module, scale: float) -> None:
        self.base, self.scale = layer.base_layer, scale
        self.slots = layer.flexlora_active["default"].nonzero().flatten().tolist()
        p, values, q = (getattr(layer, f"flexlora_{part}")["default"].detach() for part in ("P", "lambda", "Q"))
        self.tensors = [
            nn.Parameter(p[:, self.slots].clone()),
            nn.Parameter(values[self.slots].clone()),
            nn.Parameter(q[self.slots].clone()),
        ]
        self.average = [torch.zeros_like(tensor) for tensor in self.tensors]
        self.uncertainty = [torch.zeros_like(tensor) for tensor in self.tensors]

    @property
    def rank(self) -> int:
        return len(self.slots)

    @property
    def values(self) -> list[float]:
        return self.tensors[1].tolist()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        p, values, q = self.tensors
        weight = self.base.weight + self.scale * p @ torch.diag(values) @ q
        return nn.functional.linear(x, weight, self.base.bias)

    def penalty_terms(self, power: int) -> list[torch.Tensor]:
        p, _, q = self.tensors
        eye = torch.eye(self.rank, dtype=p.dtype)
        return [((p.T @ p - eye) ** 2).sum() ** (power / 2), ((q @ q.T - eye) ** 2).sum() ** (power / 2)]

    # AdaLoRA's sensitivity, Eq. 8 to 11, in the order of its text.
    def watch(self, gradients: list[torch.Tensor], beta1: float, beta2: float) -> None:
        for i, gradient in enumerate(gradients):
            now = (self.tensors[i].detach() * gradient).abs()
            self.average[i] = beta1 * self.average[i] + (1 - beta1) * now
            self.uncertainty[i] = beta2 * self.uncertainty[i] + (1 - beta2) * (now - self.average[i]).abs()

    def sensitivities(self) -> list[float]:
        p, values, q = (a * u for a, u in zip(self.average, self.uncertainty, strict=True))
        return [p[:, i].mean().item() + values[i].item() + q[i].mean().item() for i in range(self.rank)]

    def entropy(self) -> float:
        total = sum(value**2 for value in self.values)
        shares = [value**2 / total for value in self.values]
        return -sum(s * math.log(s + 1e-8) for s in shares) / math.log(self.rank)


class DenseTuner:
    """The dense reference of the whole method."""

    def __init__(self, model: Any, optimizer: Any, **settings: Any) -> None:
        config = model.peft_config["default"]
        self.config, self.power, self.weight = config, settings["power"], settings["weight"]
        self.layers = {name: Dense(layer, config.lora_alpha / config.r) for name, layer in adapted(model)}
        self.limits = {"one": 6, "two": 6, "three": 6, "four": 6}
        self.optimizer = optimizer([t for layer in self.layers.values() for t in layer.tensors])
        self.newborn_second_moment = settings["growth_state"] == "surviving_second_moment"
        self.sensitive = settings["importance"] == "sensitivity"
        self.scores: list[dict[str, float]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in TARGETS[:3]:
            x = torch.tanh(self.layers[name](x))
        return self.layers["four"](x)

    def step(self, number: int, x: torch.Tensor, y: torch.Tensor, tuner: nn.Module) -> float:
        self.optimizer.zero_grad()
        loss = ((self.forward(x) - y) ** 2).mean()
        loss.backward()
        if self.sensitive:
            for layer in self.layers.values():
                layer.watch([tensor.grad for tensor in layer.tensors], 0.85, 0.85)
        terms = [term for layer in self.layers.values() for term in layer.penalty_terms(self.power)]
        (self.weight * sum(terms) / len(terms)).backward()
        self.optimizer.step()
        return loss.item()

    def event(self, number: int, tuner: nn.Module) -> tuple[list[str], list[str]] | None:
        if number not in range(WARMUP + 1, STEPS - FINAL) or (number - WARMUP) % PERIOD:
            return None
        progress = (number - WARMUP) / (STEPS - FINAL - WARMUP)
        budget = math.floor(2 * (1 - progress**3) + 0.5)
        scores = {}
        for name, layer in self.layers.items():
            if self.sensitive:
                found = layer.sensitivities()
                scores[name] = sum(found) / len(found)
            elif any(value != 0 for value in layer.values):
                scores[name] = layer.entropy() if layer.rank > 1 else math.inf
        self.scores.append({name: min(score, 1e308) for name, score in scores.items()})  # the record caps infinity
        ordered = sorted(scores, key=lambda name: (scores[name], TARGETS.index(name)))
        for k in range(budget, -1, -1):
            pruned = [name for name in ordered if self.layers[name].rank > 1][:k]
            grown = [name for name in reversed(ordered) if self.layers[name].rank < self.limits[name]][:k]
            if len(pruned) == len(grown) == k and not set(pruned) & set(grown):
                break
        for name in pruned:
            self.prune(self.layers[name])
        modules = dict(adapted(tuner))
        for name in grown:
            self.grow(self.layers[name], modules[name])
        return pruned, grown

    def prune(self, layer: Dense) -> None:
        keys = layer.sensitivities() if self.sensitive else [abs(value) for value in layer.values]
        kept = [i for i in range(layer.rank) if i != keys.index(min(keys))]
        layer.slots = [layer.slots[i] for i in kept]
        self.reshape(layer, lambda tensor, dim: tensor.index_select(dim, torch.tensor(kept)))

    def grow(self, layer: Dense, module: nn.Module) -> None:
        slots = module.flexlora_active["default"].nonzero().flatten().tolist()
        (slot,) = set(slots) - set(layer.slots)
        layer.slots.append(slot)
        p, q = module.flexlora_P["default"].detach()[:, slot], module.flexlora_Q["default"].detach()[slot]
        newborn = [p.unsqueeze(1), torch.zeros(1, dtype=p.dtype), q.unsqueeze(0)]
        self.reshape(layer, lambda tensor, dim: torch.cat([tensor, torch.zeros_like(tensor.narrow(dim, 0, 1))], dim))
        for i, dim in enumerate((1, 0, 0)):
            tensor, state = layer.tensors[i], self.optimizer.state[layer.tensors[i]]
            last = tensor.shape[dim] - 1
            with torch.no_grad():
                tensor.narrow(dim, last, 1).copy_(newborn[i])
            for name in ("exp_avg_sq", "max_exp_avg_sq") if self.newborn_second_moment else ():
                if name in state:
                    survivors = state[name].narrow(dim, 0, last)
                    state[name].narrow(dim, last, 1).copy_(survivors.mean(dim, keepdim=True))

    def reshape(self, layer: Dense, change: Any) -> None:
        """Replace each tensor, its sensitivities and its optimizer state by their changed copies."""
        for i, dim in enumerate((1, 0, 0)):
            old = layer.tensors[i]
            new = layer.tensors[i] = nn.Parameter(change(old.detach(), dim).clone())
            layer.average[i] = change(layer.average[i], dim)
            layer.uncertainty[i] = change(layer.uncertainty[i], dim)
            parameters = self.optimizer.param_groups[0]["params"]
            parameters[next(j for j, parameter in enumerate(parameters) if parameter is old)] = new
            state = self.optimizer.state.pop(old, {})
            self.optimizer.state[new] = {
                name: change(value, dim).clone() if torch.is_tensor(value) and value.dim() else value
                for name, value in state.items()
            }


DEFAULTS = {"growth_state": "zeros", "importance": "entropy", "orth_reg_power": 1, "orth_reg_weight": 0.1}
OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1, "foreach": False}, {}),
    "adamw-foreach": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}, {"foreach": True}),
    "adamw-fused": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}, {"fused": True}),
    "amsgrad": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True}, {"foreach": True}),
    "sgd-momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, {}),
    "sgd-nesterov-fused": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"fused": True}),
    "rmsprop-centered": (torch.optim.RMSprop, {"lr": 0.005, "momentum": 0.5, "centered": True}, {}),
}
CASES = [
    *[pytest.param(name, {}, id=name) for name in OPTIMIZERS],
    pytest.param("adamw", {"growth_state": "surviving_second_moment"}, id="adamw-second-moment"),
    pytest.param("amsgrad", {"growth_state": "surviving_second_moment"}, id="amsgrad-second-moment"),
    pytest.param("adamw", {"orth_reg_power": 2, "orth_reg_weight": 0.5}, id="adamw-squared-penalty"),
    pytest.param("adamw", {"importance": "sensitivity"}, id="adamw-sensitivity"),
    pytest.param("rmsprop-centered", {"importance": "sensitivity"}, id="rmsprop-sensitivity"),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_equals_a_dense_tuner_of_variable_shape(name: str, settings: dict[str, Any]) -> None:
    """1e-10 over 50 steps: parameters, losses and optimizer state, through events that reuse slots."""
    settings = {
        "growth_state": "zeros",
        "importance": "entropy",
        "orth_reg_power": 1,
        "orth_reg_weight": 0.1,
    } | settings
    model = adapt(
        make_net(), total_step=STEPS, tinit=WARMUP, tfinal=FINAL, deltaT=PERIOD, budget_schedule="cubic", **settings
    )
    cls, common, flags = OPTIMIZERS[name]
    optimizer = cls([p for p in model.parameters() if p.requires_grad], **common, **flags)
    dense = DenseTuner(
        model,
        lambda tensors: cls(tensors, **(common | {"foreach": False})),
        power=settings["orth_reg_power"],
        weight=settings["orth_reg_weight"],
        growth_state=settings["growth_state"],
        importance=settings["importance"],
    )
    attachment = attach(model, optimizer)
    expected, pruned_slots, reused = [], {name: set() for name in TARGETS}, 0
    for number, (x, y) in enumerate(regression_batches(STEPS), start=1):
        before = {key: set(layer.slots) for key, layer in dense.layers.items()}
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        for key, layer in adapted(model):
            assert_masked_gradients_are_zero(key, layer)
        optimizer.step()
        assert dense.step(number, x, y, model) == pytest.approx(loss.item(), rel=0, abs=1e-10)
        if (moved := dense.event(number, model)) is not None:
            expected.append((number, *moved))
        assert_equal_to(model, optimizer, dense)
        for key, layer in dense.layers.items():
            reused += len((set(layer.slots) - before[key]) & pruned_slots[key])
            pruned_slots[key] |= before[key] - set(layer.slots)

    assert [(event.step, event.pruned, event.grown) for event in attachment.events] == expected
    for event, scores in zip(attachment.events, dense.scores, strict=True):
        assert {name: score for name, score in event.scores.items() if score is not None} == pytest.approx(scores)
    assert len([event for event in expected if event[1]]) >= 8
    assert reused >= 4, "the case must reuse slots after pruning, else it proves less than it says"
    assert any(layer.slots != list(range(layer.rank)) for layer in dense.layers.values())


def assert_masked_gradients_are_zero(name: str, layer: nn.Module) -> None:
    spare = ~layer.flexlora_active["default"]
    assert not layer.flexlora_P["default"].grad[:, spare].any(), name
    assert not layer.flexlora_lambda["default"].grad[spare].any(), name
    assert not layer.flexlora_Q["default"].grad[spare].any(), name


def assert_equal_to(model: nn.Module, optimizer: torch.optim.Optimizer, dense: DenseTuner) -> None:
    for name, layer in adapted(model):
        reference = dense.layers[name]
        active = layer.flexlora_active["default"]
        assert sorted(reference.slots) == active.nonzero().flatten().tolist(), name
        for i, (part, dim) in enumerate((("P", 1), ("lambda", 0), ("Q", 0))):
            parameter = getattr(layer, f"flexlora_{part}")["default"]
            index, spare = torch.tensor(reference.slots), (~active).nonzero().flatten()
            assert not parameter.index_select(dim, spare).any(), f"{name}.{part}: an inactive slot holds something"
            close(parameter.detach().index_select(dim, index), reference.tensors[i].detach(), f"{name}.{part}")
            state, other = optimizer.state[parameter], dense.optimizer.state[reference.tensors[i]]
            assert state.keys() == other.keys()
            for key, value in state.items():
                if value is None:
                    continue
                if value.dim():
                    assert not value.index_select(dim, spare).any(), f"{name}.{part}: {key} of an inactive slot"
                    value = value.index_select(dim, index)
                close(value, torch.as_tensor(other[key]), f"{name}.{part}: {key}")


def close(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    error = (found - expected).abs().max().item()
    assert error <= 1e-10, f"{what} differs by {error:.1e}"
