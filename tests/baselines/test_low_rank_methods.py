"""What each low-rank baseline adds to its equation: starts, masks, penalties and timetables."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_helpers import IN, OUT, RANK, SCALE, held, outer, single
from low_rank_helpers import METHODS, adapted, train
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from flexlora.baselines import LoraDashConfig, LoriConfig, LowRankLayer, RasaConfig

# --- MiLoRA and PiSSA: which singular vectors ----------


def spectrum_linear() -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear with singular values 5, 4, 3, 2, 1 and its decomposition."""
    torch.manual_seed(5)
    u = torch.linalg.qr(torch.randn(OUT, OUT, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(IN, OUT, dtype=torch.float64)).Q
    sigma = torch.arange(OUT, 0, -1, dtype=torch.float64)
    linear = nn.Linear(IN, OUT, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(u @ torch.diag(sigma) @ v.T)
    return linear, u, sigma, v


@pytest.mark.parametrize("alpha", [3.0, 6.0])
def test_milora_takes_the_smallest_singular_triplets(alpha):
    linear, u, sigma, v = spectrum_linear()
    before = linear.weight.detach().clone()
    model = get_peft_model(nn.Sequential(linear), METHODS["milora"](target_modules=["0"], r=RANK, lora_alpha=alpha))
    layer = model.base_model.model[0]
    t = held(layer)
    assert torch.equal(layer.base_layer.weight, before)
    assert torch.equal(t["A"], t["A0"])
    assert torch.equal(t["B"], t["B0"])
    minor = sum(sigma[i] * torch.outer(u[:, i], v[:, i]) for i in range(OUT - RANK, OUT))
    torch.testing.assert_close(alpha / RANK * t["B"] @ t["A"], minor, rtol=1e-10, atol=1e-10)
    # Both factors carry the root, and their vectors are orthogonal.
    root = (sigma[-RANK:] * RANK / alpha).diag()
    torch.testing.assert_close(t["A"] @ t["A"].T, root, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(t["B"].T @ t["B"], root, rtol=1e-10, atol=1e-10)
    assert torch.equal(layer.get_delta_weight("default"), torch.zeros(OUT, IN, dtype=torch.float64))


def test_pissa_takes_the_largest_singular_triplets():
    """In PEFT W + ΔW is W₀ at the start, and the residual has the rest of the spectrum."""
    linear, u, sigma, v = spectrum_linear()
    before = linear.weight.detach().clone()
    linear.float()
    model = get_peft_model(
        nn.Sequential(linear), LoraConfig(target_modules=["0"], r=RANK, lora_alpha=6, init_lora_weights="pissa")
    )
    layer = model.base_model.model[0]
    delta = layer.get_delta_weight("default").double()
    torch.testing.assert_close(layer.base_layer.weight.double() + delta, before, rtol=1e-5, atol=1e-5)
    principal = sum(sigma[i] * torch.outer(u[:, i], v[:, i]) for i in range(RANK))
    torch.testing.assert_close(delta, principal, rtol=1e-5, atol=1e-5)


# --- SoRA: the proximal step ----------


@given(st.lists(st.floats(-2, 2), min_size=RANK, max_size=RANK), st.floats(0, 1))
def test_soras_step_minimises_the_proximal_problem(gates, xi):
    """prox(g) = argmin ½ (z - g)² + ξ |z|: no point of a fine grid is lower, and the closed form is met."""
    model, layer = single("sora", xi=xi)
    g = torch.tensor(gates, dtype=torch.float64)
    with torch.no_grad():
        layer.lora_gate["default"].copy_(g)
    model.base_model.after_step(1)
    z = layer.lora_gate["default"].detach()
    torch.testing.assert_close(z, g.sign() * (g.abs() - xi).clamp(min=0), rtol=1e-12, atol=1e-15)
    grid = torch.linspace(-2.5, 2.5, 2001, dtype=torch.float64)
    for value, start in zip(z, g, strict=True):
        at_grid = (grid - start).square() / 2 + xi * grid.abs()
        assert (value - start).square() / 2 + xi * value.abs() <= at_grid.min() + 1e-12


def test_soras_gates_start_normal_and_determine_the_rank():
    gates = [held(single_layer)["gate"] for _, single_layer in (fresh_sora(seed) for seed in range(300))]
    values = torch.cat([gate.detach() for gate in gates])
    assert abs(values.mean()) < 0.12  # four standard errors of 900 draws
    assert abs(values.std() - 1) < 0.1
    _, layer = single("sora")
    with torch.no_grad():
        layer.lora_gate["default"].copy_(torch.tensor([0.0, 0.5, 0.0]))
    assert layer.rank("default") == 1
    assert layer.inactive_parameters("default") == 2 * (IN + OUT + 1)


def fresh_sora(seed: int) -> tuple[nn.Module, LowRankLayer]:
    torch.manual_seed(seed)
    model = get_peft_model(
        nn.Sequential(nn.Linear(IN, OUT, dtype=torch.float64)), METHODS["sora"](target_modules=["0"], r=RANK)
    )
    return model, model.base_model.model[0]


# --- MLAE: the masks ----------


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_mlaes_masks_have_the_right_mean_and_are_independent(p):
    model, layer = single("mlae", expert_dropout=p)
    t = {name: tensor.detach() for name, tensor in held(layer).items()}
    x = torch.randn(2, IN, dtype=torch.float64)
    plain = layer.base_layer(x).detach()
    experts = torch.stack([x @ (t["lambda"][i] * torch.outer(t["B"][:, i], t["A"][i])).T for i in range(RANK)])
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=RANK)), dtype=torch.float64)
    possible = plain + torch.einsum("mr,rbo->mbo", masks / (1 - p), experts)
    model.train()
    draws = 2000
    with torch.no_grad():
        outputs = torch.stack([model(x) for _ in range(draws)])
    distance = (outputs[:, None] - possible[None]).abs().amax((2, 3))
    nearest = distance.argmin(1)
    assert distance.min(1).values.max() < 1e-10  # every token of a pass has the same mask
    left = masks[nearest].mean(0)
    error = 4 * (p * (1 - p) / draws) ** 0.5
    assert ((left - (1 - p)).abs() <= error).all()
    both = (masks[nearest][:, 0] * masks[nearest][:, 1]).mean()  # experts are left out independently
    assert abs(both - (1 - p) ** 2) <= 4 * ((1 - p) ** 2 * (1 - (1 - p) ** 2) / draws) ** 0.5
    model.eval()
    spread = outputs.std(0) / draws**0.5
    assert ((outputs.mean(0) - model(x)).abs() <= 5 * spread + 1e-9).all()
    assert torch.equal(t["lambda"], held(layer)["lambda"])


