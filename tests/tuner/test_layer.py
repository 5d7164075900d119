"""One adapted linear: outputs, gradients, and the moves of an event. References are loops in float64."""

from __future__ import annotations

import pytest
import torch
from builders import delta, fixed, moving, set_mask, single
from hypothesis import given
from hypothesis import strategies as st
from layer_helpers import active, assert_inactive_is_zero, grow, inputs, masks, seeds, sizes
from torch import nn
from transformers.pytorch_utils import Conv1D

from flexlora.tuner import FlexLoraLayer


@given(sizes, masks, seeds, st.booleans())
def test_output_is_base_plus_delta(size, mask, seed, bias):
    out, width = size
    torch.manual_seed(seed)
    base = nn.Linear(width, out, bias=bias)
    layer, _ = single(out, width, mask, seed, base=base, lora_alpha=12)
    x = inputs(width, seed)
    weight = base.weight.detach().double() + delta(layer)
    expected = x.double() @ weight.T + (base.bias.detach().double() if bias else 0.0)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.get_delta_weight("default").double(), delta(layer), rtol=1e-4, atol=1e-5)


@given(sizes, masks, seeds)
def test_conv1d_in_its_own_orientation(size, mask, seed):
    out, width = size
    torch.manual_seed(seed)
    base = Conv1D(out, width)
    layer, _ = single(out, width, mask, seed, base=base)
    assert layer.fan_in_fan_out
    assert (layer.out_features, layer.in_features) == (out, width)
    x = inputs(width, seed)
    expected = x.double() @ (base.weight.detach().double() + delta(layer).T) + base.bias.detach().double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
    assert layer.get_delta_weight("default").shape == base.weight.shape


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (1, 2, 3, 6), (0, 6), (2, 0, 6)])
def test_any_number_of_leading_dimensions(shape):
    layer, _ = single(5, 6, [True, False, True])
    x = torch.randn(shape)
    got = layer(x)
    assert got.shape == (*shape[:-1], 5)
    expected = (
        x.double() @ (layer.base_layer.weight.detach().double() + delta(layer)).T + layer.base_layer.bias.double()
    )
    torch.testing.assert_close(got.double(), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("vector_init", ["gaussian", "orthonormal"])
def test_the_initial_values_are_as_configured(vector_init):
    torch.manual_seed(0)
    config_layer, config = single(64, 48, [True] * 16, vector_init=vector_init, lora_alpha=4)
    torch.manual_seed(1)
    base = nn.Linear(48, 64)
    layer = FlexLoraLayer(base, "default", config=config, r=10, lora_alpha=4)
    x = inputs(48, 0)
    assert torch.equal(layer(x), base(x)), "ΔW = 0 at the start"
    assert active(layer) == [True] * 10 + [False] * 6
    assert_inactive_is_zero(layer)
    p, values, q = layer.packed_factors("default")
    assert not values.any()
    if vector_init == "gaussian":
        assert float(torch.cat([p.flatten(), q.flatten()]).std()) == pytest.approx(0.02, rel=0.1)
    else:
        torch.testing.assert_close(p.T @ p, torch.eye(10), atol=1e-5, rtol=0)
        torch.testing.assert_close(q @ q.T, torch.eye(10), atol=1e-5, rtol=0)
    assert config_layer.capacity("default") == 16


def test_init_std_and_init_weights():
    _, config = single(5, 5, [True] * 4, init_std=0.5, init_weights=False)
    layer = FlexLoraLayer(nn.Linear(200, 300), "default", config=config, r=4, lora_alpha=1)
    p, values, q = layer.packed_factors("default")
    assert float(torch.cat([p.flatten(), q.flatten()]).std()) == pytest.approx(0.5, rel=0.1)
    assert values.abs().min() > 0


def test_the_start_follows_the_global_seed():
    _, config = single(5, 5, [True] * 4)

    def vectors(seed):
        torch.manual_seed(seed)
        return FlexLoraLayer(nn.Linear(5, 5), "default", config=config, r=4, lora_alpha=1).flexlora_P["default"]

    assert torch.equal(vectors(3), vectors(3))
    assert not torch.equal(vectors(3), vectors(4))


def test_capacity_is_the_limit_and_never_above_the_smaller_side():
    config = fixed(r=2, max_rank=16)
    assert FlexLoraLayer(nn.Linear(50, 40), "default", config=config, r=2, lora_alpha=1).capacity("default") == 16
    assert FlexLoraLayer(nn.Linear(50, 6), "default", config=config, r=2, lora_alpha=1).capacity("default") == 6
    assert FlexLoraLayer(nn.Linear(7, 50), "default", config=config, r=2, lora_alpha=1).capacity("default") == 7


def test_a_changing_rank_starts_at_most_at_the_smaller_side():
    layer = FlexLoraLayer(nn.Linear(5, 9), "default", config=moving(r=8, max_rank=12), r=8, lora_alpha=16)
    assert (layer.rank("default"), layer.capacity("default"), layer.scaling["default"]) == (5, 5, 2.0)
    layer = FlexLoraLayer(nn.Linear(5, 9), "default", config=fixed(r=8, max_rank=12), r=8, lora_alpha=16)
    assert (layer.rank("default"), layer.capacity("default")) == (8, 8), "a fixed rank is as asked for"


def test_a_rank_above_the_limit_or_below_one():
    config = fixed(r=2, max_rank=4)
    with pytest.raises(ValueError, match=r"starting rank \(5\) is above max_rank \(4\)"):
        FlexLoraLayer(nn.Linear(9, 9), "default", config=config, r=5, lora_alpha=1)
    with pytest.raises(ValueError, match="at least 1"):
        FlexLoraLayer(nn.Linear(9, 9), "default", config=config, r=0, lora_alpha=1)


def test_the_scale_never_changes():
    """s = lora_alpha / r₀, not over the current rank: rescaling would change the output at every event."""
    layer, config = single(6, 6, [True] * 4 + [False] * 4, lora_alpha=16, r=8)
    assert layer.scaling["default"] == 2.0
    x = inputs(6, 0)
    before = layer(x)
    layer.grow("default", 4, torch.tensor([0, 1, 2, 3]), config, 1, 0)
    assert layer.scaling["default"] == 2.0
    assert torch.equal(layer(x), before)


# --- gradients ----------


@given(sizes, masks, seeds)
def test_gradients_equal_the_packed_ones_and_are_exactly_zero_elsewhere(size, mask, seed):
    out, width = size
    layer, _ = single(out, width, mask, seed, dtype=torch.float64)
    x = inputs(width, seed, torch.float64).requires_grad_()
    weights = torch.randn(3, 4, out, dtype=torch.float64)
    (layer(x) * weights).sum().backward()
    p, values, q = (t.clone().requires_grad_() for t in layer.packed_factors("default"))
    y = x.detach().clone().requires_grad_()
    dense = layer.base_layer.weight.detach() + layer.scaling["default"] * p @ torch.diag(values) @ q
    ((y @ dense.T + layer.base_layer.bias.detach()) * weights).sum().backward()
    on = layer.flexlora_active["default"]
    got_p, got_values, got_q = (t.grad for t in layer.factors("default"))
    torch.testing.assert_close(got_p[:, on], p.grad)
    torch.testing.assert_close(got_values[on], values.grad)
    torch.testing.assert_close(got_q[on], q.grad)
    torch.testing.assert_close(x.grad, y.grad)
    assert (got_p[:, ~on] == 0).all()
    assert (got_values[~on] == 0).all()
    assert (got_q[~on] == 0).all()


def test_masked_slots_get_zero_gradient_even_if_something_wrote_into_them():
    """The mask is in the product: λ's gradient does not rely on the vectors being zero."""
    layer, _ = single(6, 5, [True, False, True, False])
    with torch.no_grad():
        for parameter in layer.factors("default"):
            parameter.copy_(torch.randn_like(parameter))
    x = inputs(5, 0)
    torch.testing.assert_close(
        layer(x).double(),
        (x.double() @ (layer.base_layer.weight.double() + delta(layer)).T + layer.base_layer.bias.double()),
        rtol=1e-4,
        atol=1e-5,
    )
    layer(x).square().sum().backward()
    p, values, q = layer.factors("default")
    assert (values.grad[[1, 3]] == 0).all()
    assert (q.grad[[1, 3]] == 0).all()
    assert (p.grad[:, [1, 3]] == 0).all()
    assert (values.grad[[0, 2]] != 0).all()


def test_dropout_acts_on_the_adapters_input_only():
    layer, config = single(6, 5, [True] * 3, lora_dropout=0.5)
    layer = FlexLoraLayer(nn.Linear(5, 6), "default", config=config, r=3, lora_alpha=3)
    set_mask(layer, [True] * 3)
    x = inputs(5, 0)
    layer.train()
    torch.manual_seed(0)
    dropped = nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    got = layer(x)
    expected = layer.base_layer(x).double() + dropped.double() @ delta(layer).T
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    layer.eval()
    expected = layer.base_layer(x).double() + x.double() @ delta(layer).T
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)


