"""The penalty's closed-form gradient against autograd through a plainly written R."""

from __future__ import annotations

import pytest
import torch
from builders import adapters, moving, scramble, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st

from flexlora.tuner import RankAllocator, orthogonality
from flexlora.tuner.orthogonality import add_orthogonality_gradient, orthogonality_error


def through(way):
    """The gradient by one of its two ways, whatever the sizes: (factors, coefficient, power, scale)."""

    def add(factors, coefficient, power, scale):
        for columns, members in orthogonality.by_shape(factors):
            way(columns, members, coefficient, power, scale)

    return add


SIDES = {"looped": through(orthogonality.add_looped), "batched": through(orthogonality.add_batched)}


def test_large_matrices_are_looped_over_on_a_cpu_and_small_ones_batched(monkeypatch):
    ways = []
    for name in ("add_looped", "add_batched"):
        real = getattr(orthogonality, name)
        monkeypatch.setattr(
            orthogonality,
            name,
            lambda columns, members, *rest, n=name, f=real: (
                ways.append((n, len(members))),
                f(columns, members, *rest),
            ),
        )
    width = orthogonality.LARGE_ON_CPU // 4
    factors = matrices([(width, 5, [True] * 4), (6, 5, [True] * 4), (6, 5, [True] * 4)], seed=0)
    add_orthogonality_gradient(factors, 0.5)
    assert sorted(ways) == [("add_batched", 2), ("add_batched", 3), ("add_looped", 1)]


def plain_penalty(matrices, power):
    """R(P, Q) by loops over the active directions only, packed; no masks, no padding."""
    terms = []
    for p, q, active in matrices:
        kept = [i for i, bit in enumerate(active.tolist()) if bit]
        for columns in ([p[:, i] for i in kept], [q[i] for i in kept]):
            total = torch.zeros((), dtype=p.dtype)
            for i, u in enumerate(columns):
                for j, v in enumerate(columns):
                    total = total + ((u * v).sum() - (1.0 if i == j else 0.0)) ** 2
            terms.append(total if power == 2 else torch.sqrt(total))
    return sum(terms) / len(terms)


def matrices(shapes, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for out, width, mask in shapes:
        active = torch.tensor(mask)
        p = torch.randn(out, len(mask), generator=generator, dtype=dtype) * active
        q = torch.randn(len(mask), width, generator=generator, dtype=dtype) * active[:, None]
        made.append((p.requires_grad_(), q.requires_grad_(), active))
    return made


masks = st.lists(st.booleans(), min_size=4, max_size=4).filter(any)
shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 7), st.integers(1, 7), masks),
        st.tuples(st.just(6), st.just(5), masks),  # equal shapes, which the batched form stacks
    ),
    min_size=1,
    max_size=4,
)


@given(shapes, st.integers(0, 2**20), st.sampled_from([1, 2]), st.sampled_from(sorted(SIDES)))
def test_closed_form_is_weight_times_autograd(shapes, seed, power, side):
    weight = 0.37
    factors = matrices(shapes, seed)
    parameters = [t for p, q, _ in factors for t in (p, q)]
    penalty = plain_penalty(factors, power)
    expected = torch.autograd.grad(weight * penalty, parameters)
    assert float(orthogonality_error(factors, power).detach()) == pytest.approx(float(penalty.detach()), rel=1e-10)
    with torch.no_grad():
        SIDES[side](factors, weight / (2 * len(factors)), power, 1.0)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-11)


@given(shapes, st.integers(0, 2**20), st.sampled_from([1, 2]))
def test_the_public_function_adds_to_what_is_there_and_scales(shapes, seed, power):
    factors = matrices(shapes, seed)
    parameters = [t for p, q, _ in factors for t in (p, q)]
    expected = torch.autograd.grad(0.25 * plain_penalty(factors, power), parameters)
    there = [torch.randn_like(t) for t in parameters]
    for scale in (8.0, torch.tensor(8.0, dtype=torch.float64)):
        for parameter, gradient in zip(parameters, there, strict=True):
            parameter.grad = gradient.clone()
        add_orthogonality_gradient(factors, 0.25, power, scale)
        for parameter, gradient, extra in zip(parameters, there, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient + 8.0 * extra, rtol=1e-9, atol=1e-10)


@given(shapes, st.integers(0, 2**20), st.sampled_from([1, 2]), st.sampled_from(sorted(SIDES)))
def test_inactive_directions_get_exactly_zero(shapes, seed, power, side):
    factors = matrices(shapes, seed)
    with torch.no_grad():  # even if an inactive slot should hold something
        for p, q, active in factors:
            p[:, ~active] = 3.0
            q[~active] = -2.0
        SIDES[side](factors, 0.5, power, 1.0)
    for p, q, active in factors:
        assert (p.grad[:, ~active] == 0).all()
        assert (q.grad[~active] == 0).all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("power", [1, 2])
