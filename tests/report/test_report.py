"""The tables of scores: what they say about runs that ended well, badly, or not at all."""

import pytest
from report_helpers import HUB, SCORES, figures, line_of, printed, report, write_run

TINY = {"scale": "tiny", "model": "tiny_encoder", "data": {"source": "generated"}}
PAPER = {"scale": "paper", "model": "deberta_v3_base"}


def score(
    *arguments: object, metric: str = "matthews_correlation", source: str = "ours", **where: str
) -> dict[str, str]:
    """The one line of the CSV of this metric."""
    lines = [row for row in figures(*arguments) if row["metric"] == metric and row["source"] == source]
    (line,) = [row for row in lines if all(row[key] == value for key, value in where.items())]
    return line


def test_mean_deviation_and_number_of_seeds(tmp_path):
    for seed, value in enumerate((0.50, 0.52, 0.57)):
        write_run(tmp_path, value, seed=seed)
    text = report(tmp_path).stdout
    assert "1 of 8 tasks" in text
    assert "CoLA" in text
    assert "MNLI" not in text
    assert line_of(text, "lora") == ["lora", "1.33M", "1.92M", "53.0", "±", "3.6", "(3)"]
    line = score(tmp_path)
    assert (line["n"], float(line["mean"])) == ("3", pytest.approx(53.0))
    assert float(line["std"]) == pytest.approx(3.605551)
    counts = {row["metric"]: float(row["mean"]) for row in figures(tmp_path) if row["task"] == ""}
    assert counts == {"adapter_parameters": 1_327_680, "trainable_parameters": 1_919_810}


def test_one_seed_has_no_deviation_and_no_minus_zero(tmp_path):
    write_run(tmp_path, -0.0001)
    assert line_of(report(tmp_path).stdout, "lora")[3:] == ["0.0", "(1)"]


def test_the_last_evaluation_counts_unless_the_best_is_asked_for(tmp_path):
    write_run(tmp_path, 0.5, best=0.75)
    assert float(score(tmp_path)["mean"]) == 50
    assert "BEST" not in report(tmp_path).stdout
    assert float(score(tmp_path, "--metric", "best")["mean"]) == 75
    assert "BEST evaluation" in report(tmp_path, "--metric", "best").stdout.splitlines()[0]


def test_every_metric_of_every_task_and_the_average_over_the_main_ones(tmp_path):
    for place, task in enumerate(SCORES):
        write_run(tmp_path, place / 10, task=task)
    lines = figures(tmp_path)
    keys = [(row["task"], row["metric"]) for row in lines if row["task"].startswith("glue/")]
    assert sorted(keys) == sorted((f"glue/{task}", key) for task, names in SCORES.items() for key in names)
    assert float(score(tmp_path, metric="average")["mean"]) == pytest.approx(35)
    assert "8 of 8 tasks" in report(tmp_path).stdout


def test_the_average_says_that_a_seed_failed_everywhere(tmp_path):
    for task in SCORES:
        write_run(tmp_path, 0.5, task=task)
        write_run(tmp_path, task=task, seed=1, status="failed", value=None)
    line = score(tmp_path, metric="average")
    assert (float(line["mean"]), line["n"], line["marks"]) == (pytest.approx(50), "1", "x")


def test_the_papers_model_at_another_scale_says_so(tmp_path):
    write_run(tmp_path, model="deberta_v3_base")
    assert report(tmp_path).stdout.startswith("GLUE, deberta_v3_base, scale=local: not run at scale=paper; these ")


def test_the_average_is_of_the_seeds_that_have_all_tasks(tmp_path):
    for task in SCORES:
        for seed, value in enumerate((0.5, 0.7, 0.9)):
            if (task, seed) != ("rte", 2):
                write_run(tmp_path, value, task=task, seed=seed)
    line = score(tmp_path, metric="average")
    assert (float(line["mean"]), line["n"]) == (pytest.approx(60), "2")
    assert "x" in line["marks"]


def test_an_average_of_fewer_tasks_is_not_given(tmp_path):
    for task in ("cola", "rte", "qnli"):
        write_run(tmp_path, 0.5, task=task)
    line = score(tmp_path, metric="average")
    assert (line["mean"], line["status"]) == ("", "3/8")
    text = report(tmp_path).stdout
    assert line_of(text, "lora")[-1] == "3/8"
    assert "only n of the tasks" in text


def test_all_tasks_on_demand(tmp_path):
    write_run(tmp_path)
    text = report(tmp_path, "--all-tasks").stdout
    assert all(name in text for name in ("MNLI-mm", "Spearman", "QQP", "Avg."))
    assert "–  no run" in text
    assert score(tmp_path, "--all-tasks", task="glue/rte", metric="accuracy")["status"] == "–"


