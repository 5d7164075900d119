"""Metrics: as scikit-learn and as the formula by hand, and defined on degenerate predictions."""

import math

import numpy as np
import pytest

from flexlora.errors import UserError
from flexlora.tasks.metrics import load_metric


def matthews(predictions, references):
    """The textbook formula, 0 where its denominator is."""
    pairs = list(zip(predictions, references, strict=True))
    tp, tn = pairs.count((1, 1)), pairs.count((0, 0))
    fp, fn = pairs.count((1, 0)), pairs.count((0, 1))
    denominator = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / denominator if denominator else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_matthews_is_the_textbook_formula(seed):
    draw = np.random.default_rng(seed)
    references = draw.integers(0, 2, 200).tolist()
    predictions = [r if draw.random() < 0.7 else 1 - r for r in references]
    score = load_metric("matthews_correlation").compute(predictions=predictions, references=references)
    assert score["matthews_correlation"] == pytest.approx(matthews(predictions, references), abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.0),
        ([1, 0, 1, 0], [0, 0, 0, 0], 0.0),
        ([1, 0, 1, 0], [1, 0, 1, 0], 1.0),
        ([0, 1, 0, 1], [1, 0, 1, 0], -1.0),
    ],
    ids=["one class predicted", "one class to predict", "all right", "all wrong"],
)
def test_matthews_at_its_ends(predictions, references, expected):
    score = load_metric("matthews_correlation").compute(predictions=predictions, references=references)
    assert score == {"matthews_correlation": expected}


def test_an_unknown_metric_is_one_line():
    with pytest.raises(UserError, match="Did you mean matthews_correlation"):
        load_metric("mathews_correlation")
