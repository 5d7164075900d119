"""Metrics equal the textbook formulas and are defined on degenerate predictions."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn

from flexlora.errors import UserError
from flexlora.tasks.metrics import METRICS, load_metric

CLASSES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
THREE = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)
NUMBERS = st.lists(
    st.tuples(st.floats(-10, 10, allow_subnormal=False, width=32), st.floats(0, 5, allow_subnormal=False, width=32)),
    min_size=2,
    max_size=40,
)


def compute(name, predictions, references):
    return load_metric(name).compute(predictions=predictions, references=references)


def matthews(predictions, references):
    """The textbook formula, or 0 if its denominator is 0."""
    pairs = list(zip(predictions, references, strict=True))
    tp, tn = pairs.count((1, 1)), pairs.count((0, 0))
    fp, fn = pairs.count((1, 0)), pairs.count((0, 1))
    denominator = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / denominator if denominator else 0.0


def f1(predictions, references):
    """The textbook formula, or 0 if its denominator is 0."""
    pairs = list(zip(predictions, references, strict=True))
    tp, wrong = pairs.count((1, 1)), pairs.count((1, 0)) + pairs.count((0, 1))
    return 2 * tp / (2 * tp + wrong) if tp + wrong else 0.0


def pearson(a, b):
    """The textbook formula, computed with numpy."""
    a, b = np.asarray(a) - np.mean(a), np.asarray(b) - np.mean(b)
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


@settings(max_examples=60, deadline=None)
@given(CLASSES)
def test_matthews_correlation_equals_the_textbook_formula(pairs):
    predictions, references = zip(*pairs, strict=True)
    score = compute("matthews_correlation", predictions, references)
    assert score == {"matthews_correlation": pytest.approx(matthews(predictions, references), abs=1e-12)}


@settings(max_examples=60, deadline=None)
@given(THREE)
def test_accuracy_is_the_share_of_correct_predictions(pairs):
    predictions, references = zip(*pairs, strict=True)
    right = sum(p == r for p, r in pairs) / len(pairs)
    assert compute("accuracy", predictions, references) == {"accuracy": pytest.approx(right, abs=1e-12)}


@settings(max_examples=60, deadline=None)
@given(CLASSES)
def test_accuracy_f1_and_their_mean_equal_the_textbook_formulas(pairs):
    predictions, references = zip(*pairs, strict=True)
    score = compute("accuracy_f1", predictions, references)
    right = sklearn.accuracy_score(references, predictions)
    assert score == {
        "accuracy": pytest.approx(right, abs=1e-12),
        "f1": pytest.approx(f1(predictions, references), abs=1e-12),
        "accuracy_f1_mean": pytest.approx((right + f1(predictions, references)) / 2, abs=1e-12),
    }


@settings(max_examples=60, deadline=None)
@given(NUMBERS)
def test_pearson_and_spearman_are_correlations_of_values_and_of_ranks(pairs):
    predictions, references = (list(side) for side in zip(*pairs, strict=True))
    assume(min(np.std(predictions), np.std(references)) > 1e-3)
    score = compute("pearson_spearman", predictions, references)
    by_value = pearson(predictions, references)
    by_rank = pearson(stats.rankdata(predictions), stats.rankdata(references))
    assert score["pearson"] == pytest.approx(by_value, abs=1e-6)
    assert score["spearman"] == pytest.approx(by_rank, abs=1e-9)
    assert score["pearson_spearman_mean"] == pytest.approx((score["pearson"] + score["spearman"]) / 2, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(METRICS)), st.data())
def test_every_metric_is_finite_and_between_minus_one_and_one(name, data):
    pairs = data.draw(NUMBERS if name == "pearson_spearman" else CLASSES)
    predictions, references = zip(*pairs, strict=True)
    score = compute(name, predictions, references)
    assert tuple(score) == METRICS[name].scores
    assert all(math.isfinite(value) and -1 - 1e-9 <= value <= 1 + 1e-9 for value in score.values())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.0),
        ([1, 0, 1, 0], [0, 0, 0, 0], 0.0),
        ([1, 0, 1, 0], [1, 0, 1, 0], 1.0),
        ([0, 1, 0, 1], [1, 0, 1, 0], -1.0),
        ([1, 1], [1, 1], 0.0),
    ],
    ids=["one class predicted", "one class to predict", "all right", "all wrong", "one class in all"],
)
def test_matthews_correlation_of_extreme_predictions(predictions, references, expected):
    assert compute("matthews_correlation", predictions, references) == {"matthews_correlation": expected}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("predictions", "references", "accuracy", "f_one"),
    [
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.5, 2 / 3),
        ([0, 0, 0, 0], [1, 0, 1, 0], 0.5, 0.0),
        ([0, 0], [0, 0], 1.0, 0.0),
        ([1, 1], [1, 1], 1.0, 1.0),
        ([1], [0], 0.0, 0.0),
    ],
    ids=["all positive", "none positive", "nothing is positive", "everything is positive", "one example"],
)
def test_f1_of_extreme_predictions(predictions, references, accuracy, f_one):
    score = compute("accuracy_f1", predictions, references)
    assert (score["accuracy"], score["f1"]) == (accuracy, pytest.approx(f_one))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ([2.5, 2.5, 2.5], [0.0, 1.0, 5.0]),
        ([0.0, 1.0, 5.0], [3.0, 3.0, 3.0]),
        ([0.1 + 0.2, 0.3, 0.3], [0.0, 1.0, 5.0]),
        ([math.nan, 1.0, 2.0], [0.0, 1.0, 5.0]),
        ([math.inf, 1.0, 2.0], [0.0, 1.0, 5.0]),
        ([1.0], [2.0]),
    ],
    ids=["constant", "constant references", "constant but for rounding", "nan", "infinite", "one example"],
)
def test_an_undefined_correlation_is_zero(predictions, references):
    score = compute("pearson_spearman", predictions, references)
    assert score == {"pearson": 0.0, "spearman": 0.0, "pearson_spearman_mean": 0.0}


def test_correlations_of_extreme_predictions():
    for sign in (1.0, -1.0):
        score = compute("pearson_spearman", [sign * x for x in (0.0, 1.0, 2.0)], [0.0, 2.5, 5.0])
        assert score == {name: pytest.approx(sign) for name in ("pearson", "spearman", "pearson_spearman_mean")}


def test_an_unknown_metric_is_refused_in_one_line():
    with pytest.raises(UserError, match="Did you mean matthews_correlation"):
        load_metric("mathews_correlation")