@pytest.mark.parametrize("status", ["failed", "diverged", "interrupted"])
def test_a_run_that_did_not_end_well_gives_no_figure(tmp_path, status):
    write_run(tmp_path, 0.9, status=status, error="the reason")
    result = report(tmp_path)
    assert result.returncode == 0
    assert line_of(result.stdout, "lora")[-1] == status
    assert f"{status}: glue/cola lora seed 0: the reason" in result.stdout
    assert score(tmp_path)["mean"] == ""


def test_seeds_that_did_not_end_well_are_left_out_and_marked(tmp_path):
    write_run(tmp_path, 0.5, seed=0)
    write_run(tmp_path, 0.9, seed=1, status="diverged")
    line = score(tmp_path)
    assert (float(line["mean"]), line["n"], line["marks"]) == (50, "1", "x")
    write_run(tmp_path, 0.5, method="flexlora")
    text = report(tmp_path).stdout
    assert line_of(text, "lora")[3:] == ["50.0", "(1)ˣ"]
    assert line_of(text, "flexlora")[3:] == ["50.0", "(1)"]
    assert "ˣ  without seeds that did not end well" in text


def test_a_done_run_without_the_figure_says_so(tmp_path):
    write_run(tmp_path, value=None)
    assert score(tmp_path)["status"] == "no figure"


def test_fewer_seeds_than_another_row(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, 0.5, seed=seed, method="flexlora")
    write_run(tmp_path, 0.5, method="lora")
    assert score(tmp_path, method="lora")["marks"] == "f"
    assert score(tmp_path, method="flexlora")["marks"] == ""
    text = report(tmp_path).stdout
    assert line_of(text, "lora")[-1] == "(1)ᶠ"
    assert "ᶠ  fewer seeds than another row" in text


def test_subsets_are_marked_and_what_holds_for_all_is_said_once(tmp_path):
    write_run(tmp_path, subset=True, method="lora")
    text = report(tmp_path).stdout
    assert "All figures: subset" in text
    assert "ˢ" not in text
    write_run(tmp_path, method="flexlora")
    text = report(tmp_path).stdout
    assert "All figures" not in text
    assert line_of(text, "lora")[-1] == "(1)ˢ"
    assert line_of(text, "flexlora")[-1] == "(1)"


def test_other_data_than_most_runs_of_the_task(tmp_path):
    folder = {"source": "folder", "path": "/somewhere", "revision": None, "sha256": {"train.tsv": "1", "dev.tsv": "2"}}
    moved = folder | {"path": "/elsewhere"}
    changed = folder | {"sha256": {"train.tsv": "1", "dev.tsv": "3"}}
    for method, data in (("lora", folder), ("adalora", moved), ("flexlora", changed)):
        write_run(tmp_path, method=method, data=data)
    marks = {method: score(tmp_path, method=method)["marks"] for method in ("lora", "adalora", "flexlora")}
    assert marks == {"lora": "", "adalora": "", "flexlora": "d"}


def test_of_a_folder_and_the_hub_the_folder_is_the_other_data(tmp_path):
    write_run(tmp_path, method="lora", data={"source": "folder", "path": "z", "sha256": {"train.tsv": "f"}})
    write_run(tmp_path, method="flexlora", data=HUB)
    assert score(tmp_path, method="lora")["marks"] == "d"
    assert score(tmp_path, method="flexlora")["marks"] == ""


def test_seeds_of_different_settings_are_marked(tmp_path):
    config = {"method": {"name": "lora", "r": 8}, "model": {"path": "a"}, "output_root": "x"}
    write_run(
        tmp_path, seed=0, variant="mine", config={**config, "seed": 0, "output_root": "y", "model": {"path": "b"}}
    )
    write_run(tmp_path, seed=1, variant="mine", config={**config, "seed": 1})
    assert score(tmp_path)["marks"] == ""
    write_run(tmp_path, seed=2, variant="mine", config={**config, "seed": 2, "method": {"name": "lora", "r": 2}})
    assert score(tmp_path)["marks"] == "m"


def test_variants_are_rows_of_their_own_and_what_they_share_is_said_once(tmp_path):
    for variant in ("method.r-2+training.epochs-3", "method.r-4+training.epochs-3"):
        write_run(tmp_path, 0.25 if "r-2" in variant else 0.5, variant=variant)
    text = report(tmp_path).stdout
    assert "All rows: training.epochs-3." in text
    assert text.count("training.epochs-3") == 1
    assert line_of(text, "  method.r-2") == ["method.r-2"]
    assert float(score(tmp_path, variant="method.r-4+training.epochs-3")["mean"]) == 50
    markdown = report(tmp_path, "--format", "markdown").stdout
    assert "| lora method.r-2 | 1.33M | 1.92M | 25.0 (1) |" in markdown


