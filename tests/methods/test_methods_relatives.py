"""E²LoRA's relatives: their mathematics against references in float64, and what they read from gradients."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_helpers import context, settings_of
from peft import LoraConfig, RandLoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from flexlora.errors import UserError
from flexlora.methods import build_method
from flexlora.methods.chosen_ranks import ChosenRanksMethod, RankFields, allocate_ranks
from flexlora.methods.ralora import block_count, effective_rank


def test_randlora_is_a_sum_of_scaled_random_matrices():
    """ΔW = α/r Σ_ki λ_ki b_ki (a_k ∘ γ_i)ᵀ, where every pair (k, i) has a random b_ki of its own.

    PEFT takes the b_ki in the order of its stored matrix, which is not the paper's. All are random alike. A is for
    the smaller side of W.
    """
    for inputs, outputs in ((7, 5), (5, 7)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(inputs, outputs, dtype=torch.float64))
        tuned = get_peft_model(model, RandLoraConfig(target_modules=["0"], r=2, randlora_alpha=6, init_weights=False))
        layer = tuned.base_model.model[0]
        a, b, lam, gamma = (
            getattr(layer, f"randlora_{name}")["default"].detach().double() for name in ("A", "B", "lambda", "gamma")
        )
        assert (a.shape, b.shape, lam.shape, gamma.shape) == ((2, 1, 5), (7, 3, 2), (2, 3), (3, 5))
        delta = torch.zeros(7, 5, dtype=torch.float64)
        for number in range(6):
            k, i = divmod(number, 3)
            delta += 6 / 2 * lam[k, i] * torch.outer(b.flatten(1)[:, number], a[k, 0] * gamma[i])
        delta = delta if outputs == 7 else delta.T
        torch.testing.assert_close(layer.get_delta_weight("default").double(), delta, rtol=1e-12, atol=1e-12)
        x = torch.randn(4, inputs, dtype=torch.float64)
        expected = x @ (layer.base_layer.weight + delta).T + layer.base_layer.bias
        torch.testing.assert_close(tuned(x), expected, rtol=1e-12, atol=1e-12)


class Two(nn.Module):
    """Two linears and a Conv1D in float64, with gradients of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 16, dtype=torch.float64), nn.Linear(16, 8, dtype=torch.float64)
        self.three = Conv1D(4, 8).double()
        with torch.no_grad():
            self.two.weight.mul_(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(self.two(self.one(x).tanh()).tanh())


def batches(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [{"x": torch.randn(6, 8, generator=generator, dtype=torch.float64)} for _ in range(count)]


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(batch["x"]).square().mean()


def gradients() -> dict[str, torch.Tensor]:
    """The mean gradient of each weight over the first three batches, as out × in."""
    model = Two()
    weights = {"one": model.one.weight, "two": model.two.weight, "three": model.three.weight}
    total = sum(loss(model, batch) for batch in batches(3)) / 3
    found = dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True))
    return {**found, "three": found["three"].T}


def weight_of(model: Two, name: str) -> torch.Tensor:
    weight = getattr(model, name).weight.detach()
    return weight.T if name == "three" else weight


def made(kind: str, **fields: Any) -> ChosenRanksMethod:
    told = context("bert", target_modules="one|two|three", head_modules=[], task_type=None)
    method = settings_of(kind).method.with_fields(batches=3, **fields)
    built = build_method(method, told)
    assert isinstance(built, ChosenRanksMethod)
    return built


def expected_ranks(r: int, low: int, high: int, width: Callable[[int, int], float]) -> dict[str, int]:
    """The ranks by the formula, written out with plain numbers."""
    values = {}
    for name, gradient in gradients().items():
        products = [w * g for w, g in zip(weight_of(Two(), name).flatten(), gradient.flatten(), strict=True)]
        values[name] = sum(abs(float(product)) for product in products) / len(products)
    sizes = {"one": (8, 16), "two": (16, 8), "three": (8, 4)}
    budget = sum(r * width(*size) for size in sizes.values())
    found = {}
    for name, size in sizes.items():
        share = values[name] / sum(values.values())
        found[name] = min(max(round(share * budget / width(*size)), low), high, *size)
    return found