def test_mlaes_coefficients_start_at_alpha():
    model = get_peft_model(nn.Sequential(nn.Linear(IN, OUT)), METHODS["mlae"](target_modules=["0"], lora_alpha=1.5))
    assert held(model.base_model.model[0])["lambda"].tolist() == [1.5] * 8


# --- LoRA-Dash: the launch ----------


def test_lora_dash_launches_the_directions_of_largest_change_rate():
    model, layer = single("lora_dash", directions=2, tinit=3)
    with torch.no_grad():
        layer.lora_delta["default"].zero_()
    x = torch.randn(4, IN, dtype=torch.float64)
    before = model(x)
    for step in (1, 2):
        model.base_model.after_step(step)
    assert not layer.lora_U["default"].any()
    model.base_model.after_step(3)
    t = held(layer)
    u, sigma, vh = torch.linalg.svd(t["W"], full_matrices=False)
    change = outer(t["B"], t["A"], [SCALE] * RANK).detach()
    rates = [abs(float(u[:, i] @ change @ vh[i])) / float(sigma[i]) for i in range(OUT)]
    wanted = sorted(range(OUT), key=lambda i: -rates[i])[:2]
    for k, i in enumerate(wanted):
        torch.testing.assert_close(torch.outer(t["U"][:, k], t["V"][k]), torch.outer(u[:, i], vh[i]))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    kept = t["U"].clone()
    with torch.no_grad():
        layer.lora_B["default"].normal_()
    model.base_model.after_step(4)
    assert torch.equal(held(layer)["U"], kept), "they are chosen once"


def test_lora_dash_skips_directions_with_a_zero_singular_value():
    linear = nn.Linear(IN, OUT, dtype=torch.float64)
    with torch.no_grad():
        linear.weight[1:] = linear.weight[:1]  # rank 1
    _, layer = single("lora_dash", linear, directions=1)
    layer.launch("default")
    t = held(layer)
    assert (t["W"] @ t["V"][0]).norm() > 0.1 * t["W"].norm()


