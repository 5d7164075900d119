"""Scores against formulas of paper.md written out in plain Python floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders import adapters, bank, set_spectrum, single
from hypothesis import given
from hypothesis import strategies as st

from flexlora.tuner import importance

EPS = 1e-8
ENTROPIES = ["entropy", "inverted_entropy", "elementwise_energy_entropy", "matrixwise_energy_entropy"]


def entropy(lams: list[float]) -> float:
    squares = [float(lam) ** 2 for lam in lams]
    total = math.fsum(squares)
    shares = [square / total for square in squares]
    raw = -math.fsum(s * math.log(s + EPS) for s in shares) / math.log(len(lams))
    return min(1.0, max(0.0, raw))


def elementwise(lams: list[float]) -> float:
    squares = [float(lam) ** 2 for lam in lams]
    total = math.fsum(squares)
    parts = [sq * (-(sq / total) * math.log(sq / total + EPS)) for sq in squares]
    return max(0.0, math.fsum(parts) / math.log(len(lams)))


REFERENCE = {
    "entropy": entropy,
    "inverted_entropy": lambda lams: 1.0 - entropy(lams),
    "nuclear": lambda lams: math.fsum(abs(x) for x in lams) / len(lams),
    "frobenius": lambda lams: math.sqrt(math.fsum(x * x for x in lams)) / len(lams),
    "elementwise_energy_entropy": elementwise,
    "matrixwise_energy_entropy": lambda lams: math.fsum(x * x for x in lams) * entropy(lams),
}


def spread(spectra: list[list[float]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, active), each spectrum scattered over random slots, with rubbish where inactive."""
    rng = np.random.default_rng(seed)
    width = max(map(len, spectra)) + 3
    values = torch.from_numpy(rng.normal(size=(len(spectra), width)) * 100)
    active = torch.zeros(len(spectra), width, dtype=torch.bool)
    for i, spectrum in enumerate(spectra):
        slots = np.sort(rng.choice(width, len(spectrum), replace=False))
        active[i, slots] = True
        values[i, slots] = torch.tensor(spectrum, dtype=torch.float64)
    return values, active


lam = st.one_of(
    st.floats(-10, 10, allow_nan=False, width=32),
    st.sampled_from([0.0, 1e-30, -1e-30, 1e30, -1e30, 1.0, -1.0, 0.5]),
)
spectrum = st.lists(lam, min_size=2, max_size=9).filter(lambda xs: any(abs(x) > 1e-35 for x in xs))


@given(st.lists(spectrum, min_size=1, max_size=4), st.integers(0, 2**20))
def test_every_spectral_score_equals_its_formula(spectra, seed):
    values, active = spread(spectra, seed)
    for name, formula in REFERENCE.items():
        got = importance.METRICS[name].score(values, active)
        assert got.dtype == torch.float64
        for score, lams in zip(got.tolist(), spectra, strict=True):
            expected = formula(lams)
            assert score == pytest.approx(expected, rel=1e-9, abs=1e-12), name


@given(spectrum, st.integers(0, 2**20))
def test_entropy_lies_in_0_1(lams, seed):
    values, active = spread([lams], seed)
    score = float(importance.spectral_entropy(values, active))
    assert 0.0 <= score <= 1.0


@pytest.mark.parametrize("r", range(2, 30))
def test_entropy_never_leaves_the_unit_interval_at_its_ends(r):
    active = torch.ones(1, r, dtype=torch.bool)
    uniform = torch.full((1, r), 0.37, dtype=torch.float64)
    peaked = torch.zeros(1, r, dtype=torch.float64)
    peaked[0, r - 1] = -4.0
    # -log(1 + 1e-8) is negative: unclamped this is about -1e-8/log r.
    assert float(importance.spectral_entropy(peaked, active)) == 0.0
    assert 1.0 - 1e-6 < float(importance.spectral_entropy(uniform, active)) <= 1.0


@given(spectrum, st.sampled_from([1e-200, 1e-150, 1e-30, 1e30, 1e150, 1e200]), st.integers(0, 99))
def test_entropy_does_not_depend_on_the_scale(lams, factor, seed):
    if any(0 < abs(x) < 1e-3 or abs(x) > 1e3 for x in lams):
        lams = [math.copysign(1.0, x) if x else 0.0 for x in lams]
    values, active = spread([lams], seed)
    plain = importance.spectral_entropy(values, active)
    scaled = importance.spectral_entropy(values * factor, active)
    torch.testing.assert_close(plain, scaled, rtol=1e-9, atol=1e-12)


