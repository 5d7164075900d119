"""Small models and adapters that the tuner tests share."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from flexlora import FlexLoraConfig
from flexlora.tuner import FlexLoraLayer, RankAllocator

SHAPES = {"q": (5, 6), "k": (7, 5), "v": (6, 7), "o": (6, 6)}  # (out, in), chained


class Chain(nn.Module):
    """Linears of different shapes in a row, named as attention's are, and a head that is not adapted."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        for name, (out, width) in SHAPES.items():
            setattr(self, name, nn.Linear(width, out, bias=bias))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in SHAPES:
            x = torch.tanh(getattr(self, name)(x)) if name != "o" else getattr(self, name)(x)
        return self.head(x)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(x)


class Nested(nn.Module):
    """Two linears of which one name is a suffix of the other: "q" and "block.q"."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(6, 6)
        self.block = Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(torch.tanh(self.q(x)))


def fixed(**settings: Any) -> FlexLoraConfig:
    """A configuration whose ranks never move."""
    return FlexLoraConfig(**({"target_modules": list(SHAPES), "r": 2, "max_rank": 5, "init_b": 0} | settings))


def moving(**settings: Any) -> FlexLoraConfig:
    """A configuration with an event after every step from 1 to 98."""
    defaults = {
        "target_modules": list(SHAPES),
        "r": 2,
        "max_rank": 5,
        "init_b": 2,
        "total_step": 100,
        "tinit": 0,
        "tfinal": 1,
        "deltaT": 1,
    }
    return FlexLoraConfig(**(defaults | settings))


def wrapped(config: FlexLoraConfig | None = None, base: nn.Module | None = None, seed: int = 0):
    """A PeftModel over a seeded base."""
    torch.manual_seed(seed)
    return get_peft_model(base if base is not None else Chain(), config if config is not None else fixed())


def adapters(model: nn.Module, adapter: str = "default") -> list[FlexLoraLayer]:
    return [m for m in model.modules() if isinstance(m, FlexLoraLayer) and adapter in m.flexlora_P]


@torch.no_grad()
def set_mask(layer: FlexLoraLayer, mask: list[bool], adapter: str = "default") -> None:
    """Give a layer this mask; inactive slots are zero, active ones that were not get vectors."""
    active = torch.tensor(mask)
    p, values, q = layer.factors(adapter)
    assert active.numel() == values.numel()
    p.copy_(torch.randn(p.shape, dtype=p.dtype) * active)
    q.copy_(torch.randn(q.shape, dtype=q.dtype) * active[:, None])
    values.copy_(torch.randn(values.shape, dtype=values.dtype) * active)
    layer.flexlora_active[adapter].copy_(active)


@torch.no_grad()
def scramble(model: nn.Module, seed: int = 0, adapter: str = "default", full: bool = False, scale: float = 1.0) -> None:
    """Random non-contiguous masks (at least one direction each) and random values, as after many events."""
    generator = torch.Generator().manual_seed(seed)
    for layer in adapters(model, adapter):
        p, values, q = layer.factors(adapter)
        active = torch.rand(values.shape, generator=generator) < 0.5
        active[-1] = True  # the last slot: never contiguous from 0, unless all are
        if full:
            active[:] = True
        p.copy_(torch.randn(p.shape, generator=generator) * active)
        q.copy_(torch.randn(q.shape, generator=generator) * active[:, None])
        values.copy_(scale * torch.randn(values.shape, generator=generator) * active)
        layer.flexlora_active[adapter].copy_(active)


def single(
    out: int,
    width: int,
    mask: list[bool],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    base: nn.Module | None = None,
    **settings: Any,
) -> tuple[FlexLoraLayer, FlexLoraConfig]:
    """One adapted linear with the given mask and random directions; capacity is len(mask)."""
    torch.manual_seed(seed)
    config = fixed(**({"r": len(mask), "max_rank": len(mask)} | settings))
    base = base if base is not None else nn.Linear(width, out, dtype=dtype)
    layer = FlexLoraLayer(base, "default", config=config, r=len(mask), lora_alpha=config.lora_alpha)
    set_mask(layer, mask)
    return layer, config


def bank(spectra: list[list[float]], limit: int = 8, **settings: Any) -> tuple[nn.Module, RankAllocator]:
    """A model of one module a spectrum, each with those λ in its first slots, and its allocator."""
    count = len(spectra)
    base = nn.ModuleDict({f"m{i:02d}": nn.Linear(limit, limit) for i in range(count)})
    config = moving(
        target_modules=[f"m{i:02d}" for i in range(count)],
        r=limit,
        max_rank=limit,
        **settings,
    )
    torch.manual_seed(0)
    model = get_peft_model(base, config)
    for layer, spectrum in zip(adapters(model), spectra, strict=True):
        set_spectrum(layer, spectrum)
    return model, RankAllocator(model, config, "default")


@torch.no_grad()
def set_spectrum(layer: FlexLoraLayer, spectrum: list[float]) -> None:
    values = layer.flexlora_lambda["default"]
    active = torch.zeros(values.numel(), dtype=torch.bool)
    active[: len(spectrum)] = True
    set_mask(layer, active.tolist())
    values[: len(spectrum)] = torch.tensor(spectrum, dtype=values.dtype)


def delta(layer: FlexLoraLayer, adapter: str = "default") -> torch.Tensor:
    """ΔW (out × in) in float64 by a loop over the active directions: independent of the code under test."""
    total = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    p, values, q = (t.detach().double() for t in layer.factors(adapter))
    for slot, active in enumerate(layer.flexlora_active[adapter].tolist()):
        if active:
            total += layer.scaling[adapter] * float(values[slot]) * torch.outer(p[:, slot], q[slot])
    return total