def test_methods_keep_the_tables_order_and_unknown_ones_follow(tmp_path):
    for method in ("my_own", "flexlora", "linear", "lora"):
        write_run(tmp_path, method=method)
    rows = [row["method"] for row in figures(tmp_path) if row["metric"] == "matthews_correlation"]
    assert rows == ["linear", "lora", "flexlora", "my_own"]


def test_one_table_for_each_scale_and_model_and_only_the_papers_has_its_title(tmp_path):
    write_run(tmp_path, **TINY)
    write_run(tmp_path, model="minilm")
    write_run(tmp_path, scale="paper", model="roberta_base")
    write_run(tmp_path, **PAPER)
    titles = [line for line in report(tmp_path).stdout.splitlines() if line.startswith("GLUE")]
    assert titles[0] == "GLUE, as Table 1 of the FlexLoRA paper · deberta_v3_base"
    assert len(titles) == 4
    assert all(title.endswith("these figures say nothing about the paper") for title in titles[1:])
    assert "scale=tiny: generated data and a small model" in titles[3]
    papers = {row["model"] for row in figures(tmp_path) if row["source"] == "paper" or row["paper"]}
    assert papers == {"deberta_v3_base"}


@pytest.mark.parametrize("fields", [{"data": {"source": "generated"}}, {"subset": True}])
def test_the_papers_model_on_other_data_is_not_under_the_papers_title(tmp_path, fields):
    write_run(tmp_path, **PAPER, **fields)
    text = report(tmp_path).stdout
    assert "Table 1" not in text
    assert "say nothing about the paper" in text.splitlines()[0]
    assert all(row["source"] == "ours" and row["difference"] == "" for row in figures(tmp_path))


def test_the_papers_rows_stand_beside_ours_with_the_difference(tmp_path):
    write_run(tmp_path, 0.72, method="flexlora", **PAPER)
    write_run(tmp_path, 0.60, method="linear", **PAPER)
    line = score(tmp_path, method="flexlora")
    flexlora = printed("glue.csv", "4", "FlexLoRA", task="glue/cola")
    assert (float(line["paper"]), float(line["difference"])) == (flexlora, pytest.approx(72 - flexlora))
    assert score(tmp_path, method="linear")["paper"] == ""
    adalora = float(score(tmp_path, source="paper", method="adalora")["mean"])
    assert adalora == printed("glue.csv", "4", "AdaLoRA", task="glue/cola")
    text = report(tmp_path).stdout
    lines = text.splitlines()
    at = next(i for i, row in enumerate(lines) if row.startswith("flexlora"))
    assert lines[at + 1].split() == ["less", "the", "paper's", f"{72 - flexlora:+.1f}"]
    assert lines[at + 2].split() == ["paper:", "FlexLoRA", "1.9M", str(flexlora)]
    assert "Our copy of the paper prints no scores in Table 1" in text
    assert "QQP" not in text  # neither a column nor a footnote of a task that was not run


def test_a_figure_on_a_subset_has_no_difference(tmp_path):
    write_run(tmp_path, 0.72, method="flexlora", variant="task.max_train_rows-9", subset=True, **PAPER)
    write_run(tmp_path, 0.72, method="flexlora", **PAPER)
    by_variant = {row["variant"]: row["difference"] for row in figures(tmp_path) if row["difference"] or row["marks"]}
    assert by_variant["task.max_train_rows-9"] == ""
    assert float(by_variant["default"]) == pytest.approx(72 - printed("glue.csv", "4", "FlexLoRA", task="glue/cola"))


def test_a_figure_on_rows_held_out_of_train_is_marked_and_has_no_difference(tmp_path):
    write_run(tmp_path, 0.72, method="flexlora", variant="task.validation_rows-9", data={"held_out": 9}, **PAPER)
    write_run(tmp_path, 0.72, method="flexlora", **PAPER)
    (row,) = (row for row in figures(tmp_path) if row["variant"] == "task.validation_rows-9" and row["task"])
    assert (row["difference"], "v" in row["marks"]) == ("", True)
    assert "held out of train" in report(tmp_path).stdout


def test_all_eight_tasks_have_the_papers_figures(tmp_path):
    for task in SCORES:
        write_run(tmp_path, 0.9, task=task, method="flexlora", **PAPER)
    found = {row["task"]: float(row["paper"]) for row in figures(tmp_path) if row["paper"]}
    tasks = [*(f"glue/{task}" for task in SCORES), "average"]
    assert found == {task: printed("glue.csv", "4", "FlexLoRA", task=task) for task in tasks}


def test_a_copied_run_counts_once(tmp_path):
    write_run(tmp_path / "a", 0.5, started="2026-01-01T00:00:00+00:00")
    write_run(tmp_path / "b", 0.7, started="2026-01-02T00:00:00+00:00")
    line = score(tmp_path)
    assert (line["n"], float(line["mean"])) == ("1", 70)
    assert "left out" in report(tmp_path).stdout