@given(spectrum, st.integers(0, 99))
def test_appendix_b_the_uniform_spectrum_is_the_maximum(lams, seed):
    values, active = spread([lams, [1.0] * len(lams)], seed)
    score, uniform = importance.spectral_entropy(values, active).tolist()
    # ε moves the maximum by less than r·ε/log r
    assert score <= uniform + len(lams) * EPS / math.log(2)
    assert uniform == pytest.approx(1.0, abs=1e-6)


def test_appendix_c_monotonicity_is_false():
    """The largest share does not contribute most: why pruning goes by |λ| and not by -s log s."""
    shares = torch.tensor([[0.9, 0.05, 0.05]], dtype=torch.float64)
    active = torch.ones(1, 3, dtype=torch.bool)
    largest, second, third = importance.entropy_contributions(shares.sqrt(), active)[0].tolist()
    assert largest == pytest.approx(0.0948, abs=1e-4)
    assert second == third == pytest.approx(0.1498, abs=1e-4)
    assert largest < second


def test_contributions_sum_to_the_score_and_are_zero_where_inactive():
    values, active = spread([[1.0, 2.0, -3.0, 0.5]], 3)
    parts = importance.entropy_contributions(values, active)
    assert (parts[~active] == 0).all()
    assert float(parts.sum() / math.log(4)) == pytest.approx(entropy([1, 2, -3, 0.5]), rel=1e-12)


def test_energy_is_the_sum_of_squares():
    values, active = spread([[1.0, -2.0], [3.0, 0.0, 1e-3]], 1)
    np.testing.assert_allclose(importance.energy(values, active).numpy(), [5.0, 9.000001], rtol=1e-14)


def test_ties_give_equal_scores_bit_for_bit():
    """Same spectrum in another order and other slots: the order of matrices must then be decided by their index."""
    for permutation in ([0.5, 0.25, 0.125], [0.125, 0.5, 0.25]):
        values, active = spread([[0.5, 0.25, 0.125], permutation], 7)
        a, b = importance.spectral_entropy(values, active).tolist()
        assert a == b


# --- through the model ----------


@pytest.mark.parametrize("name", REFERENCE)
def test_scores_of_a_model_equal_the_formula_over_its_float32_lambdas(name):
    spectra = [[0.9, -0.8, 0.01], [0.1, 0.1], [1e-12, 2e-12, -1e-12, 3e-12], [3.0, 2.0, 1.0, 0.5, -0.25]]
    _, allocator = bank(spectra, importance=name)
    got = allocator.scores(allocator.snapshot(), step=1)
    for score, lams in zip(got, spectra, strict=True):
        as_float32 = [float(x) for x in np.float32(lams)]
        assert score == pytest.approx(REFERENCE[name](as_float32), rel=1e-9, abs=1e-30)


@pytest.mark.parametrize("name", ENTROPIES)
@pytest.mark.parametrize(("rank_one", "expected"), [("grow", math.inf), ("keep", None)])
def test_rank_one_grows_or_is_left_alone(name, rank_one, expected):
    _, allocator = bank([[0.3], [0.3, 0.2]], importance=name, rank_one=rank_one)
    scores = allocator.scores(allocator.snapshot(), step=1)
    assert scores[0] == expected
    assert scores[1] == pytest.approx(REFERENCE[name]([float(np.float32(x)) for x in (0.3, 0.2)]), rel=1e-9)


@pytest.mark.parametrize("name", ENTROPIES)
@pytest.mark.parametrize(("all_zero", "expected"), [("grow", math.inf), ("keep", None)])
def test_all_zero_is_left_alone_or_grows(name, all_zero, expected):
    spectra = [[0.0, 0.0, 0.0], [0.3, 0.2], [0.0]]
    _, allocator = bank(spectra, importance=name, all_zero=all_zero)
    scores = allocator.scores(allocator.snapshot(), step=1)
    assert scores[0] == expected
    assert scores[2] == expected, "an all-zero matrix of rank 1 is all-zero first"
    assert math.isfinite(scores[1])


