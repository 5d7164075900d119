"""How steady scores and ranks are, on allocations that the test chose."""

import numpy as np
import pytest
from report_helpers import report, write_run, write_training
from scipy.stats import spearmanr

from flexlora.report.allocation import Allocation, read_allocation
from flexlora.report.rank_stability import as_text, stability
from flexlora.results.collect import collect

EVENTS = {"count": 5}


def allocation(ranks, scores) -> Allocation:
    """Of these ranks (E + 1, M) and scores (E, M); the other facts are not looked at."""
    ranks, scores = np.array(ranks, dtype=float), np.array(scores, dtype=float)
    return Allocation(None, [], [*range(len(scores))], ranks, scores, None)


def test_scores_against_scipy():
    draw = np.random.default_rng(0)
    runs = [allocation(np.full((5, 9), 8), draw.random((4, 9)).round(1)) for _ in range(2)]
    found = stability(runs)
    for run, following, lowest, ends in zip(runs, found.following, found.lowest, found.ends, strict=True):
        each = [spearmanr(run.scores[i], run.scores[i + 1]).statistic for i in range(3)]
        assert following == pytest.approx(np.mean(each))
        assert lowest == pytest.approx(min(each))
        assert ends == pytest.approx(spearmanr(run.scores[0], run.scores[-1]).statistic)
    assert np.isnan(found.between_seeds).all()  # all ranks alike: nothing to agree on


def test_matrices_without_a_score_are_left_out():
    scores = [[0.1, 0.2, 0.3, 0.4, np.nan], [0.4, 0.3, np.nan, 0.1, 0.9]]
    found = stability([allocation(np.full((3, 5), 8), scores)])
    assert found.following == [pytest.approx(-1.0)]
    too_few = stability([allocation(np.full((3, 5), 8), np.where(np.arange(5) < 3, np.nan, scores))])
    assert np.isnan([*too_few.following, *too_few.lowest, *too_few.ends]).all()


def test_moves_that_are_taken_back():
    """The first matrix goes up, up, down, up; the second stays, then down, down; the third moves once."""
    ranks = [[8, 8, 8], [9, 8, 8], [10, 8, 9], [9, 7, 9], [10, 6, 9]]
    found = stability([allocation(ranks, np.zeros((4, 3)))])
    assert found.taken_back == (2, 4)
    twice = stability([allocation(ranks, np.zeros((4, 3)))] * 2)
    assert twice.taken_back == (4, 8)
    assert twice.between_seeds == [pytest.approx(1.0)]


def test_seeds_are_compared_by_their_last_ranks():
    first, second, third = ([[8, 8, 8, 8], last] for last in ([1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 4, 3]))
    found = stability([allocation(ranks, np.zeros((1, 4))) for ranks in (first, second, third)])
    assert found.between_seeds == pytest.approx([-1.0, 0.8, -0.8])
    assert np.isnan(found.following).all()  # of one event


def test_as_text():
    text = as_text([("these", stability([allocation([[8, 8, 8], [9, 8, 7], [8, 8, 8]], [[1, 2, 3], [3, 2, 1]])]))])
    assert text.splitlines() == [
        "these",
        "",
        "  scores, one event and the next    -1.00, lowest -1.00",
        "  scores, the first and the last    -1.00",
        "  moves that take back the last     2 of 2 (100%)",
        "  final ranks, two seeds            –",
    ]


def test_the_command_says_what_is_in_the_files(tmp_path):
    folders = [
        write_training(write_run(tmp_path, method="flexlora", seed=seed, rank_events=EVENTS), layers=12)
        for seed in (0, 1)
    ]
    found = stability([read_allocation(collect(folder).runs[0]) for folder in folders])
    result = report("stability", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "seeds 0, 1" in result.stdout
    assert as_text([("", found)]).strip() in result.stdout
    none = report("stability", tmp_path / "other")
    assert none.returncode == 2
    assert len(none.stderr.splitlines()) == 1
