"""Random adapted linears for the tests of one layer."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


masks = st.lists(st.booleans(), min_size=1, max_size=8).filter(any)


open_masks = masks.filter(lambda mask: not all(mask))


seeds = st.integers(0, 2**20)


def inputs(width: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 4, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def active(layer) -> list[bool]:
    return layer.flexlora_active["default"].tolist()


def assert_inactive_is_zero(layer) -> None:
    p, values, q = (t.detach() for t in layer.factors("default"))
    off = ~layer.flexlora_active["default"]
    assert not p[:, off].any()
    assert not values[off].any()
    assert not q[off].any()


def grow(layer, config, step=7, index=3):
    slots = layer.slots("default")
    slot = active(layer).index(False)
    layer.grow("default", slot, slots, config, step, index)
    return slot