@pytest.mark.parametrize("name", ["nuclear", "frobenius"])
def test_norms_are_defined_everywhere(name):
    _, allocator = bank([[0.0, 0.0], [0.3], [0.0]], importance=name)
    assert allocator.scores(allocator.snapshot(), step=1) == [0.0, pytest.approx(0.3, rel=1e-6), 0.0]


def test_random_is_reproducible_by_seed_and_step():
    def draw(seed, step):
        _, allocator = bank([[1.0, 0.5]] * 6, importance="random", seed=seed)
        return allocator.scores(allocator.snapshot(), step)

    assert draw(3, 10) == draw(3, 10)
    assert draw(3, 10) != draw(3, 11)
    assert draw(3, 10) != draw(4, 10)
    assert len(set(draw(3, 10))) == 6
    assert all(0 <= x < 1 for x in draw(3, 10))


def test_random_scores_do_not_touch_the_global_generator():
    _, allocator = bank([[1.0, 0.5]] * 3, importance="random")
    state = torch.get_rng_state()
    allocator.hold_event(1)
    assert torch.equal(state, torch.get_rng_state())


# --- exact spectrum ----------


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.booleans(), min_size=1, max_size=7).filter(any),
    st.integers(0, 2**16),
)
def test_exact_spectrum_is_that_of_the_product(out, width, mask, seed):
    """Also where out or in is below the capacity."""
    rng = np.random.default_rng(seed)
    p, lams, q = rng.normal(size=(out, len(mask))), rng.normal(size=len(mask)), rng.normal(size=(len(mask), width))
    keep = np.array(mask)
    dense = (p[:, keep] * lams[keep]) @ q[keep]
    expected = np.linalg.svd(dense, compute_uv=False)
    got = importance.exact_spectrum(*map(torch.from_numpy, (p, lams, q)), torch.tensor(mask)).numpy()
    assert (np.diff(got) <= 1e-12).all()
    length = max(len(got), len(expected))
    got, expected = (np.pad(x, (0, length - len(x))) for x in (got, expected))
    np.testing.assert_allclose(got, expected, atol=1e-10)


def test_exact_spectrum_of_a_model_scores_the_dense_product():
    """λ overestimates a direction's share if the vectors are not orthonormal."""
    spectra = [[0.9, -0.8, 0.01], [0.1, 0.4], [0.7, 0.2, 0.2, 0.1]]
    model, allocator = bank(spectra, spectrum="exact")
    got = allocator.scores(allocator.snapshot(), step=1)
    by_lambda = []
    for score, layer, lams in zip(got, adapters(model), spectra, strict=True):
        p, values, q = (t.detach().double().numpy() for t in layer.factors("default"))
        singular = np.linalg.svd((p * values) @ q, compute_uv=False)[: len(lams)]
        assert score == pytest.approx(entropy(singular.tolist()), rel=1e-8)
        by_lambda.append(entropy([float(np.float32(x)) for x in lams]))
    assert got != pytest.approx(by_lambda, rel=1e-3)


def test_exact_spectrum_of_a_model_with_fewer_rows_than_slots():
    layer, _ = single(3, 8, [True, True, False, True, True, True])
    p, values, q = (t.detach() for t in layer.factors("default"))
    got = importance.exact_spectrum(p, values, q, layer.flexlora_active["default"])
    dense = (p.double() * values.double()) @ q.double()
    expected = torch.linalg.svdvals(dense)
    torch.testing.assert_close(got[: expected.numel()], expected, rtol=1e-6, atol=1e-6)


def test_scores_follow_lambda_through_the_model():
    model, allocator = bank([[1.0, 1.0], [1.0, 1.0]])
    before = allocator.scores(allocator.snapshot(), 1)
    set_spectrum(adapters(model)[0], [1.0, 0.1])
    after = allocator.scores(allocator.snapshot(), 1)
    assert after[0] < before[0]
    assert after[1] == before[1]


# --- sensitivity ----------


