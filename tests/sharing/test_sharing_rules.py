"""The rules of a sharing plan against their definitions: similarities, intervals, ranks and counts."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from flexlora.sharing import Interval, SharingOptions, plan_of
from flexlora.sharing.gradients import GradientStatistics, statistics_of
from flexlora.sharing.partition import dynamic_programming, greedy, thresholds
from flexlora.sharing.ranks import allocate, largest_remainder, rank_entropies
from flexlora.sharing.similarity import (
    RMI_LIMIT,
    negative_kl,
    negative_l1,
    negative_l2,
    proxy_entropy,
    relative_mutual_information,
    scale_free_similarity,
)

sigmas = st.floats(1e-6, 0.1)
means = st.floats(-0.2, 0.2)


def gaussian(sigma: float, mean: float = 0.0, elements: int = 1000, name: str = "layer.0.query") -> GradientStatistics:
    return GradientStatistics(name, elements, mean, sigma**2 * (elements - 1))


def drawn(sigma: float, seed: int) -> torch.Tensor:
    return sigma * torch.randn(12, 9, generator=torch.Generator().manual_seed(seed))


# --- similarities -----------------------------------------------------------------------------------------------------


@given(sigmas, sigmas, st.integers(0, 99))
def test_rmi_is_its_definition_on_the_elements(one, two, seed):
    first, second = drawn(one, seed), drawn(two, seed + 1)

    def entropy(values: np.ndarray) -> float:
        return math.log(max(1e-8, values.std(ddof=1))) + 0.5 * math.log(2 * math.pi) + 0.5

    x, y = first.double().numpy().ravel(), second.double().numpy().ravel()
    h = entropy(x), entropy(y)
    expected = (sum(h) - entropy(np.concatenate([x, y]))) / min(h)
    found = relative_mutual_information(statistics_of("a", first), statistics_of("b", second))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(sigmas, sigmas)
def test_rmi_has_a_closed_form_that_sees_the_two_scales_only(one, two):
    found = relative_mutual_information(gaussian(one, elements=10**9), gaussian(two, elements=10**9))
    rho = min(one, two) / max(one, two)
    d = 0.5 * math.log(2 / (1 + rho**2))
    assert found == pytest.approx(1 + d / proxy_entropy(min(one, two)), rel=1e-6)
    assert -1e-9 <= found <= 1 + 1e-9


def test_a_copy_noise_and_a_shuffle_of_one_scale_are_equally_similar():
    """RMI compares scales. A layer with twice the gradient is as similar as independent noise of that scale."""
    values = drawn(0.01, 3)
    shuffled = values.flatten()[torch.randperm(values.numel(), generator=torch.Generator().manual_seed(0))]
    noise = drawn(0.01, 4)
    noise = (noise - noise.mean()) / noise.std() * values.std() + values.mean()
    found = [
        relative_mutual_information(statistics_of("a", values), statistics_of("b", 2 * other))
        for other in (values, shuffled, noise)
    ]
    assert found == pytest.approx([found[0]] * 3, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 30.0])
def test_rmi_is_refused_where_it_is_no_similarity(sigma):
    assert proxy_entropy(sigma) >= RMI_LIMIT
    with pytest.raises(ValueError, match=r"layer\.4\.key has proxy entropy .*rmi_scale_free"):
        relative_mutual_information(gaussian(sigma, name="layer.4.key"), gaussian(2 * sigma))
    assert 0 < scale_free_similarity(gaussian(sigma), gaussian(2 * sigma)) < 1


@given(sigmas, sigmas, st.floats(0.02, 1e4))  # so that no σ is below 1e-8
def test_the_scale_free_similarity_ignores_the_losss_scale(one, two, scale):
    found = scale_free_similarity(gaussian(one), gaussian(two))
    assert scale_free_similarity(gaussian(one * scale), gaussian(two * scale)) == pytest.approx(found, rel=1e-9)
    assert 0 < found <= 1
    assert scale_free_similarity(gaussian(one), gaussian(one)) == 1


@given(st.floats(0.05, 1), st.floats(0.05, 1), means, means)
def test_distances_of_two_gaussians_equal_their_integrals(one, two, left, right):
    x = np.linspace(-8, 8, 400_001)

    def density(sigma: float, mean: float) -> np.ndarray:
        return np.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))

    def logarithm(sigma: float, mean: float) -> np.ndarray:
        return -0.5 * ((x - mean) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))

    p, q = density(one, left), density(two, right)
    logs = logarithm(one, left) - logarithm(two, right)
    pair = gaussian(one, left), gaussian(two, right)
    assert negative_l1(*pair) == pytest.approx(-np.trapezoid(np.abs(p - q), x), abs=1e-6)
    assert negative_l2(*pair) ** 2 == pytest.approx(np.trapezoid((p - q) ** 2, x), abs=1e-6)
    assert negative_kl(*pair) == pytest.approx(-0.5 * np.trapezoid((p - q) * logs, x), rel=1e-5, abs=1e-6)


# --- intervals --------------------------------------------------------------------------------------------------------


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float]]:
    count = draw(st.integers(1, 7))
    matrix = [[0.0] * count for _ in range(count)]
    for i, j in itertools.combinations(range(count), 2):
        matrix[i][j] = matrix[j][i] = draw(st.integers(-8, 8)) / 8
    return matrix


def partitions(count: int) -> list[list[tuple[int, int]]]:
    """Every way to cut `count` layers into intervals."""
    found = []
    for cuts in itertools.product([False, True], repeat=count - 1):
        starts = [0, *(i + 1 for i, cut in enumerate(cuts) if cut)]
        found.append(list(zip(starts, [*starts[1:], count], strict=True)))
    return found


def objective(matrix: list[list[float]], intervals: list[tuple[int, int]]) -> float:
    limits = thresholds(matrix)
    return sum(matrix[start][j] - limits[start] for start, stop in intervals for j in range(start + 1, stop))


@given(matrices())
def test_greedy_intervals_take_layers_while_they_are_similar_to_the_first(matrix):
    count = len(matrix)
    intervals, start = [], 0
    while start < count:
        others = [matrix[start][j] for j in range(count) if j != start]
        limit = sum(others) / len(others) if others else 0
        stop = start + 1
        while stop < count and matrix[start][stop] >= limit - 1e-12:
            stop += 1
        intervals.append((start, stop))
        start = stop
    assert greedy(matrix) == intervals


@given(matrices())
def test_dynamic_programming_finds_the_best_of_all_partitions(matrix):
    found = dynamic_programming(matrix)
    every = partitions(len(matrix))
    assert found in every
    best = max(objective(matrix, intervals) for intervals in every)
    assert objective(matrix, found) == pytest.approx(best, abs=1e-9)
    equal = [intervals for intervals in every if objective(matrix, intervals) >= best - 1e-9]
    assert len(found) == min(map(len, equal))


@given(st.integers(1, 40), sigmas)
def test_equal_layers_share_one_adapter(count, sigma):
    layers = [gaussian(sigma) for _ in range(count)]
    matrix = [[0.0 if a is b else scale_free_similarity(a, b) for b in layers] for a in layers]
    assert greedy(matrix) == [(0, count)]


def test_two_layers_always_share_under_a_mean_threshold():
    matrix = [[0.0, 0.01], [0.01, 0.0]]
    assert greedy(matrix) == [(0, 2)]


# --- ranks ------------------------------------------------------------------------------------------------------------

negative = st.lists(st.lists(st.floats(-12, -0.5), min_size=1, max_size=4), min_size=1, max_size=8)
positive = st.lists(st.lists(st.floats(0.5, 12), min_size=1, max_size=4), min_size=1, max_size=8)


@given(
    negative | positive,
    st.integers(1, 32),
    st.sampled_from(["intervals", "layers", "layer_weighted"]),
    st.sampled_from(["max", "mean", "min"]),
)
def test_ranks_are_rounded_shares_of_the_budget(entropies, r, budget, kind):
    options = SharingOptions(budget=budget, interval_entropy=kind)
    of_interval = [{"max": max, "min": min, "mean": np.mean}[kind](values) for values in entropies]
    layers = [value for value, values in zip(of_interval, entropies, strict=True) for _ in values]
    expected = []
    for value in of_interval:
        if budget == "layer_weighted":
            exact = value / np.mean(layers) * r
        else:
            exact = value / sum(of_interval) * (len(of_interval) if budget == "intervals" else len(layers)) * r
        expected.append((max(1, math.floor(exact + 0.5)), exact))
    found = allocate(entropies, r, options)
    assume(all(abs(exact - math.floor(exact) - 0.5) > 1e-6 for _, exact in expected))  # a tie rounds to even
    assert found == [rank for rank, _ in expected]


@given(st.lists(st.floats(0, 30), min_size=1, max_size=12))
def test_the_largest_remainder_keeps_the_sum(exact):
    ranks = largest_remainder(exact)
    assert all(rank >= 1 for rank in ranks)
    assert sum(ranks) == max(len(exact), round(math.fsum(exact)))
    if all(value >= 1 for value in exact):
        assert all(abs(rank - value) < 1 for rank, value in zip(ranks, exact, strict=True))


def test_literal_ranks_grow_as_gradients_shrink_and_informations_ranks_grow_with_them():
    sizes = [1e-4, 3e-4, 1e-3]
    literal = allocate([[h] for h in rank_entropies(sizes, "literal")], 8, SharingOptions())
    assert literal == sorted(literal, reverse=True)
    assert literal[0] > literal[-1]
    information = allocate([[h] for h in rank_entropies(sizes, "information")], 8, SharingOptions())
    assert information == sorted(information)
    assert information[0] < information[-1]


@given(st.lists(sigmas, min_size=2, max_size=8), st.floats(1e-2, 1e2))
def test_informations_entropies_are_positive_and_ignore_the_losss_scale(sizes, scale):
    found = rank_entropies(sizes, "information")
    assert min(found) == pytest.approx(0.5 * math.log(2 * math.pi) + 0.5)
    assert rank_entropies([size * scale for size in sizes], "information") == pytest.approx(found)


def test_entropies_of_different_signs_are_refused_with_the_option_that_helps():
    with pytest.raises(ValueError, match="rank_entropy=information"):
        allocate([[-1.0], [0.5]], 8, SharingOptions())
    with pytest.raises(ValueError, match="rank_entropy=information"):
        allocate([[0.0], [0.0]], 8, SharingOptions())


# --- counts -----------------------------------------------------------------------------------------------------------


def plan_with(shapes: dict[str, tuple[int, int]], layers: int, r: int = 8, **options):
    names = [f"layers.{layer}.{kind}" for layer in range(layers) for kind in shapes]
    statistics = {name: gaussian(0.01, name=name) for name in names}
    of_names = {name: shapes[name.split(".")[2]] for name in names}
    return plan_of(statistics, of_names, r, SharingOptions(**options), batches=1)


LLAMA = {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096)}
ROBERTA = {"q": (768, 768), "v": (768, 768)}
CLIP = {"q": (768, 768), "k": (768, 768), "v": (768, 768), "o": (768, 768), "up": (768, 3072), "down": (3072, 768)}


@pytest.mark.parametrize(
    ("shapes", "layers", "r", "lora", "share_lora"),
    [
        (LLAMA, 32, 8, 6_815_744, 2_752_512),
        (LLAMA, 32, 4, 3_407_872, None),
        (ROBERTA, 12, 8, 294_912, 159_744),
        (CLIP, 12, 8, 1_327_104, 718_848),
    ],
)
def test_counts_without_sharing_are_those_of_lora_and_share_lora(shapes, layers, r, lora, share_lora):
    plan = plan_with(shapes, layers, r, lss=False, hra=False)
    assert plan.parameters() == lora
    if share_lora is not None:
        assert plan.parameters(one_a=True) == share_lora


def test_the_papers_count_of_e2_share_lora_on_clip():
    """0.39M of its table: six intervals of the twelve layers, and a largest rank of 9."""
    plan = plan_with(CLIP, 12)
    assert [len(kind.intervals) for kind in plan.types] == [1] * 6  # the layers are equal
    intervals = tuple(Interval((f"layers.{k}",), rank) for k, rank in enumerate([9, 8, 8, 8, 8, 7]))
    six = replace(plan, types=tuple(replace(kind, intervals=intervals) for kind in plan.types))
    assert six.parameters(one_a=True) == 393_984


def test_a_rank_is_at_most_the_smaller_side():
    assert set(plan_with({"q": (3, 64)}, 4, r=8).ranks.values()) == {3}