# --- dtypes ----------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_adapter_is_float32_over_half_and_the_output_has_the_bases_dtype(dtype):
    layer, _ = single(6, 5, [True, False, True], dtype=dtype)
    expected_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert {t.dtype for t in layer.factors("default")} == {expected_dtype}
    x = inputs(5, 0, dtype)
    got = layer(x)
    assert got.dtype == dtype == layer.base_layer(x).dtype
    reference = x.double() @ (layer.base_layer.weight.double() + delta(layer)).T + layer.base_layer.bias.double()
    tolerance = {torch.bfloat16: 6e-2, torch.float16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(got.double(), reference.detach(), rtol=tolerance, atol=tolerance)
    got.double().square().sum().backward()
    assert {t.grad.dtype for t in layer.factors("default")} == {expected_dtype}


def test_a_small_step_of_lambda_is_not_lost_over_a_bfloat16_base():
    layer, _ = single(6, 5, [True, True], dtype=torch.bfloat16)
    with torch.no_grad():
        values = layer.flexlora_lambda["default"]
        values.fill_(1.0)
        values += 8e-4
        assert float(values[0]) == pytest.approx(1.0008, rel=1e-6)


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_autocast_bfloat16(base_dtype):
    layer, _ = single(6, 5, [True, False, True], dtype=base_dtype)
    x = inputs(5, 0)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
        assert got.dtype == layer.base_layer(x).dtype == torch.bfloat16
    reference = x.double() @ (layer.base_layer.weight.double() + delta(layer)).T + layer.base_layer.bias.double()
    torch.testing.assert_close(got.double(), reference.detach(), rtol=8e-2, atol=8e-2)
    got.float().square().sum().backward()
    for parameter in layer.factors("default"):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
    assert layer.flexlora_lambda["default"].grad[1] == 0


def test_growth_is_exactly_zero_over_bfloat16_and_under_autocast():
    for dtype, cast in ((torch.bfloat16, False), (torch.float32, True)):
        layer, config = single(16, 24, [True, False, True, False], dtype=dtype)
        x = inputs(24, 0, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            before = layer(x)
            grow(layer, config)
            assert torch.equal(layer(x), before)


# --- merging ----------


@given(sizes, masks, seeds, st.booleans(), st.booleans())
def test_merge_and_unmerge(size, mask, seed, conv, safe):
    out, width = size
    torch.manual_seed(seed)
    base = Conv1D(out, width) if conv else nn.Linear(width, out)
    layer, _ = single(out, width, mask, seed, base=base)
    original = base.weight.detach().clone()
    x = inputs(width, seed)
    before = layer(x)
    layer.merge(safe_merge=safe)
    assert layer.merged
    expected = original.double() + (delta(layer).T if conv else delta(layer))
    torch.testing.assert_close(base.weight.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x), before, rtol=1e-3, atol=1e-4)
    layer.unmerge()
    assert not layer.merged
    torch.testing.assert_close(base.weight, original, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_merging_rounds_once_into_the_bases_dtype(dtype):
    layer, _ = single(6, 5, [True, False, True], dtype=dtype)
    weight = layer.base_layer.weight.detach().clone()
    layer.merge()
    assert layer.base_layer.weight.dtype == dtype
    exact = weight.double() + delta(layer)
    ulp = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 2**-50}[dtype]
    assert ((layer.base_layer.weight.double() - exact).abs() <= exact.abs() * ulp + 1e-6 * (ulp > 1e-12)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_safe_merge_refuses_and_leaves_the_base(bad):
    layer, _ = single(6, 5, [True, False, True])
    with torch.no_grad():
        layer.flexlora_lambda["default"][0] = bad
    weight = layer.base_layer.weight.detach().clone()
    with pytest.raises(ValueError, match="not finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, weight)
    assert not layer.merged
    layer.merge()
    assert layer.merged
    assert not layer.base_layer.weight.isfinite().all()


def test_merging_twice_or_unmerging_twice_only_warns():
    layer, _ = single(6, 5, [True, True])
    layer.merge()
    weight = layer.base_layer.weight.detach().clone()
    with pytest.warns(UserWarning, match="Already following adapters were merged|already merged"):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, weight)
    layer.unmerge()
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


# --- unpacking ----------


@given(sizes, masks, seeds)
def test_pack_and_unpack(size, mask, seed):
    out, width = size
    layer, _ = single(out, width, mask, seed)
    p, values, q = layer.packed_factors("default")
    assert (p.shape, values.shape, q.shape) == ((out, sum(mask)), (sum(mask),), (sum(mask), width))
    full = layer.unpack("default", p, values, q, layer.slots("default"))
    for name, parameter in zip(("P", "lambda", "Q"), layer.factors("default"), strict=True):
        assert torch.equal(full[name], parameter)
    assert full["active"].tolist() == mask


def test_unpack_refuses_mismatched_directions():
    layer, _ = single(6, 5, [True, False, True, True])
    p, values, q = layer.packed_factors("default")
    with pytest.raises(ValueError, match=r"slot 4, but the capacity \(max_rank\) here is 4"):
        layer.unpack("default", p, values, q, torch.tensor([0, 2, 4]))
    for wrong in ((p[:-1], values, q), (p, values[:-1], q), (p, values, q[:, :-1]), (p.T, values, q.T)):
        with pytest.raises(ValueError, match="shapes"):
            layer.unpack("default", *wrong, torch.tensor([0, 2, 3]))
    with pytest.raises(ValueError, match="slot"):
        layer.unpack("default", p, values, q, torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match="slot"):
        layer.unpack("default", p, values, q, torch.tensor([-1, 0, 2]))


def test_delta_weight_counts_active_directions_only():
    layer, _ = single(6, 5, [True, False, True, False])
    with torch.no_grad():
        for parameter in layer.factors("default"):
            parameter.copy_(torch.randn_like(parameter))
    torch.testing.assert_close(layer.get_delta_weight("default").double(), delta(layer), rtol=1e-4, atol=1e-5)
    layer.merge()
    layer.unmerge()


def test_safe_merge_refuses_an_overflow_of_a_float16_base():
    layer, _ = single(6, 5, [True], dtype=torch.float16)
    with torch.no_grad():
        layer.flexlora_lambda["default"].fill_(1e6)
    weight = layer.base_layer.weight.detach().clone()
    with pytest.raises(ValueError, match="not finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, weight)