def test_at_exact_orthonormality_the_gradient_is_zero_not_nan(side, power):
    eye = torch.eye(6, dtype=torch.float64)
    active = torch.tensor([True, False, True, True])
    p = (eye[:, :4] * active).requires_grad_()
    q = (eye[:4] * active[:, None]).requires_grad_()
    factors = [(p, q, active)]
    with torch.no_grad():
        SIDES[side](factors, 0.5, power, 1.0)
    assert (p.grad == 0).all()
    assert (q.grad == 0).all()
    error = orthogonality_error(factors, power)
    assert float(error.detach()) == 0.0
    assert all((g == 0).all() for g in torch.autograd.grad(error, [p, q]))


@pytest.mark.parametrize("side", SIDES)
def test_frozen_vectors_are_left_alone(side):
    factors = matrices([(5, 6, [True, True, False, True])], 0)
    p, q, _ = factors[0]
    q.requires_grad_(False)
    with torch.no_grad():
        SIDES[side](factors, 0.5, 1, 1.0)
    assert q.grad is None
    assert p.grad.abs().sum() > 0


def test_power_one_has_a_gradient_that_stays_large_near_the_optimum():
    """What the option's help says: unsquared, the gradient keeps its norm however small the error; squared it fades."""
    torch.manual_seed(0)
    mask = torch.ones(3, dtype=torch.bool)
    norms = {}
    for power in (1, 2):
        for size in (1e-2, 1e-5):
            p = torch.eye(5, dtype=torch.float64)[:, :3] + size * torch.randn(5, 3, dtype=torch.float64)
            q = torch.eye(3, 5, dtype=torch.float64)
            p.requires_grad_()
            add_orthogonality_gradient([(p, q, mask)], 2.0, power)
            norms[power, size] = float(p.grad.norm())
    # weight 2 over the two Gram errors of one matrix: ‖∇‖ = 2 · ‖P E‖ / ‖E‖ ≈ 2 for P near orthonormal
    assert norms[1, 1e-2] == pytest.approx(2.0, rel=0.1)
    assert norms[1, 1e-5] == pytest.approx(2.0, rel=0.1)
    assert norms[2, 1e-5] < 1e-2 * norms[2, 1e-2]


def test_descending_the_gradient_makes_vectors_orthonormal():
    factors = matrices([(8, 7, [True, True, True, False])], 3)
    p, q, _ = factors[0]
    before = float(orthogonality_error(factors).detach())
    for _ in range(300):
        p.grad = q.grad = None
        add_orthogonality_gradient(factors, 1.0, power=2)
        with torch.no_grad():
            p -= 0.02 * p.grad
            q -= 0.02 * q.grad
    assert float(orthogonality_error(factors).detach()) < 1e-3 * before


# --- through the model ----------


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([1, 2]), st.sampled_from([0.1, 0.5]))
def test_the_models_penalty_is_weight_times_the_mean_over_all_matrices(seed, power, weight):
    config = moving(orth_reg_weight=weight, orth_reg_power=power)
    model = wrapped(config)
    scramble(model, seed)
    model.base_model.add_orthogonality_gradient()
    copies = []
    for layer in adapters(model):
        p, _, q = (t.detach().double().requires_grad_() for t in layer.factors("default"))
        copies.append((p, q, layer.flexlora_active["default"]))
    gradients = torch.autograd.grad(weight * plain_penalty(copies, power), [t for p, q, _ in copies for t in (p, q)])
    found = [layer.factors("default")[i].grad for layer in adapters(model) for i in (0, 2)]
    for got, expected in zip(found, gradients, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-4, atol=2e-6)
    assert all(layer.flexlora_lambda["default"].grad is None for layer in adapters(model)), "λ is not penalised"


def test_weight_zero_as_released_adds_nothing():
    model = wrapped(moving(orth_reg_weight=0.0))
    model.base_model.add_orthogonality_gradient()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_event_records_the_unweighted_error_of_power_one():
    config = moving(orth_reg_weight=0.3, orth_reg_power=2)
    model = wrapped(config)
    scramble(model, 4)
    copies = [
        (*(layer.factors("default")[i].detach().double() for i in (0, 2)), layer.flexlora_active["default"])
        for layer in adapters(model)
    ]
    expected = float(plain_penalty(copies, 1))
    event = RankAllocator(model, config, "default").hold_event(1)
    assert event.orthogonality_error == pytest.approx(expected, rel=1e-5)