@pytest.mark.parametrize("width", ["sqrt", "sum"])
@pytest.mark.parametrize("gamma", [0.05, 0.5])
def test_gora_chooses_ranks_by_importance_and_starts_with_a_step_along_the_gradient(width, gamma):
    method = made("gora", r=3, min_rank=1, max_rank=7, width=width, gamma=gamma, lora_alpha=6)
    model = Two()
    method.configure(model, iter(batches()), loss)
    of = {"sqrt": lambda m, n: math.sqrt(m + n), "sum": lambda m, n: m + n}[width]
    ranks = expected_ranks(3, 1, 7, of)
    assert len(set(ranks.values())) > 1
    assert {name: found["rank"] for name, found in method.configuration()["modules"].items()} == ranks
    wrapped = method.wrap(model)
    for name, gradient in gradients().items():
        layer = getattr(wrapped.base_model.model, name)
        a, b = (getattr(layer, f"lora_{factor}")["default"].weight.detach() for factor in "AB")
        assert len(a) == ranks[name]
        scale = 6 / ranks[name] ** 0.5
        step = gamma * (gradient.shape[1] / ranks[name]) ** 0.5
        update = -step * gradient @ torch.linalg.pinv(a) @ a
        torch.testing.assert_close(scale * b @ a, update, rtol=1e-9, atol=1e-12)
        assert a.abs().max() <= gradient.shape[1] ** -0.5
    assert loss(wrapped, batches()[0]) != loss(Two(), batches()[0])
    assert sum(loss(wrapped, batch) for batch in batches(3)) < sum(loss(Two(), batch) for batch in batches(3))


@pytest.mark.parametrize(
    ("fields", "ranks"),
    [
        ({"width": "sqrt", "min_rank": 1}, [5, 6, 13]),  # √1536 = 39.19, √3840 = 61.97, √2064 = 45.43
        ({"width": "sum", "min_rank": 1}, [6, 5, 14]),
        ({"width": "sqrt", "min_rank": 6, "max_rank": 9}, [6, 6, 9]),
    ],
)
def test_a_rank_is_the_share_of_the_budget_in_units_of_the_linears_width(fields, ranks):
    shapes = {"a": (768, 768), "b": (768, 3072), "c": (64, 2000)}
    measured = {name: {"importance": value} for name, value in zip(shapes, (1.0, 2.0, 3.0), strict=True)}
    allocate_ranks(measured, shapes, 8, RankFields(**fields))
    assert [found["rank"] for found in measured.values()] == ranks


def test_gora_without_a_step_starts_at_the_backbone():
    method = made("gora", gamma=0)
    model = Two()
    method.configure(model, batches(), loss)
    assert torch.equal(method.wrap(model)(batches()[0]["x"]), Two()(batches()[0]["x"]))


def test_gora_trains_b_at_the_ratio_of_lora_plus():
    method = made("gora", lr_ratio=16)
    model = Two()
    method.configure(model, batches(), loss)
    a, b = method.parameter_groups(method.wrap(model), 1e-3)
    assert (a["lr"], b["lr"], len(a["params"]), len(b["params"])) == (1e-3, 1.6e-2, 3, 3)
    assert [len(p) for p in b["params"]] == [16, 8, 4]


def test_an_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    torch.manual_seed(0)
    for shape in ((5, 9), (9, 5)):
        matrix = torch.randn(shape, dtype=torch.float64)
        values = torch.linalg.svdvals(matrix)
        shares = [float(value / values.sum()) for value in values]
        expected = math.exp(-sum(share * math.log(share) for share in shares))
        assert effective_rank(matrix) == pytest.approx(expected, rel=1e-9)
        assert effective_rank(1e-6 * matrix.float()) == pytest.approx(expected, rel=1e-5)
    orthogonal = torch.linalg.qr(torch.randn(12, 7, dtype=torch.float64)).Q
    assert effective_rank(orthogonal) == pytest.approx(7)
    assert effective_rank(torch.outer(torch.randn(6), torch.randn(4))) == pytest.approx(1, abs=1e-2)
    assert effective_rank(torch.zeros(3, 4)) == 1


