"""Intervals over the examples of a figure of one seed, against scikit-learn, scipy and a binomial law."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_helpers import figures, line_of, report, write_run
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from flexlora.report.bootstrap import SCORES, difference_interval, interval
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


def test_token_accuracy_and_exact_match_count_tokens_and_answers():
    right, tokens = np.array([[2, 3, 1]]), np.array([[2, 4, 4]])
    assert SCORES["token_accuracy"](right, tokens)[0] == 0.6
    assert SCORES["exact_match"](right, tokens)[0] == pytest.approx(1 / 3)


def test_an_interval_is_scipys_and_a_binomials(tmp_path):
    share = float((ANSWERS == LABELS).mean())
    low, high = of(kept(tmp_path, task="rte", value=share))
    sigma = (share * (1 - share) / 400) ** 0.5
    assert low == pytest.approx(share - 1.96 * sigma, abs=0.006)
    assert high == pytest.approx(share + 1.96 * sigma, abs=0.006)


@pytest.mark.parametrize(("predictions", "labels"), [(list("abc"), [0.1, 0.5, 1.0]), ([0.1, 0.5, 1.0], list("abc"))])
def test_words_for_numbers_give_no_interval(tmp_path, predictions, labels):
    folder = kept(tmp_path, predictions, labels, task="stsb", value=0.5)
    assert [of(folder, metric) for metric in ("pearson", "spearman", "accuracy")] == [None] * 3


def test_an_evaluation_that_is_none_gives_no_interval(tmp_path):
    folder = kept(tmp_path, task="rte", metrics={"last": [1], "best": {"step": 5, "accuracy": None}})
    assert [of(folder, evaluation=evaluation) for evaluation in ("last", "best")] == [None, None]


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


# --- differences ------------------------------------------------------------------------------------------------------

BETTER = np.where(DRAW.random(400) < 0.5, LABELS, ANSWERS)


def share(predictions, labels=LABELS):
    return float((predictions == labels).mean())


def two(root, other_labels=LABELS):
    """A run of lora and a better one of flexlora."""
    ours = kept(root, BETTER, method="flexlora", task="rte", value=share(BETTER))
    reference = kept(root, ANSWERS, other_labels, task="rte", value=share(ANSWERS, other_labels))
    return ours, reference


def of_two(ours, reference, metric="accuracy", evaluation="last"):
    return difference_interval(*(collect(folder).runs[0] for folder in (ours, reference)), metric, evaluation)


def test_a_difference_is_resampled_in_pairs(tmp_path):
    """Its variance is that of the examples' differences, far below the sum of both figures'."""
    gains = (BETTER == LABELS).astype(float) - (ANSWERS == LABELS)
    low, high = of_two(*two(tmp_path))
    sigma = gains.std() / 400**0.5
    assert low == pytest.approx(gains.mean() - 1.96 * sigma, abs=0.006)
    assert high == pytest.approx(gains.mean() + 1.96 * sigma, abs=0.006)
    alone = [of(folder) for folder in two(tmp_path / "again")]
    assert high - low < 0.8 * sum((upper - lower) ** 2 for lower, upper in alone) ** 0.5


def test_a_run_does_not_differ_from_itself(tmp_path):
    ours, _ = two(tmp_path)
    assert of_two(ours, ours) == (0, 0)


def test_other_examples_have_no_difference(tmp_path):
    labels = LABELS.copy()
    labels[:2] = 1 - labels[:2]
    assert of_two(*two(tmp_path, other_labels=labels)) is None
    fewer = kept(tmp_path / "fewer", ANSWERS[:300], LABELS[:300], task="rte", value=share(ANSWERS[:300], LABELS[:300]))
    assert of_two(two(tmp_path / "whole")[0], fewer) is None
    ours, reference = two(tmp_path / "gone")
    (reference / LAST).unlink()
    assert of_two(ours, reference) is None


def test_the_report_shows_it_below_a_difference_in_one_seed(tmp_path):
    ours, reference = two(tmp_path)
    low, high = (100 * bound for bound in of_two(ours, reference))
    for seed in (1, 2):
        kept(tmp_path, BETTER, method="bitfit", task="rte", value=share(BETTER), seed=seed)
        kept(tmp_path, ANSWERS, method="dora", task="rte", value=share(ANSWERS), seed=seed)
    text = report(tmp_path, "--against", "lora", "--intervals").stdout
    lines = text.splitlines()
    below = lines[next(i for i, line in enumerate(lines) if line.startswith("  less lora's")) + 1]
    assert below.split() == ["95", "%", "interval", f"{low:+.1f}", "to", f"{high:+.1f}"]
    assert f"{low:+.1f} to" not in report(tmp_path, "--against", "lora").stdout
    rows = {
        row["method"]: row
        for row in figures(tmp_path, "--against", "lora", "--intervals")
        if row["metric"] == "accuracy"
    }
    assert (float(rows["flexlora"]["paired_low"]), float(rows["flexlora"]["paired_high"])) == pytest.approx((low, high))
    assert rows["lora"]["paired_low"] == rows["bitfit"]["paired_low"] == ""
    assert "paired_low" not in figures(tmp_path, "--against", "lora")[0]
    # Over two seeds the t test speaks.
    assert "95 % interval" not in report(tmp_path, "--against", "dora", "--intervals", "--method", "bitfit,dora").stdout


def test_a_subset_has_no_difference_from_the_whole(tmp_path):
    kept(tmp_path, BETTER, method="flexlora", task="rte", value=share(BETTER), subset=True)
    kept(tmp_path, ANSWERS, task="rte", value=share(ANSWERS))
    assert "paired_low" not in figures(tmp_path, "--against", "lora", "--intervals")[0]
