"""`--against` over several tasks: wins, mean difference, Wilcoxon's p with Holm's correction, and mean ranks."""

import pytest
from report_helpers import report, write_run

from flexlora.report.ranking import holm

TASKS = ("csv/a", "csv/b", "csv/c", "csv/d", "csv/e")


def write(root, **gains):
    """lora has 50 % on every task; each other method gains so many points on the tasks in order."""
    for method, points in {"lora": [0] * len(TASKS), **gains}.items():
        for task, gain in zip(TASKS, points, strict=False):
            write_run(root, 0.5 + gain / 100, task=task, method=method, main_metric="accuracy")


def test_a_row_is_compared_over_its_tasks_and_p_is_corrected(tmp_path):
    write(tmp_path, flexlora=[1, 2, 3, 4, 5], dora=[-1, 2, -3, -4, -5])
    text = report(tmp_path, "--against", "lora").stdout
    # The signed ranks of 1 to 5: all of one sign have p = 2/32; a sum of 2 (of 15) has p = 6/32. Holm: 2/16, 3/16.
    assert "flexlora against lora: better on 5 of 5, mean +3.0, p 0.12 (Wilcoxon over tasks, Holm-corrected)" in text
    assert "dora against lora: better on 1 of 5, mean -2.2, p 0.19 (Wilcoxon over tasks, Holm-corrected)" in text
    assert "mean rank over 5 tasks: flexlora 1.10, lora 2.20, dora 2.70" in text


def test_only_tasks_that_both_have_count(tmp_path):
    write(tmp_path, flexlora=[1, 2], dora=[1, 2, 3])
    text = report(tmp_path, "--against", "lora").stdout
    assert "flexlora against lora: better on 2 of 2, mean +1.5" in text
    assert "dora against lora: better on 3 of 3, mean +2.0" in text
    assert "mean rank over 2 tasks: dora 1.50, flexlora 1.50, lora 3.00" in text


def test_one_task_gives_no_line(tmp_path):
    write(tmp_path, flexlora=[1])
    assert "better on" not in report(tmp_path, "--against", "lora").stdout
    assert "mean rank" not in report(tmp_path, "--against", "lora").stdout


def test_equal_figures_have_no_p(tmp_path):
    write(tmp_path, flexlora=[0, 0, 0])
    assert (
        "flexlora against lora: better on 0 of 3, mean +0.0, p not defined"
        in report(tmp_path, "--against", "lora").stdout
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 × 0.01; 2 × 0.03; 0.04, but not below the one before
        ([0.6, None, 0.7], [1.0, None, 1.0]),
        ([0.2], [0.2]),
    ],
)
def test_holms_correction(values, expected):
    assert holm(values) == [None if p is None else pytest.approx(p) for p in expected]
