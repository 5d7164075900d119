"""Metrics as `evaluate.Metric` classes of our own, so that none is fetched from a network."""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import matthews_corrcoef

from flexlora.errors import UserError, did_you_mean


class _Metric(evaluate.Metric):
    """Keeps its examples in memory: nothing is written to a cache that a second process could meet."""

    value_type = "int64"
    description = ""
    scores: tuple[str, ...] = ()
    """The names of the figures that `compute` gives."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **options})

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value(self.value_type)
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions and references: one number an example",
            features=datasets.Features({"predictions": value, "references": value}),
        )


class MatthewsCorrelation(_Metric):
    """Matthews' correlation of classes, in [-1, 1]; 0 where predictions or references are all of one class."""

    description = "Matthews correlation coefficient"
    scores = ("matthews_correlation",)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        # scikit-learn gives 0.0 for a constant side itself, and nan for no examples at all.
        return {"matthews_correlation": float(matthews_corrcoef(np.asarray(references), np.asarray(predictions)))}


METRICS: dict[str, type[_Metric]] = {"matthews_correlation": MatthewsCorrelation}


def load_metric(name: str) -> _Metric:
    """A fresh metric by its name in a task's `metric`.

    Raises:
        UserError: there is no such metric.
    """
    if name not in METRICS:
        near = did_you_mean(name, METRICS)
        raise UserError(f"task.metric: there is no '{name}'.{near} There are: {', '.join(METRICS)}.")
    return METRICS[name]()
