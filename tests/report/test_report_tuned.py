"""`flexlora-report --tuned`: each method at its best on held-out rows, by the runs themselves."""

from pathlib import Path

import pytest
from report_helpers import report, write_run


def write(
    root: Path, method: str, rate: float, value: float | None, seed: int = 0, held_out: int | None = 500, **fields
):
    config = {"method": {"name": method}, "training": {"learning_rate": rate}, "task": {"validation_rows": held_out}}
    data = {"source": "hub", "held_out": held_out} if held_out else {"source": "hub"}
    variant = f"task.validation_rows-{held_out}+training.learning_rate-{rate:g}"
    return write_run(
        root, value, method=method, variant=variant, seed=seed, config=config, data=data,
        main_metric="matthews_correlation", **fields,
    )  # fmt: skip


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("lora ", "flexlora "))}


def test_each_method_is_at_its_best_with_the_number_of_runs_it_was_given(tmp_path):
    for seed, value in ((0, 0.30), (1, 0.40)):
        write(tmp_path, "lora", 1e-3, value, seed)
        write(tmp_path, "lora", 1e-4, value - 0.1, seed)
    write(tmp_path, "flexlora", 1e-3, 0.2)
    write(tmp_path, "flexlora", 3e-3, 0.5)
    write(tmp_path, "flexlora", 1e-2, None, status="diverged")
    result = report(tmp_path, "--tuned", "training.learning_rate")
    assert result.returncode == 0, result.stderr
    assert "All runs: task.validation_rows-500." in result.stdout
    found = rows(result.stdout)
    assert found["lora"] == ["0.001", "4", "25.0", "±", "7.1", "(2)", "35.0", "±", "7.1", "(2)", "–", "–"]
    assert found["flexlora"] == ["0.003", "3", "–", "20.0", "(1)", "50.0", "(1)", "diverged"]


def test_runs_on_the_reported_rows_take_no_part(tmp_path):
    for rate, value in ((1e-3, 0.3), (1e-4, 0.2)):
        write(tmp_path, "lora", rate, value, held_out=None)
    result = report(tmp_path, "--tuned", "training.learning_rate")
    assert (result.returncode, result.stdout) == (2, "")
    assert "has no runs on held-out rows (task.validation_rows)" in result.stderr
    write(tmp_path, "lora", 1e-3, 0.1)
    write(tmp_path, "lora", 1e-2, 0.2)
    assert rows(report(tmp_path, "--tuned", "training.learning_rate").stdout)["lora"][:2] == ["0.01", "2"]


def test_a_mean_of_zero_is_a_figure_like_any_other(tmp_path):
    """A run whose answers are all of one class has a Matthews correlation of exactly 0."""
    write(tmp_path, "lora", 1e-4, 0.0)
    write(tmp_path, "lora", 1e-3, -0.05)
    assert rows(report(tmp_path, "--tuned", "training.learning_rate").stdout)["lora"][0] == "0.0001"


def test_values_may_be_lists_and_of_several_types(tmp_path):
    targets = (["query"], ["query", "value"], "all-linear", 3, True)
    for i, value in enumerate(targets):
        config = {"method": {"name": "lora", "target_modules": value}, "task": {"validation_rows": 50}}
        write_run(tmp_path, i / 10, variant=f"method.target_modules-{i}", config=config, main_metric="accuracy",
                  scores=("accuracy",))  # fmt: skip
    result = report(tmp_path, "--tuned", "method.target_modules")
    assert result.returncode == 0, result.stderr
    heads = next(line for line in result.stdout.splitlines() if line.startswith("method "))
    assert heads.split() == ["method", "best", "runs", "True", "3", '["query",', '"value"]', '["query"]', "all-linear"]
    assert rows(result.stdout)["lora"][:2] == ["True", "5"]


@pytest.mark.parametrize(
    "words",
    [
        ("--save", "folder"),
        ("--output", "file.csv"),
        ("--format", "csv"),
        ("--table", "glue"),
        ("--metric", "best"),
        ("--against", "lora"),
        ("--intervals",),
        ("--all-tasks",),
    ],
)
def test_options_of_the_tables_are_refused(tmp_path, words):
    write(tmp_path, "lora", 1e-3, 0.1)
    write(tmp_path, "lora", 1e-2, 0.2)
    result = report(tmp_path, "--tuned", "training.learning_rate", *words, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert f"leave {words[0]} out" in result.stderr


def test_a_copied_run_counts_once(tmp_path):
    for copy in ("a", "b"):
        for rate, value in ((1e-3, 0.3), (1e-4, 0.2)):
            write(tmp_path / copy, "lora", rate, value, started=copy)
    result = report(tmp_path, "--tuned", "training.learning_rate")
    assert rows(result.stdout)["lora"] == ["0.001", "2", "20.0", "(1)", "30.0", "(1)"]
    assert len(result.stderr.splitlines()) == 2