def test_sensitivity_equals_adaloras_recursion_over_several_steps():
    beta1, beta2 = 0.7, 0.6
    spectra = [[0.9, -0.8, 0.01], [0.1, 0.4]]
    model, allocator = bank(spectra, importance="sensitivity", beta1=beta1, beta2=beta2)
    layers = adapters(model)
    rng = np.random.default_rng(0)
    state = [
        [(np.zeros(t.shape), np.zeros(t.shape)) for t in layer.factors("default")] for layer in layers
    ]  # (average, uncertainty)
    for _ in range(5):
        for layer, tracked in zip(layers, state, strict=True):
            active = layer.flexlora_active["default"].numpy()
            masks = (active[None, :], active, active[:, None])
            for i, (parameter, mask) in enumerate(zip(layer.factors("default"), masks, strict=True)):
                gradient = rng.normal(size=parameter.shape) * mask
                parameter.grad = torch.from_numpy(gradient).float()
                now = np.abs(parameter.detach().double().numpy() * parameter.grad.double().numpy())
                average, uncertainty = tracked[i]
                average = beta1 * average + (1 - beta1) * now
                uncertainty = beta2 * uncertainty + (1 - beta2) * np.abs(now - average)
                tracked[i] = (average, uncertainty)
        allocator.observe_gradients()
        with torch.no_grad():  # weights move, too
            for layer in layers:
                for parameter in layer.factors("default"):
                    parameter.mul_(0.9)
    got = allocator.scores(allocator.snapshot(), step=1)
    for score, tracked, lams in zip(got, state, spectra, strict=True):
        (ap, up), (al, ul), (aq, uq) = tracked
        per_direction = (ap * up).mean(0) + al * ul + (aq * uq).mean(1)
        assert score == pytest.approx(float(per_direction[: len(lams)].mean()), rel=1e-4)


def test_sensitivity_divides_out_a_loss_scale():
    results = []
    for scale in (1.0, 1024.0, torch.tensor(1024.0)):
        model, allocator = bank([[0.9, -0.8, 0.01], [0.1, 0.4]], importance="sensitivity")
        torch.manual_seed(5)
        for layer in adapters(model):
            for parameter in layer.factors("default"):
                parameter.grad = torch.randn_like(parameter) * float(scale)
        allocator.observe_gradients(scale)
        results.append(allocator.scores(allocator.snapshot(), 1))
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[2] == pytest.approx(results[0], rel=1e-5)
    assert results[0][0] > 0


def test_sensitivity_prunes_the_least_sensitive_direction_not_the_smallest():
    model, allocator = bank([[0.9, 0.01], [0.5, 0.4]], importance="sensitivity", direction="prune_only", init_b=2)
    gradients = ([0.001, 90.0], [0.1, 7.0])
    for layer, gradient in zip(adapters(model), gradients, strict=True):
        p, values, q = layer.factors("default")
        p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
        values.grad = torch.zeros_like(values)
        values.grad[:2] = torch.tensor(gradient)
    allocator.observe_gradients()
    allocator.hold_event(1)
    assert [layer.slots("default").tolist() for layer in adapters(model)] == [[1], [1]]


def test_sensitivity_forgets_a_slot_that_moved():
    model, allocator = bank([[0.9, 0.01, 0.4]], importance="sensitivity", direction="prune_only")
    for parameter in adapters(model)[0].factors("default"):
        parameter.grad = torch.ones_like(parameter)
    allocator.observe_gradients()
    kept = set(range(3)) - {int(allocator.sensitivity.per_direction()[0][:3].argmin())}
    allocator.hold_event(1)
    rest = allocator.sensitivity.per_direction()[0]
    assert set(rest.nonzero().flatten().tolist()) & {0, 1, 2} == kept
    for tensors in (allocator.sensitivity.average, allocator.sensitivity.uncertainty):
        gone = ({0, 1, 2} - kept).pop()
        p, values, q = tensors
        assert not p[:, gone].any()
        assert not values[gone]
        assert not q[gone].any()


def test_sensitivity_state_round_trip():
    def trained():
        model, allocator = bank([[0.9, 0.01, 0.4], [0.3, 0.2]], importance="sensitivity")
        torch.manual_seed(1)
        for layer in adapters(model):
            for parameter in layer.factors("default"):
                parameter.grad = torch.randn_like(parameter)
        return allocator

    first = trained()
    first.observe_gradients()
    _, second = bank([[0.9, 0.01, 0.4], [0.3, 0.2]], importance="sensitivity")
    second.load_state_dict(first.state_dict())
    for a, b in zip(first.sensitivity.average, second.sensitivity.average, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first.sensitivity.uncertainty, second.sensitivity.uncertainty, strict=True):
        assert torch.equal(a, b)
