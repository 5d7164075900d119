"""Small models, data and loops that the training tests share. Nothing here calls what a test's reference must not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from flexlora import FlexLoraConfig

TARGETS = ["one", "two", "three", "four"]


class Net(nn.Module):
    """Four linears in a row, and a trainable scale outside the adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(10, 12)
        self.two = nn.Linear(12, 11, bias=False)
        self.three = nn.Linear(11, 9)
        self.four = nn.Linear(9, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.one, self.two, self.three):
            x = torch.tanh(layer(x))
        return self.four(x)


def make_net(seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def adapt(model: nn.Module, seed: int = 1, **settings: Any) -> Any:
    """`get_peft_model` with a schedule of many events; vectors drawn from `seed`."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "r": 3,
        "max_rank": 6,
        "lora_alpha": 6,
        "total_step": 50,
        "deltaT": 5,
        "init_b": 2,
        "budget_schedule": "constant",
        "init_std": 0.3,
        "target_modules": TARGETS,
    }
    return get_peft_model(model, FlexLoraConfig(**(config | settings)))


def regression_batches(steps: int, size: int = 8, seed: int = 7, dtype: torch.dtype = torch.float64) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 10, generator=generator, dtype=dtype),
            torch.randn(size, 7, generator=generator, dtype=dtype),
        )
        for _ in range(steps)
    ]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list,
    after: Callable[[int], None] | None = None,
) -> list[float]:
    losses = []
    for step, (x, y) in enumerate(batches, start=1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if after is not None:
            after(step)
    return losses


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adapted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(short name, layer) of every adapted linear, found by its own attributes."""
    for name, module in model.named_modules():
        if hasattr(module, "flexlora_P") and "default" in module.flexlora_P:
            yield name.removeprefix("module.").removeprefix("base_model.model."), module


def masks(model: nn.Module) -> dict[str, list[int]]:
    """Occupied slots of every adapted linear."""
    return {name: layer.flexlora_active["default"].nonzero().flatten().tolist() for name, layer in adapted(model)}


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of P, λ, Q and the mask of every adapted linear, at full capacity."""
    found = {}
    for name, layer in adapted(model):
        for part in ("P", "lambda", "Q", "active"):
            found[f"{name}.{part}"] = getattr(layer, f"flexlora_{part}")["default"].detach().clone()
    return found


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        other = right[key]
        if tolerance == 0.0 or value.dtype == torch.bool:
            assert torch.equal(value, other), key
        else:
            torch.testing.assert_close(
                value, other, rtol=0.0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
            )


def penalty(model: nn.Module, power: int = 1) -> torch.Tensor:
    """R(P, Q) written out for autograd: the mean of the Gram errors of the active directions."""
    terms = []
    for _, layer in adapted(model):
        slots = layer.flexlora_active["default"].nonzero().flatten()
        p, q = layer.flexlora_P["default"][:, slots], layer.flexlora_Q["default"][slots]
        eye = torch.eye(len(slots), dtype=p.dtype)
        terms += [torch.linalg.matrix_norm(p.T @ p - eye) ** power, torch.linalg.matrix_norm(q @ q.T - eye) ** power]
    return torch.stack(terms).mean()


def tiny_bert(seed: int = 0, dtype: torch.dtype = torch.float64, labels: int = 3) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=labels,
    )
    return BertForSequenceClassification(config).to(dtype)


def adapt_bert(model: nn.Module, seed: int = 1, **settings: Any) -> Any:
    defaults = {"target_modules": ["query", "value", "intermediate.dense"], "modules_to_save": ["classifier"]}
    return adapt(model, seed, **(defaults | settings))


def text_batches(steps: int, size: int = 8, seed: int = 5, labels: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(1, 40, (size, 8), generator=generator),
            "attention_mask": torch.ones(size, 8, dtype=torch.long),
            "labels": torch.randint(0, labels, (size,), generator=generator),
        }
        for _ in range(steps)
    ]


def train_bert(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list) -> list[float]:
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def moves(events: list) -> list[tuple]:
    """What an event decided, without its floating-point measurements."""
    return [(event.step, event.budget, event.pruned, event.grown, event.ranks) for event in events]


def twin(model: nn.Module) -> Any:
    return copy.deepcopy(model)
