"""Runs whose figures mean other things than those of most runs: told apart by their settings, marked, not compared."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_helpers import HUB, figures, line_of, report, write_run

from flexlora.report.protocol import ELSEWHERE
from flexlora.results.collect import collect, distinct_runs
from flexlora.settings import TASK_SCHEMAS

OWN = {"epochs": 3, "batch_size": 32, "max_length": 64}
"""A task's own length, batch and rule."""
TRAINING = {"epochs": 3, "max_steps": None, "batch_size": 32, "gradient_accumulation": 1}


def config(task: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    return {
        "method": {"name": "lora", "r": 8},
        "task": OWN | (task or {}),
        "training": TRAINING | training,
        "output_root": "x",
    }


def marks(root: Path) -> dict[str, str]:
    """The marks of CoLA's figure by the row's variant."""
    return {row["variant"]: row["marks"] for row in figures(root) if row["metric"] == "matthews_correlation"}


# --- the same names ---------------------------------------------------------------------------------------------------


def test_runs_of_the_same_names_and_other_settings_are_rows_of_their_own(tmp_path: Path) -> None:
    """Two output roots, `variant=test` in both: one of 30 steps, one of 384."""
    for root, steps, value in (("a", 30, 0.2), ("b", 384, 0.5)):
        for seed in (0, 1):
            settings = config(max_steps=steps) | {"output_root": root}
            write_run(tmp_path / root, value, variant="test", seed=seed, config=settings)
    text = report(tmp_path).stdout
    assert "left out" not in text
    assert text.count("kept apart: ") == 1
    assert "have the same names and other settings (training.max_steps)" in " ".join(text.split())
    assert line_of(text, "  training.max_steps-30") == ["training.max_steps-30"]
    means = {row["variant"]: (row["mean"], row["n"]) for row in figures(tmp_path) if row["mean"] and row["task"]}
    assert means == {"test+training.max_steps-30": ("20.0", "2"), "test+training.max_steps-384": ("50.0", "2")}


def test_a_copy_in_another_folder_is_the_same_run(tmp_path: Path) -> None:
    for root, value in (("a", 0.2), ("b", 0.5)):
        settings = config() | {"output_root": root}
        write_run(tmp_path / root, value, config=settings, started=root, config_hash="of another version")
    text = report(tmp_path).stdout
    assert "is a later run of the same settings" in " ".join(text.split())
    assert "kept apart" not in text
    assert [row["mean"] for row in figures(tmp_path) if row["mean"] and row["task"]] == ["50.0"]


def test_a_third_run_joins_the_one_of_its_settings(tmp_path: Path) -> None:
    for root, seed, steps in (("a", 0, 30), ("b", 0, 384), ("a", 1, 384)):
        write_run(tmp_path / root, 0.5, seed=seed, config=config(max_steps=steps))
    found = {row["variant"]: row["n"] for row in figures(tmp_path) if row["mean"] and row["task"]}
    assert found == {"training.max_steps-30": "1", "training.max_steps-384": "2"}


def test_a_setting_that_only_one_of_them_has(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.5, config=config())
    write_run(tmp_path / "b", 0.5, config=config() | {"parameter_budget": 7})
    runs, notes = distinct_runs(collect(tmp_path).runs)
    assert [run.record.variant for run in runs] == ["parameter_budget-absent", "parameter_budget-7"]
    assert len(notes) == 1


def test_an_unfinished_run_of_other_settings_is_not_left_out(tmp_path: Path) -> None:
    """It has no record yet, so its settings come from its config.yaml."""
    done = write_run(tmp_path / "a", 0.5, config=config())
    folder = tmp_path / "b" / done.relative_to(tmp_path / "a")
    folder.mkdir(parents=True)
    settings = config(max_steps=9) | {"scale": "local", "seed": 0, "data_seed": 0}
    settings["task"] |= {"name": "glue/cola"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    text = report(tmp_path).stdout
    assert "left out" not in text
    assert "interrupted" in text
    assert "50.0 (1)" in text


def test_other_parts_of_the_report_tell_them_apart_too(tmp_path: Path) -> None:
    for root, steps in (("a", 30), ("b", 384)):
        history = [{"step": 1, "epoch": 1.0, "matthews_correlation": 0.1}]
        write_run(tmp_path / root, 0.5, config=config(max_steps=steps), main_metric="matthews_correlation",
                  history=history)  # fmt: skip
    result = report("figures", tmp_path, "--save", tmp_path / "figures", "--only", "accuracy_parameters")
    assert result.returncode == 0
    assert result.stderr.startswith("flexlora-report: kept apart: ")
    assert len(result.stderr.splitlines()) == 1


# --- marks ------------------------------------------------------------------------------------------------------------

MARKED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "max_steps": (config(max_steps=30), {}, "t"),
    "epochs": (config(epochs=8), {}, "t"),
    "batch": (config(batch_size=8), {}, "t"),
    "accumulation": (config(gradient_accumulation=4), {}, "t"),
    "processes": (config(), {"hardware": {"processes": 4}}, "t"),
    "the same batch in parts": (config(batch_size=8, gradient_accumulation=2), {"hardware": {"processes": 2}}, ""),
    "a learning rate": (config(learning_rate=1.0), {}, ""),
    "the task's epochs": (config({"epochs": 8}, epochs=8), {}, "o"),
    "the task's rule": (config({"max_length": 16}), {}, "o"),
    "rows": (config({"max_train_rows": 9}), {"subset": True}, "s"),
    "held-out rows": (config({"validation_rows": 9}), {"data": HUB | {"held_out": 9}}, "v"),
    "data": (config(), {"data": HUB | {"revision": "other"}}, "d"),
}


@pytest.mark.parametrize("case", MARKED)
def test_settings_that_change_what_a_figure_means_are_marked(case: str, tmp_path: Path) -> None:
    settings, fields, expected = MARKED[case]
    for variant in ("one", "two"):
        write_run(tmp_path, 0.5, variant=variant, config=config())
    write_run(tmp_path, 0.9, variant="other", config=settings, **fields)
    assert marks(tmp_path) == {"one": "", "two": "", "other": expected}
    found = figures(tmp_path)
    assert all(row["marks"] == "" for row in found if row["metric"] != "matthews_correlation")
    text = report(tmp_path, "--format", "markdown").stdout
    assert ("**90.0" in text) == (expected == "")  # a figure that means something else is not the best


def test_two_lengths_that_are_not_the_tasks_are_told_apart(tmp_path: Path) -> None:
    for variant, steps in (("one", 30), ("two", 30), ("three", 60)):
        write_run(tmp_path, 0.5, variant=variant, config=config(max_steps=steps))
    write_run(tmp_path, 0.5, variant="whole", config=config())
    assert marks(tmp_path) == {"one": "t", "two": "t", "three": "to", "whole": ""}


def test_what_all_figures_have_is_said_once(tmp_path: Path) -> None:
    for variant in ("one", "two"):
        write_run(tmp_path, 0.5, variant=variant, config=config(max_steps=30))
    text = report(tmp_path).stdout
    assert "All figures: trained for another length or with another batch than the task's" in text
    assert "ᵗ" not in text


def test_runs_that_say_nothing_of_their_length_have_no_mark(tmp_path: Path) -> None:
    write_run(tmp_path, 0.5, config={"method": {"name": "lora"}, "training": "damaged", "task": None})
    assert marks(tmp_path) == {"default": ""}


def test_only_runs_of_one_protocol_are_compared(tmp_path: Path) -> None:
    """30 steps of one method with 30 of the other, 384 with 384, and neither with the other."""
    for method in ("lora", "flexlora"):
        for steps in (30, 384):
            for seed, value in ((0, 0.5), (1, 0.5 + steps / 1000)):
                write_run(tmp_path, value + 0.1 * (method == "flexlora"), method=method, seed=seed,
                          variant=f"training.max_steps-{steps}", config=config(max_steps=steps))  # fmt: skip
    found = {
        (row["method"], row["variant"]): row["paired_difference"]
        for row in figures(tmp_path, "--against", "lora")
        if row["metric"] == "matthews_correlation"
    }
    assert {key: round(float(value)) for key, value in found.items() if value} == {
        ("flexlora", "training.max_steps-30"): 10,
        ("flexlora", "training.max_steps-384"): 10,
    }
    assert found["lora", "training.max_steps-30"] == ""


def test_two_lengths_that_are_not_the_tasks_are_not_compared(tmp_path: Path) -> None:
    """Both figures have the same marks but one, and the only row of the method is the reference of all others."""
    for method, steps in (("lora", 30), ("flexlora", 60)):
        write_run(tmp_path, 0.5, method=method, variant=f"training.max_steps-{steps}", config=config(max_steps=steps))
    assert not [row for row in figures(tmp_path, "--against", "lora") if row.get("paired_difference")]


@pytest.mark.parametrize("whole_too", [True, False])
def test_a_part_of_a_training_is_not_compared_with_the_papers_figure(whole_too: bool, tmp_path: Path) -> None:
    paper = {"scale": "paper", "model": "deberta_v3_base", "method": "flexlora"}
    write_run(tmp_path, 0.7, variant="part", config=config(max_steps=30), **paper)
    if whole_too:
        write_run(tmp_path, 0.7, config=config(), **paper)
    found = {row["variant"]: row["difference"] for row in figures(tmp_path) if row["source"] == "ours" and row["task"]}
    assert found["part"] == ""
    title = report(tmp_path).stdout.splitlines()[0]
    if whole_too:
        assert found["default"] != ""
        assert "Table 1" in title
    else:
        assert "another length of training or batch than the task's; these figures say nothing about the paper" in title


def test_tuned_methods_of_another_length_are_marked(tmp_path: Path) -> None:
    for method, steps in (("lora", None), ("flexlora", None), ("dora", 30)):
        for rate in (1e-3, 1e-2):
            settings = config({"validation_rows": 9}, learning_rate=rate, max_steps=steps)
            write_run(tmp_path, rate, method=method, variant=f"training.learning_rate-{rate:g}", config=settings,
                      data=HUB | {"held_out": 9}, main_metric="matthews_correlation")  # fmt: skip
    text = report(tmp_path, "--tuned", "training.learning_rate").stdout
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("lora", "flexlora", "dora"))] == [
        "doraᵗ", "flexlora", "lora",
    ]  # fmt: skip
    assert "ᵗ  trained for another length" in text
    assert "ᵗ" not in report(tmp_path, "--tuned", "training.learning_rate", "--method", "lora,flexlora").stdout


