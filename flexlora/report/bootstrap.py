"""Percentile bootstrap over the examples: how much a figure of one seed, or a difference of two figures, varies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flexlora.report.record_values import number, scores_of
from flexlora.results.collect import Run
from flexlora.results.predictions import BEST, LAST, read_answers

SAMPLES = 1000
LEVEL = 0.95
# Resampled examples are drawn in blocks of at most this many entries: 16 MB of float64.
BLOCK = 2_000_000
TOLERANCE = 1e-6

Array = npt.NDArray[Any]
Score = Callable[[Array, Array], Array]


def interval(run: Run, metric: str, evaluation: str) -> tuple[float, float] | None:
    """Return the 95 % interval of a figure of the `last` or `best` evaluation, from `SAMPLES` resamplings of examples.

    Return None if the run's predictions or labels are missing, are of another evaluation, or do not give its figure.
    """
    found = _measured(run, metric, evaluation)
    return None if found is None else _middle(_resampled(found))


def difference_interval(run: Run, reference: Run, metric: str, evaluation: str) -> tuple[float, float] | None:
    """Return the 95 % interval of `run`'s figure less `reference`'s. Each resampling is the same for both runs.

    Return None if one of them has no `interval`, or if the two were not measured on the same examples.
    """
    ours, other = _measured(run, metric, evaluation), _measured(reference, metric, evaluation)
    if ours is None or other is None or not np.array_equal(ours.labels, other.labels):
        return None
    return _middle(_resampled(ours) - _resampled(other))


class _Measured(NamedTuple):
    """The predictions and labels from which a figure was computed, (examples) each."""

    score: Score
    predictions: Array
    labels: Array


def _measured(run: Run, metric: str, evaluation: str) -> _Measured | None:
    result = scores_of(run.record, evaluation)
    try:
        answers = read_answers(run.path / {"last": LAST, "best": BEST}[evaluation])
    except ValueError:
        return None
    found = _score_of(metric, [*answers.predictions])
    if found is None or found[0] not in answers.labels or answers.step != result.get("step"):
        return None
    split, score = found
    predictions, labels = answers.predictions[split], answers.labels[split]
    value = number(result.get(metric))
    if value is None or not all(np.issubdtype(values.dtype, np.number) for values in (predictions, labels)):
        return None
    if not abs(float(score(predictions[None], labels[None])[0]) - value) <= TOLERANCE:
        return None
    return _Measured(score, predictions, labels)


def _resampled(measured: _Measured) -> Array:
    """Return the figure of each resampling. Figures over the same number of examples get the same draws."""
    score, predictions, labels = measured
    draw = np.random.default_rng(0)
    rows = max(1, BLOCK // len(labels))
    values = []
    for first in range(0, SAMPLES, rows):
        chosen = draw.integers(len(labels), size=(min(rows, SAMPLES - first), len(labels)))
        values.append(score(predictions[chosen], labels[chosen]))
    return np.concatenate(values)


def _middle(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _score_of(metric: str, splits: list[str]) -> tuple[str, Score] | None:
    """Return the split of a figure and the function that computes it. The figure's name may begin with its split."""
    for split in splits:
        name = metric.removeprefix(f"{split}_")
        if name in SCORES and (name != metric or len(splits) == 1):
            return split, SCORES[name]
    return None


# Each of these functions takes predictions and labels (samples × examples) and returns one figure for each sample. An
# undefined figure is 0, as in `flexlora.tasks.metrics`.


def accuracy(predictions: Array, labels: Array) -> Array:
    """Return the share of examples with a correct prediction."""
    return np.asarray((predictions == labels).mean(-1))


def token_accuracy(predictions: Array, labels: Array) -> Array:
    """Return the share of right tokens: the predictions are their numbers, and the labels those of all tokens."""
    return _divided(predictions.sum(-1), labels.sum(-1))


def f1(predictions: Array, labels: Array) -> Array:
    """Return F1 of class 1."""
    both = ((predictions == 1) & (labels == 1)).sum(-1)
    return _divided(2 * both, (predictions == 1).sum(-1) + (labels == 1).sum(-1))


def matthews(predictions: Array, labels: Array) -> Array:
    """Return Matthews' correlation of two classes. It equals Pearson's correlation of the class numbers."""
    return pearson(predictions, labels)


def pearson(predictions: Array, labels: Array) -> Array:
    """Return Pearson's correlation."""
    one, other = (values - values.mean(-1, keepdims=True) for values in (predictions, labels))
    return _divided((one * other).sum(-1), np.sqrt((one**2).sum(-1) * (other**2).sum(-1)))


def spearman(predictions: Array, labels: Array) -> Array:
    """Return Spearman's correlation: Pearson's correlation of the ranks. Tied values share their mean rank."""
    return pearson(*(np.stack([places(row) for row in values]) for values in (predictions, labels)))


def places(values: Array) -> Array:
    """Return the rank of each value, counted from 1. Tied values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def _divided(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)


def _mean(*scores: Score) -> Score:
    return lambda predictions, labels: np.mean([score(predictions, labels) for score in scores], axis=0)


SCORES: dict[str, Score] = {
    "accuracy": accuracy,
    "exact_match": accuracy,  # of the same numbers as token_accuracy
    "token_accuracy": token_accuracy,
    "f1": f1,
    "accuracy_f1_mean": _mean(accuracy, f1),
    "matthews_correlation": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "pearson_spearman_mean": _mean(pearson, spearman),
}
