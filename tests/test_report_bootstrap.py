"""Intervals over the examples of a figure of one seed, against scikit-learn, scipy and a binomial law."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_helpers import figures, line_of, report, write_run
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from flexlora.report.bootstrap import SCORES, interval
from flexlora.results.collect import collect
from flexlora.results.predictions import BEST, LAST, Predictions

DRAW = np.random.default_rng(3)
LABELS = DRAW.integers(2, size=400)
ANSWERS = np.where(DRAW.random(400) < 0.8, LABELS, 1 - LABELS)


def kept(root, predictions=ANSWERS, labels=LABELS, split="validation", step=5, best=True, **fields):
    """A run whose last evaluation gave these answers."""
    folder = write_run(root, **fields)
    Predictions(folder).keep(step, {split: list(predictions)}, {split: list(labels)}, best=best)
    return folder


def of(folder, metric="accuracy", evaluation="last"):
    return interval(collect(folder).runs[0], metric, evaluation)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=12))
def test_scores_of_classes_are_scikit_learns(pairs):
    predictions, labels = np.array(pairs).T
    constant = len(set(predictions)) == 1 or len(set(labels)) == 1
    expected = {
        "accuracy": accuracy_score(labels, predictions),
        "f1": f1_score(labels, predictions, zero_division=0.0),
        "matthews_correlation": 0.0 if constant else matthews_corrcoef(labels, predictions),
    }
    for name, value in expected.items():
        both = SCORES[name](np.stack([predictions, labels]), np.stack([labels, labels]))
        assert both[0] == pytest.approx(value, abs=1e-12), name
        assert both.shape == (2,)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=3, max_size=12))
def test_correlations_are_scipys(pairs):
    predictions, labels = np.array(pairs, dtype=float).T
    constant = len(set(predictions)) == 1 or len(set(labels)) == 1
    for name, expected in (("pearson", pearsonr), ("spearman", spearmanr)):
        value = 0.0 if constant else expected(predictions, labels).statistic
        assert SCORES[name](predictions[None], labels[None])[0] == pytest.approx(value, abs=1e-9)


def test_an_interval_is_scipys_and_a_binomials(tmp_path):
    share = float((ANSWERS == LABELS).mean())
    low, high = of(kept(tmp_path, task="rte", value=share))
    sigma = (share * (1 - share) / 400) ** 0.5
    assert low == pytest.approx(share - 1.96 * sigma, abs=0.006)
    assert high == pytest.approx(share + 1.96 * sigma, abs=0.006)


def test_an_interval_of_matthews_is_scipys(tmp_path):
    value = matthews_corrcoef(LABELS, ANSWERS)
    low, high = of(kept(tmp_path, value=value), "matthews_correlation")
    reference = scipy_bootstrap(
        (ANSWERS, LABELS),
        lambda a, b, axis: SCORES["matthews_correlation"](a, b) if a.ndim > 1 else matthews_corrcoef(b, a),
        paired=True, n_resamples=4000, method="percentile", rng=np.random.default_rng(8), vectorized=True,
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.012)
    assert low < value < high


def test_figures_of_several_splits_begin_with_its_name(tmp_path):
    share = float((ANSWERS == LABELS).mean())
    folder = write_run(tmp_path, share, task="mnli")
    matched, other = list(ANSWERS), list(1 - ANSWERS)
    labels = {"matched": list(LABELS), "mismatched": list(LABELS)}
    Predictions(folder).keep(5, {"matched": matched, "mismatched": other}, labels, best=False)
    low, high = of(folder, "matched_accuracy")
    assert low < share < high
    assert of(folder, "mismatched_accuracy") is None  # does not give the record's figure
    assert of(folder, "accuracy") is None


@pytest.mark.parametrize("what", ["no file", "another step", "another figure", "no labels", "no such metric", "broken"])
def test_there_is_none_where_it_would_be_of_something_else(tmp_path, what):
    share = float((ANSWERS == LABELS).mean())
    folder = kept(
        tmp_path, task="rte", value=0.9 if what == "another figure" else share, step=4 if what == "another step" else 5
    )
    if what == "no file":
        (folder / LAST).unlink()
    if what == "broken":
        (folder / LAST).write_bytes(b"PAR1")
    if what == "no labels":
        Predictions(folder).keep(5, {"validation": list(ANSWERS)}, {"validation": None}, best=False)
    assert of(folder, "pearson" if what == "no such metric" else "accuracy") is None


def test_the_best_evaluation_has_its_own(tmp_path):
    share = float((ANSWERS == LABELS).mean())
    folder = write_run(tmp_path, value=share, best=1.0, task="rte")
    files = Predictions(folder)
    files.keep(3, {"validation": list(LABELS)}, {"validation": list(LABELS)}, best=True)
    files.keep(5, {"validation": list(ANSWERS)}, {"validation": list(LABELS)}, best=False)
    assert of(folder, evaluation="best") == (1.0, 1.0)
    assert of(folder) != (1.0, 1.0)
    assert (folder / BEST).is_file()


def test_the_report_shows_them_where_there_is_one_seed(tmp_path):
    share = float((ANSWERS == LABELS).mean())
    low, high = (100 * bound for bound in of(kept(tmp_path, task="rte", value=share)))
    for seed in (0, 1):
        kept(tmp_path, task="rte", value=share, method="bitfit", seed=seed)
    without, shown = report(tmp_path), report(tmp_path, "--intervals")
    assert "95 %" not in without.stdout
    assert f"{low:.1f} to {high:.1f}" in " ".join(line_of(shown.stdout, "  95 % interval"))
    assert shown.stdout.count("95 % interval") == 2  # in the caption too; not below the row of two seeds
    rows = {row["method"]: row for row in figures(tmp_path, "--intervals") if row["metric"] == "accuracy"}
    assert (float(rows["lora"]["low"]), float(rows["lora"]["high"])) == pytest.approx((low, high))
    assert rows["bitfit"]["low"] == ""
    assert "low" not in figures(tmp_path)[0]
