"""The arithmetic behind a cell, against numpy; how figures are printed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_helpers import write_run

from flexlora.report.cells import Cell, average_cell, mark_fewer, seeds_cell, summarise
from flexlora.report.frame import frame_of, pivot, read_frame
from flexlora.report.numbers import count
from flexlora.report.table import Average, Column
from flexlora.report.tables import TABLES
from flexlora.results.collect import collect

FIGURES = st.floats(-100, 100, allow_subnormal=False)


@given(st.lists(FIGURES, min_size=1, max_size=30))
def test_mean_and_sample_deviation_are_numpys(values):
    cell = summarise(values)
    assert cell.n == len(values)
    assert cell.mean == pytest.approx(np.mean(values), abs=1e-9)
    if len(values) == 1:
        assert cell.std is None
    else:
        assert cell.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_exactly_the_cells_with_fewer_seeds_are_marked(counts):
    marked = mark_fewer([Cell(mean=1.0, n=n) if n else Cell(word="–") for n in counts])
    assert ["f" in cell.marks for cell in marked] == [0 < n < max(counts) for n in counts]


def test_the_average_is_seed_by_seed(tmp_path):
    """Seeds that rise in one task and fall in the other: the averages agree, and so their deviation is 0."""
    for seed, value in enumerate((0.2, 0.4, 0.6)):
        write_run(tmp_path, value, task="cola", seed=seed)
        write_run(tmp_path, 0.8 - value, task="rte", seed=seed)
    columns = tuple(column for column in TABLES["glue"].main if column.task in ("glue/cola", "glue/rte"))
    row = pivot(frame_of(collect(tmp_path).runs, columns, "last"))["lora", "default"]
    cells = [seeds_cell(row[column], None) for column in columns]
    average = average_cell(row, Average("average", ("", ""), "average", of=(columns,)), cells)
    assert (average.mean, average.std, average.n) == (pytest.approx(40), pytest.approx(0), 3)
    assert [cell.std for cell in cells] == [pytest.approx(20), pytest.approx(20)]


@given(st.lists(st.lists(FIGURES, min_size=1, max_size=8), min_size=1, max_size=4))
def test_an_average_is_the_mean_of_its_groups_means(groups):
    """Against numpy, and for groups of one size the plain mean."""
    columns = [[Column("", ("", ""), f"{i} {j}") for j in range(len(group))] for i, group in enumerate(groups)]
    average = Average("average", ("", ""), "average", of=tuple(map(tuple, columns)))
    values = dict(zip(average.columns, (value for group in groups for value in group), strict=True))
    assert average.mean(values) == pytest.approx(np.mean([np.mean(group) for group in groups]), abs=1e-9)
    if len({len(group) for group in groups}) == 1:
        assert average.mean(values) == pytest.approx(np.mean(list(values.values())), abs=1e-9)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.00k"),
        (99_990, "100k"),
        (331_776, "332k"),
        (999_999, "1.00M"),
        (1_327_680, "1.33M"),
        (184_423_682, "184M"),
        (8e9, "8.00G"),
    ],
)
def test_counts_have_three_figures(number, text):
    assert count(number) == text


def test_the_frame_has_every_figure_of_every_run(tmp_path):
    write_run(tmp_path, 0.5, best=0.75, task="mrpc", main_metric="accuracy", train_seconds=60.0)
    write_run(tmp_path, task="mrpc", seed=1, status="failed", value=None, parameters={})
    frame = read_frame(tmp_path)
    assert [*frame[frame.seed == 1].status] == ["failed"]
    assert frame[frame.seed == 1].value.isna().all()
    done = frame[frame.seed == 0].set_index(["evaluation", "metric"])
    assert done.value["last", "f1"] == 0.5
    assert done.value["best", "accuracy"] == 0.75
    assert done.value["parameters", "adapter_active"] == 1_327_680
    assert done.value["cost", "train_seconds"] == 60
    assert [*done[done.main].index] == [("last", "accuracy"), ("best", "accuracy")]
    assert {*done.task} == {"glue/mrpc"}
