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


def test_further_scores_are_columns_that_count_neither_as_tasks_nor_over_tasks(tmp_path):
    for method, gain in (("lora", 0.0), ("flexlora", 0.1)):
        for task in TASKS[:2]:
            last = {"step": 1, "accuracy": 0.5 + gain, "macro_f1": 0.25 - gain, "unparsed": 1.0, "eval_seconds": 0.5}
            metrics = {"last": last, "best": last}
            write_run(tmp_path, task=task, method=method, main_metric="accuracy", metrics=metrics)
    text = report(tmp_path, "--against", "lora").stdout
    assert "2 of 2 tasks" in text
    assert text.count("macro f1") == 2
    assert "unparsed" not in text
    assert "seconds" not in text
    (line,) = (line.split() for line in text.splitlines() if line.startswith("flexlora "))
    assert [word for word in line[3:] if word != "(1)"] == ["60.0", "15.0", "60.0", "15.0"]
    assert "flexlora against lora: better on 2 of 2, mean +10.0" in text


def test_a_difference_is_marked_if_it_is_significant_after_the_correction(tmp_path):
    for seed, noise in enumerate((0.0, 0.001, 0.002)):
        for method, gain in (("lora", 0.0), ("flexlora", 0.1), ("dora", 0.01 * seed**3)):
            write_run(tmp_path, 0.5 + gain + noise * (gain > 0), task="csv/a", method=method, seed=seed)
    for ending, starred in (("text", "p <0.001*"), ("csv", "flexlora")):
        assert starred in report(tmp_path, "--against", "lora", "--format", ending).stdout
    text = report(tmp_path, "--against", "lora").stdout
    assert text.count("*") == 2  # flexlora's, and the caption's
    assert "p*: below 0.05 with Holm's correction for all p of the table" in text


def test_a_learning_rate_for_a_start_is_a_note_of_every_format(tmp_path):
    start = {"training.learning_rate": "glue"}
    for method in ("lora", "dora"):
        write_run(tmp_path, task="csv/a", method=method, for_a_start=start)
    write_run(tmp_path, task="csv/a", method="flexlora")
    for ending in ("text", "markdown", "latex", "html"):
        text = " ".join(report(tmp_path, "--format", ending).stdout.replace("&#x27;", "'").split())
        assert "learning rates of dora, lora: recipe rows 'glue', for a start: not tuned for this data" in text, ending


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
