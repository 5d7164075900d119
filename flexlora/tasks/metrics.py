"""Our own `evaluate.Metric` classes, so that no metric is fetched from the network.

All metrics are in [-1, 1], and higher is better. An undefined metric is 0.0, the score of an uninformative prediction:
a correlation with a constant side, or F1 without any positive.
"""

import sys
from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from flexlora.errors import UserError, did_you_mean
from flexlora.plugins import load_named


class _Metric(evaluate.Metric):
    """Keeps its examples in memory, so that two processes do not share cache files."""

    value_type = "int64"
    description = ""
    scores: tuple[str, ...] = ()
    """The names of the metrics that `compute` returns."""
    num_labels = (2, sys.maxsize)
    """The smallest and the largest supported `num_labels`; 1 means regression."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **options})

    def _build_data_dir(self) -> str:
        """Return the folder without creating it: the library would create it in a cache that may be read-only."""
        return self._data_dir_root if self.keep_in_memory else super()._build_data_dir()

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value(self.value_type)
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions and references: one number for each example",
            features=datasets.Features({"predictions": value, "references": value}),
        )


class MatthewsCorrelation(_Metric):
    """Matthews correlation of classes, in [-1, 1]; 0 if all predictions or all references are the same class."""

    description = "Matthews correlation coefficient"
    scores = ("matthews_correlation",)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        # scikit-learn returns 0.0 for a constant side, but prints warnings if both sides have only one class.
        one_class = len({*predictions, *references}) == 1
        return {"matthews_correlation": 0.0 if one_class else float(matthews_corrcoef(references, predictions))}


class Accuracy(_Metric):
    """The share of correct classes, in [0, 1]."""

    description = "Accuracy"
    scores = ("accuracy",)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class AccuracyF1(_Metric):
    """Accuracy, F1 of class 1 (0 if class 1 does not occur), and their mean, GLUE's metric for MRPC and QQP."""

    description = "Accuracy, F1 of class 1, and their mean"
    num_labels = (2, 2)
    scores = ("accuracy", "f1", "accuracy_f1_mean")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        accuracy = float(accuracy_score(references, predictions))
        f1 = float(f1_score(references, predictions, pos_label=1, average="binary", zero_division=0.0))
        return {"accuracy": accuracy, "f1": f1, "accuracy_f1_mean": (accuracy + f1) / 2}


class AccuracyMacroF1(_Metric):
    """Accuracy, and the mean of the F1 of all classes that occur, each with the same weight."""

    description = "Accuracy and macro-F1"
    scores = ("accuracy", "macro_f1")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        accuracy = float(accuracy_score(references, predictions))
        return {
            "accuracy": accuracy,
            "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0.0)),
        }


class PearsonSpearman(_Metric):
    """Pearson and Spearman correlation, and their mean, GLUE's metric for STS-B.

    All are 0 if a side is constant up to rounding, or not finite.
    """

    value_type = "float64"
    description = "Pearson and Spearman correlation, and their mean"
    num_labels = (1, 1)
    scores = ("pearson", "spearman", "pearson_spearman_mean")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predicted, true = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
        pearson, spearman = 0.0, 0.0
        if _varies(predicted) and _varies(true):
            pearson = float(stats.pearsonr(predicted, true).statistic)
            spearman = float(stats.spearmanr(predicted, true).statistic)
        return {"pearson": pearson, "spearman": spearman, "pearson_spearman_mean": (pearson + spearman) / 2}


def _varies(values: np.ndarray[Any, Any]) -> bool:
    """Return whether a correlation with `values` is defined: scipy finds no spread below 1e-13 of the mean."""
    if not np.isfinite(values).all():
        return False
    return bool(np.linalg.norm(values - values.mean()) > 1e-13 * abs(values.mean()))


METRICS: dict[str, type[_Metric]] = {
    "matthews_correlation": MatthewsCorrelation,
    "accuracy": Accuracy,
    "accuracy_f1": AccuracyF1,
    "accuracy_macro_f1": AccuracyMacroF1,
    "pearson_spearman": PearsonSpearman,
}


class OwnMetric:
    """A metric of the user: a function of predictions and references that returns a number, the score of its name."""

    num_labels = (1, sys.maxsize)

    def __init__(self, name: str) -> None:
        module, _, function = name.rpartition(".")
        self.scores = (function,)
        self._compute: Callable[[list[Any], list[Any]], Any] = load_named(module, "task.metric", function)

    def compute(self, *, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        """Compute the score.

        Raises:
            UserError: the function returns no finite number.
        """
        (name,) = self.scores
        value = self._compute(predictions, references)
        if not isinstance(value, int | float | np.number) or not np.isfinite(value):
            raise UserError(f"task.metric: {name} returns {value!r}: it must return a finite number, higher is better")
        return {name: float(value)}


def load_metric(name: str) -> _Metric | OwnMetric:
    """Make a fresh metric by its name in `task.metric`. `module.function` is a function of the user.

    Raises:
        UserError: the metric does not exist.
    """
    if "." in name:
        return OwnMetric(name)
    if name not in METRICS:
        near = did_you_mean(name, METRICS)
        raise UserError(f"task.metric: there is no metric '{name}'.{near} There are: {', '.join(METRICS)}.")
    return METRICS[name]()