def test_lora_dash_refuses_a_training_without_a_launch():
    with pytest.raises(ValueError, match="tinit=100 leaves no step"):
        LoraDashConfig(target_modules=["a"], total_step=100)


# --- NoRA+: the sketch ----------


def test_nora_plus_starts_in_the_range_of_w_and_is_preconditioned_by_peft():
    from peft.optimizers import create_riemannian_optimizer

    torch.manual_seed(0)
    linear = nn.Linear(200, 40, dtype=torch.float64)
    with torch.no_grad():
        linear.weight[20:] = 0
    model = get_peft_model(nn.Sequential(linear), METHODS["nora_plus"](target_modules=["0"], r=8))
    t = held(model.base_model.model[0])
    assert not t["A"].any()
    assert not t["B"][20:].any()
    sketch = torch.linalg.lstsq(t["W"][:20], t["B"][:20].detach()).solution  # the part of Ω that W sees
    expected = 200**-0.5 * (t["W"].norm() / 1)
    assert abs(t["B"].norm(dim=0).mean() / expected - 1) < 0.2
    assert sketch.shape == (200, 8)
    optimizer = create_riemannian_optimizer(model, torch.optim.SGD, lr=1.0, reg=1e-2)
    a, b = model.base_model.model[0].lora_A["default"], model.base_model.model[0].lora_B["default"]
    a.grad, b.grad = torch.randn_like(a), torch.randn_like(b)
    grads, start = (a.grad.clone(), b.grad.clone()), (a.detach().clone(), b.detach().clone())
    eye = 1e-2 * torch.eye(8, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(a.detach(), start[0] - torch.linalg.inv(start[1].T @ start[1] + eye) @ grads[0])
    torch.testing.assert_close(b.detach(), start[1] - grads[1] @ torch.linalg.inv(start[0] @ start[0].T + eye))


# --- RaSA: the pool of a type ----------


def test_rasa_has_a_pool_for_each_type_and_weights_its_directions_alike():
    model = adapted("rasa", "bert", r=4, k=2, lora_alpha=12.0, alpha_pattern={"1.attention.self.query": 6.0})
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LowRankLayer)}
    pools = {name: layer.lora_shared_A["default"] for name, layer in layers.items() if "default" in layer.lora_shared_A}
    assert len(layers) == 12
    assert len(pools) == 6
    assert all(".layer.0." in name and len(pool) == 2 * 2 for name, pool in pools.items())
    for name, layer in layers.items():
        alpha = 6.0 if name.endswith("1.attention.self.query") else 12.0
        expected = torch.tensor([0.5 * alpha / 2] * 2 + [0.5 * alpha / 4] * 4)
        assert torch.equal(layer.lora_d["default"].detach(), expected)
        assert layer.product("default")[1].shape == (2 + 4, layer.in_features)


def test_rasa_counts_the_linears_that_it_adapts():
    model = adapted("rasa", "bert", target_modules=["query"], layers_to_transform=[1], modules_to_save=None)
    (layer,) = (m for m in model.modules() if isinstance(m, LowRankLayer))
    assert layer.lora_shared_A["default"].shape == (1, 16)
    model.add_adapter("both", RasaConfig(target_modules=["query"], r=4))
    layers = [m for m in model.modules() if isinstance(m, LowRankLayer)]
    assert [layer.tensor("lora_shared_A", "both").shape for layer in layers] == [(2, 16)] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 4, "k": 4}, "`k` must be below r=4, not 4"),
        ({"k": 0}, "`k` must be a whole number of at least 1, not 0"),
        ({"rank_pattern": {"a": 2}}, "RaSA has one rank for all modules"),
    ],
)
def test_rasa_refuses_ranks_without_a_pool_or_a_direction_of_their_own(settings, message):
    with pytest.raises(ValueError, match=message):
        RasaConfig(target_modules=["a"], **settings)