@pytest.mark.parametrize(
    ("erank", "rank", "highest", "shape", "blocks"),
    [
        (100.0, 8, 32, (768, 768), 8),  # 100 / 8 = 12.5
        (64.0, 8, 32, (768, 768), 8),
        (63.9, 8, 32, (768, 768), 4),
        (5.0, 8, 32, (768, 768), 1),
        (700.0, 8, 32, (768, 3072), 32),
        (700.0, 8, 24, (768, 3072), 16),
        (700.0, 8, 32, (8, 12), 4),  # 16 and 32 do not divide them, nor does 8 divide 12
        (700.0, 8, 32, (7, 12), 1),
    ],
)
def test_the_number_of_blocks_is_the_power_of_two_below_the_ratio_that_divides_the_weight(
    erank, rank, highest, shape, blocks
):
    assert block_count(erank, rank, highest, shape) == blocks


@pytest.mark.parametrize("name", ["ralora", "ralora_pro"])
def test_ralora_chooses_blocks_by_effective_ranks(name):
    method = made(name, r=1, **({"min_rank": 1, "max_rank": 5} if name == "ralora_pro" else {}))
    model = Two()
    method.configure(model, batches(), loss)
    ranks = expected_ranks(1, 1, 5, lambda m, n: m + n) if name == "ralora_pro" else dict.fromkeys(gradients(), 1)
    wrapped = method.wrap(model)
    several = 0
    for module, gradient in gradients().items():
        values = torch.linalg.svdvals(gradient)
        erank = math.exp(-sum(float(v / values.sum()) * math.log(float(v / values.sum())) for v in values))
        blocks = 1
        while 2 * blocks * ranks[module] <= erank and blocks < 32 and not any(n % (2 * blocks) for n in gradient.shape):
            blocks *= 2
        layer = getattr(wrapped.base_model.model, module)
        assert (layer.r["default"], layer.blocks["default"]) == (ranks[module], blocks)
        assert layer.scaling["default"] == 16
        several += blocks > 1
    assert several
    plain = sum(ranks[module] * sum(gradient.shape) for module, gradient in gradients().items())
    assert method.parameters(wrapped)["adapter_active"] == plain


@pytest.mark.parametrize("name", ["gora", "ralora", "ralora_pro"])
def test_a_choice_survives_the_record_and_the_saved_adapter(name, tmp_path):
    first, again, started = (made(name) for _ in range(3))
    model = Two()
    first.configure(model, batches(), loss)
    wrapped = first.wrap(model)
    again.take_configuration(json.loads(json.dumps(first.configuration())))
    shapes = {key: value.shape for key, value in wrapped.named_parameters()}
    assert {key: value.shape for key, value in again.wrap(Two()).named_parameters()} == shapes
    assert again.configuration_lines() == first.configuration_lines()
    assert len(first.configuration_lines()) == 3
    first.save(wrapped, tmp_path)
    started.take_configuration(started.configuration_of(tmp_path))
    loaded = started.wrap(Two())
    started.load(loaded, tmp_path)
    x = batches()[0]["x"]
    torch.testing.assert_close(loaded(x), wrapped(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["gora", "ralora", "ralora_pro"])
def test_what_is_no_choice_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"method\.rank_pattern: .* chooses it from gradients: leave it out"):
        made(name, rank_pattern={"one": 2})
    for values in (
        {},
        {"modules": 3},
        {"modules": {}},
        {"modules": {"one": {"rank": 0}}},
        {"modules": {"one": {"rank": 2.5}}},
    ):
        with pytest.raises(ValueError, match=r"this is not what .* chooses from gradients"):
            made(name).take_configuration(values)
    if name != "ralora":  # it needs no importance
        with pytest.raises(UserError, match="all gradients are 0"):
            made(name).configure(Two(), batches(), lambda model, batch: 0 * loss(model, batch))
    with pytest.raises(UserError, match="no linear of the model matches"):
        made(name, target_modules="four").configure(Two(), batches(), loss)
    other = get_peft_model(Two(), LoraConfig(target_modules=["one"]))
    other.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no ranks of single modules"):
        made(name).configuration_of(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_rank": 9, "max_rank": 8}, r"method\.max_rank must be at least min_rank=9, not 8"),
        ({"width": "log"}, r"method\.width must be one of sqrt, sum, not 'log'"),
        ({"batches": 0}, r"method\.batches must be a whole number of at least 1, not 0"),
        ({"lr_ratio": 0}, r"method\.lr_ratio must be a positive number, not 0"),
        ({"gamma": "a"}, r"method\.gamma"),
    ],
)
def test_settings_out_of_range_are_refused_by_their_names(fields, message):
    with pytest.raises(UserError, match=message):
        build_method(settings_of("gora").method.with_fields(**fields), context("bert"))
