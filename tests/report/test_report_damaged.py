"""Records whose values are of another kind than the runner writes: what can be shown is shown, without a traceback."""

import json
from pathlib import Path

import pytest
from report_helpers import figures, report, write_run

from flexlora.report.record_values import LARGEST, number

HUGE = 10**400
HISTORY = [{"step": i, "epoch": float(i), "accuracy": i / 4} for i in (1, 2)]
LAST = {"step": 5, "epoch": 1.0, "accuracy": 0.5}
DAMAGED = {
    "figure-null": {"metrics": {"last": LAST | {"accuracy": None}, "best": LAST}},
    "figure-word": {"metrics": {"last": LAST | {"accuracy": "good"}, "best": LAST}},
    "figure-huge": {"metrics": {"last": LAST | {"accuracy": HUGE}, "best": LAST | {"accuracy": -HUGE}}},
    "evaluation-list": {"metrics": {"last": [LAST], "best": [0.5]}},
    "evaluation-word": {"metrics": {"last": "accuracy", "best": "accuracy"}},
    "metric-null": {"main_metric": None},
    "epoch-missing": {"history": [{"accuracy": 0.5}]},
    "epoch-null": {"history": [{"epoch": None, "accuracy": 0.5}, {"epoch": HUGE, "accuracy": 0.5}]},
    "row-number": {"history": [7, *HISTORY]},
    "row-huge": {"history": [{"epoch": 1.0, "accuracy": HUGE}]},
    "active-null": {"parameters": {"adapter_active": None, "head": 5}},
    "active-word": {"parameters": {"adapter_active": "5", "head": 5}},
    "active-huge": {"parameters": {"adapter_active": HUGE, "head": 5}, "train_seconds": HUGE},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    common = {"task": "rte", "scores": ("accuracy",), "main_metric": "accuracy", "history": HISTORY}
    write_run(root, 0.5, **common)
    for variant, fields in DAMAGED.items():
        write_run(root, 0.5, variant=variant, **(common | fields))
    return root


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0), (0.5, 0.5), (-LARGEST, -LARGEST), (float("nan"), None),
        pytest.param(HUGE, None, id="huge"), pytest.param(-HUGE, None, id="minus huge"),
        (float("inf"), None), (True, None), ("1", None), ([1], None), (None, None),
    ],
)  # fmt: skip
def test_what_counts_as_a_number(value, expected):
    """An integer beyond the floats is none."""
    assert number(value) == expected


def test_tables(runs):
    for evaluation in ("last", "best"):
        lines = {line["variant"]: line for line in figures(runs, "--metric", evaluation) if line["task"] == "glue/rte"}
        assert lines.keys() == {"default", *DAMAGED}
        assert float(lines["default"]["mean"]) == 50
        for variant in ("figure-huge", "evaluation-list", "evaluation-word"):
            assert lines[variant]["status"] == "no figure"


def test_figures(runs, tmp_path):
    result = report("figures", runs, "--save", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert len([*tmp_path.iterdir()]) == 4


def test_the_page(runs, tmp_path):
    result = report("html", runs, "--output", tmp_path / "page.html")
    assert (result.returncode, result.stderr) == (0, "")
    page = (tmp_path / "page.html").read_text()
    assert "<td>50.00</td>" in page
    assert json.dumps(HUGE) not in page
