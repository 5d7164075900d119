"""Each low-rank baseline equals its equation, written out by directions in float64, and takes its special steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from linear_helpers import IN, OUT, RANK, SCALE, Tensors, held, outer, single
from low_rank_helpers import METHODS
from transformers.pytorch_utils import Conv1D


def through(t: Tensors, core: str) -> torch.Tensor:
    """s Σ_ij core_ij b_i a_jᵀ."""
    pairs = itertools.product(range(RANK), range(RANK))
    return SCALE * sum(t[core][i, j] * torch.outer(t["B"][:, i], t["A"][j]) for i, j in pairs)


def decomposed(t: Tensors) -> torch.Tensor:
    """DoRA: each row of W + ΔW gets the norm m; the norm that it had has no gradient."""
    moved = t["W"] + outer(t["B"], t["A"], [SCALE] * RANK)
    rows = [m * row / row.detach().square().sum().sqrt() for m, row in zip(t["magnitude"], moved, strict=True)]
    return torch.stack(rows) - t["W"]


EQUATIONS: dict[str, Callable[[Tensors], torch.Tensor]] = {
    "moslora": lambda t: through(t, "M"),
    "flora": lambda t: through(t, "G"),
    "liera": lambda t: t["W"] * outer(t["B"], t["A"], [SCALE] * RANK),
    "mlae": lambda t: outer(t["B"], t["A"], list(t["lambda"])),
    "sora": lambda t: outer(t["B"], t["A"], [SCALE * g for g in t["gate"]]),
    "milora": lambda t: outer(t["B"], t["A"], [SCALE] * RANK) - outer(t["B0"], t["A0"], [SCALE] * RANK),
    "lora_dash": lambda t: outer(t["B"], t["A"], [SCALE] * RANK) + outer(t["U"], t["V"], list(t["delta"])),
    "nora_plus": lambda t: outer(t["B"], t["A"], [SCALE] * RANK),
    "sharelora": lambda t: outer(t["B"], t["A"], [SCALE] * RANK),
    "rasa": lambda t: outer(t["B"], t["A"], list(t["d"][:2])) + outer(t["shared_B"], t["shared_A"], list(t["d"][2:])),
    "ralora": lambda t: outer(t["B"], t["A"], [SCALE] * RANK),  # in one block; several are in test_low_rank_methods
    "lori": lambda t: outer(t["mask"].double() * t["B"], t["A"], [SCALE] * RANK),
    "dynamic_dora": lambda t: outer(t["B"], t["A"], [SCALE * c for c in t["c"]]),
    "e2lora": lambda t: outer(t["B"], t["A"], [SCALE] * RANK),
    "e2_sharelora": lambda t: outer(t["B"], t["A"], [SCALE] * RANK),
    "e2_dora": lambda t: decomposed(t),
    "e2_vera": lambda t: t["b"].unsqueeze(1) * outer(t["B"], t["A"], list(t["d"])),
    "e2_lori": lambda t: outer(t["mask"].double() * t["B"], t["A"], [SCALE] * RANK),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_output_delta_weight_and_gradients_follow_the_equation(method, kind):
    linear = Conv1D(OUT, IN).double() if kind == "conv1d" else None
    model, layer = single(method, linear)
    tensors = held(layer)
    if kind == "conv1d":
        tensors["W"] = tensors["W"].T
    if method == "lora_dash":
        layer.launch("default")
    if method in ("lori", "e2_lori"):
        layer.lora_mask["default"][::2] = False
    model.eval()
    x = torch.randn(4, IN, dtype=torch.float64)
    target = torch.randn(4, OUT, dtype=torch.float64)
    delta = EQUATIONS[method](tensors)
    stored = layer.get_delta_weight("default")
    torch.testing.assert_close(stored.T if kind == "conv1d" else stored, delta, rtol=1e-12, atol=1e-12)

    expected = x @ (tensors["W"] + delta).T + layer.base_layer.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    ours = torch.autograd.grad(((model(x) - target) ** 2).sum(), trained)
    theirs = torch.autograd.grad(((expected - target) ** 2).sum(), trained)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_dropout_acts_on_the_adapters_input_only(method):
    model, layer = single(method, lora_dropout=0.99, **({"expert_dropout": 0.0} if method == "mlae" else {}))
    x = torch.ones(64, IN, dtype=torch.float64)
    model.train()
    dropped = model(x)
    plain = layer.base_layer(x)
    if method == "milora":  # what was taken from W is not dropped
        plain = plain - x @ outer(held(layer)["B0"], held(layer)["A0"], [SCALE] * RANK).T
    assert ((dropped - plain).abs().sum(1) < 1e-12).double().mean() > 0.5
    assert not torch.equal(dropped, model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


# --- LieRA: merging ----------


def test_liera_unmerges_exactly_even_if_merging_gave_zeros():
    _, layer = single("liera")
    with torch.no_grad():
        layer.lora_A["default"].zero_()
        layer.lora_A["default"][0] = 1.0
        layer.lora_B["default"].zero_()
        layer.lora_B["default"][0, 0] = -1 / SCALE  # the first row of W becomes 0
    before = layer.base_layer.weight.detach().clone()
    layer.merge()
    assert not layer.base_layer.weight[0].any()
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, before)