def test_every_setting_of_a_task_is_judged() -> None:
    """A new key of a task either changes what its figures mean, or another mark or the title is about it."""
    keys = {key for schema in TASK_SCHEMAS.values() for key in schema.__dataclass_fields__}
    assert keys >= ELSEWHERE
    assert keys - ELSEWHERE == {
        *("num_labels", "num_classes", "labels", "label_range", "text", "metric", "main_metric", "max_length"),
        *("train_on_inputs", "evaluation_mode", "num_beams", "max_new_tokens"),
        *("normalization", "interpolation", "random_resized_crop", "horizontal_flip"),
        *("resize", "distribution", "sizes", "train_share", "test_share"),
        *("drop_long", "train_rows", "temperature", "top_p", "num_samples", "sampling_seed"),
        *("prompt", "question_column", "answer_column", "train_type"),
        *("cut_repeated_answer", "remove_annotations", "last_number"),
        *("first_code_block", "pass_at", "program_timeout"),
        *("kind", "label", "split_seed"),
        *("messages", "instruction", "input", "output"),
    }


# --- formulas ---------------------------------------------------------------------------------------------------------

FORMULAS = {"=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@SUM(A1)": "'@SUM(A1)", "\t=1": "\\t=1", "\r=1": "\\r=1"}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_name_is_no_formula_in_a_spreadsheet(name: str, tmp_path: Path) -> None:
    """Names come from folders of others: a method, a variant, a model, a task's metric."""
    for field in ("method", "variant", "model", "scale"):
        write_run(tmp_path / field, -0.5, **{field: name})
    write_run(tmp_path / "task", -0.5, task=f"x/{name}", scores=(name,), main_metric=name)
    text = report(tmp_path, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    cells = [value for row in rows for key, value in row.items() if key not in {"mean", "std", "paper", "difference"}]
    assert FORMULAS[name] in cells
    assert not [cell for cell in cells if cell[:1] in {"=", "+", "-", "@", "\t", "\r"}]
    assert "-50.0" in {row["mean"] for row in rows}  # a figure stays a number