# --- RaLoRA: blocks ----------


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("blocks", [2, 4])
def test_raloras_blocks_see_their_own_inputs_and_outputs_only(blocks, kind):
    torch.manual_seed(3)
    base = Conv1D(12, 8).double() if kind == "conv1d" else nn.Linear(8, 12, dtype=torch.float64)
    config = METHODS["ralora"](target_modules=["0"], r=3, lora_alpha=6.0, block_pattern={"0": blocks})
    model = get_peft_model(nn.Sequential(base), config)
    layer = model.base_model.model[0]
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    assert a.abs().max() <= (blocks / 8) ** 0.5
    assert a.abs().max() > 0.7 * (blocks / 8) ** 0.5  # Kaiming for 8 / blocks inputs
    with torch.no_grad():
        b.normal_()
    delta = torch.zeros(12, 8, dtype=torch.float64)
    rows, columns = 12 // blocks, 8 // blocks
    for i in range(blocks):
        for k in range(3):
            part = torch.outer(b[i * rows : (i + 1) * rows, k], a[k, i * columns : (i + 1) * columns])
            delta = delta + 2.0 * nn.functional.pad(
                part, (i * columns, 8 - (i + 1) * columns, i * rows, 12 - (i + 1) * rows)
            )
    weight = base.weight.detach().T if kind == "conv1d" else base.weight.detach()
    stored = layer.get_delta_weight("default")
    torch.testing.assert_close(stored.T if kind == "conv1d" else stored, delta, rtol=1e-12, atol=1e-12)
    assert int(torch.linalg.matrix_rank(delta.detach())) == min(3 * blocks, blocks * min(rows, columns))
    x, target = (torch.randn(4, 5, size, dtype=torch.float64) for size in (8, 12))
    expected = x @ (weight + delta).T + base.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(((model(x) - target) ** 2).sum(), [a, b])
    theirs = torch.autograd.grad(((expected - target) ** 2).sum(), [a, b])
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


def test_raloras_scale_is_the_same_for_all_ranks():
    config = METHODS["ralora"](target_modules=["0", "1"], r=4, lora_alpha=8.0, rank_pattern={"1": 2}, block_pattern={})
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), config)
    assert [layer.scaling["default"] for layer in model.base_model.model] == [2.0, 2.0]


def test_ralora_refuses_blocks_that_do_not_divide_a_side():
    with pytest.raises(ValueError, match="cannot divide 8 inputs and 6 outputs into 4 equal blocks"):
        get_peft_model(nn.Sequential(nn.Linear(8, 6)), METHODS["ralora"](target_modules=["0"], block_pattern={"0": 4}))


# --- LoRI: the masks ----------


def test_lori_keeps_the_largest_ten_percent_over_all_matrices_and_restarts():
    model = adapted("lori", "bert", tinit=2)
    optimizer = train(model, "bert", steps=1)
    layers = [m for m in model.modules() if isinstance(m, LowRankLayer)]
    frozen = [layer.lora_A["default"].clone() for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.lora_B["default"].normal_()
    sizes = torch.cat([layer.lora_B["default"].detach().abs().flatten() for layer in layers])
    threshold = sizes.sort(descending=True).values[round(0.1 * sizes.numel()) - 1]
    expected = [layer.lora_B["default"].detach().abs() >= threshold for layer in layers]
    model.base_model.after_step(2, optimizer)
    for layer, mask in zip(layers, expected, strict=True):
        assert torch.equal(layer.lora_mask["default"], mask)
        b = layer.lora_B["default"]
        assert not b.any()
        assert not any(v.any() for v in optimizer.state[b].values() if torch.is_tensor(v) and v.shape == b.shape)
    kept = sum(int(mask.sum()) for mask in expected)
    assert kept == round(0.1 * sizes.numel())
    assert sum(layer.inactive_parameters("default") for layer in layers) == sizes.numel() - kept
    train(model, "bert", steps=1)
    for layer, mask, a in zip(layers, expected, frozen, strict=True):
        assert not layer.lora_B["default"][~mask].any()
        assert torch.equal(layer.lora_A["default"], a)
    assert any(layer.lora_B["default"].any() for layer in layers)


def test_lori_calibrates_for_ten_percent_of_the_steps_by_default():
    assert LoriConfig(target_modules=["a"], total_step=300).tinit == 30
    assert LoriConfig(target_modules=["a"], sparsity=0.0).tinit is None
    with pytest.raises(ValueError, match="`total_step` is missing"):
        LoriConfig(target_modules=["a"])
    with pytest.raises(ValueError, match="leaves no step after the calibration"):
        LoriConfig(target_modules=["a"], total_step=300, tinit=300)
