"""`--table cost_table12, 13, 14`: what runs of `experiment=cost` took, beside LoRA's of the same round."""

from types import SimpleNamespace

import pytest
from method_helpers import settings_of
from report_helpers import CPU, PAPER, figures, printed, report, write_cost

from flexlora.errors import UserError
from flexlora.results.collect import collect
from flexlora.testing.comparing import rows_of
from flexlora.training.accelerator import make_accelerator


def line(lines, method, metric, task="glue/cola", source="ours"):
    (found,) = [
        row for row in lines
        if (row["method"], row["metric"], row["task"], row["source"]) == (method, metric, task, source)
    ]  # fmt: skip
    return found


def test_figures_and_ratios_are_those_of_the_records(tmp_path):
    """The ratio is the mean of the rounds' ratios (2 and 4), and not that of the means (36 / 11)."""
    for seed, (lora, flexlora) in enumerate([(2.0, 4.0), (20.0, 80.0)]):
        write_cost(tmp_path, lora, seed=seed, **PAPER)
        write_cost(tmp_path, flexlora, "flexlora", seed=seed, **PAPER)
    lines = figures(tmp_path, "--table", "cost_table12")
    found = line(lines, "flexlora", "train_seconds")
    assert (float(found["mean"]), found["n"], float(found["ratio"])) == (42.0, "2", 3.0)
    assert float(line(lines, "flexlora", "eval_seconds")["mean"]) == pytest.approx(0.42)  # the last, not all
    assert float(line(lines, "flexlora", "device_bytes")["mean"]) == 3.0
    assert float(line(lines, "flexlora", "flops")["mean"]) == 42.0
    assert float(line(lines, "lora", "samples_per_second")["mean"]) == pytest.approx((10_000 / 2 + 10_000 / 20) / 2)
    assert float(line(lines, "flexlora", "samples_per_second")["ratio"]) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert line(lines, "lora", "train_seconds")["ratio"] == ""
    text = report(tmp_path, "--table", "cost_table12").stdout
    assert text.startswith("Training cost on GLUE, as Table 12 of the FlexLoRA paper · deberta_v3_base\n")
    assert "On NVIDIA A GPU." in text
    assert "× 3.000 ± 1.414" in text


def test_the_papers_own_ratios_stand_below_its_figures(tmp_path):
    write_cost(tmp_path, 100.0, "flexlora", **PAPER)
    write_cost(tmp_path, 100.0, "lora", **PAPER)
    lines = figures(tmp_path, "--table", "cost_table12")
    paper = line(lines, "flexlora", "train_seconds", source="paper")
    where = {"task": "glue/cola", "metric": "Train Runtime (s)"}
    flexlora, lora = (printed("cost.csv", "12", row, **where) for row in ("FlexLoRA", "LoRA"))
    assert (float(paper["mean"]), float(paper["ratio"])) == (flexlora, pytest.approx(flexlora / lora))
    memory = printed("cost.csv", "12", "AdaLoRA", task="glue/cola", metric="GPU Mem (MB)")
    assert float(line(lines, "adalora", "device_bytes", source="paper")["mean"]) == memory
    ours = line(lines, "flexlora", "train_seconds")
    assert (float(ours["paper"]), ours["difference"]) == (flexlora, "")  # another machine's seconds


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({**PAPER, "hardware": CPU}, "on a CPU (2 threads)"),
        ({**PAPER, "max_steps": 200}, "a part of a training"),
        ({**PAPER, "subset": True}, "a part of the data"),
        ({"scale": "local", "model": "minilm"}, "another model than the paper's deberta_v3_base"),
        ({"scale": "tiny", "model": "deberta_v3_base"}, "a small model or generated data"),
        ({**PAPER, "data": {"source": "generated"}}, "a small model or generated data"),
    ],
)
def test_nothing_else_stands_under_the_papers_title(tmp_path, fields, why):
    write_cost(tmp_path, 10.0, **fields)
    title, *text = report(tmp_path, "--table", "cost_table12").stdout.splitlines()
    assert f": {why}; these figures say nothing about the paper" in title
    assert "as Table" not in title
    assert not any(row.startswith("paper:") for row in text)


def test_ratios_are_taken_in_the_same_circumstances(tmp_path):
    """Not to LoRA's run of another length, nor of another round; and machines have tables of their own."""
    write_cost(tmp_path, 10.0, "lora", **PAPER)
    write_cost(tmp_path, 1.0, "lora", variant="short", max_steps=200, **PAPER)
    write_cost(tmp_path, 3.0, "flexlora", variant="short", max_steps=200, **PAPER)
    write_cost(tmp_path, 7.0, "flexlora", seed=1, variant="short", max_steps=200, **PAPER)
    write_cost(tmp_path, 500.0, "flexlora", variant="elsewhere", hardware=CPU, **PAPER)
    lines = figures(tmp_path, "--table", "cost_table12")
    found = {row["variant"]: row["ratio"] for row in lines
             if (row["method"], row["metric"], row["source"]) == ("flexlora", "train_seconds", "ours")}  # fmt: skip
    assert found == {"short": "3.0", "elsewhere": ""}
    assert report(tmp_path, "--table", "cost_table12").stdout.count("Training cost on GLUE") == 3


def test_a_part_of_a_training_leaves_whole_ones_their_title(tmp_path):
    write_cost(tmp_path, 10.0, **PAPER)
    write_cost(tmp_path, 20.0, "flexlora", **PAPER)
    write_cost(tmp_path, 1.0, "flexlora", variant="cost_200_steps", max_steps=200, **PAPER)
    titles = [
        line for line in report(tmp_path, "--table", "cost_table12").stdout.splitlines() if "Training cost" in line
    ]
    assert len(titles) == 2
    assert titles[0] == "Training cost on GLUE, as Table 12 of the FlexLoRA paper · deberta_v3_base"
    assert "a part of a training; these figures say nothing about the paper" in titles[1]


def test_only_runs_whose_cost_was_measured_are_shown(tmp_path):
    write_cost(tmp_path, 10.0, "lora", **PAPER)
    write_cost(tmp_path, 20.0, "flexlora", counted=False, **PAPER)
    lines = figures(tmp_path, "--table", "cost_table12")
    assert {row["method"] for row in lines if row["source"] == "ours"} == {"lora"}
    assert {row["method"] for row in figures(tmp_path) if row["source"] == "ours"} == {"flexlora"}  # and only there
    refused = report(tmp_path, "--table", "cost_table14")
    assert (refused.returncode, "no run of a task in the table cost_table14" in refused.stderr) == (2, True)


def test_every_format_is_written(tmp_path):
    write_cost(tmp_path, 2000.0, **PAPER)
    write_cost(tmp_path, 2200.0, "flexlora", **PAPER)
    write_cost(tmp_path, 2100.0, "adalora", status="failed", **PAPER)
    assert report(tmp_path, "--table", "cost_table12", "--save", tmp_path / "tables").returncode == 0
    for ending, ratio in {"md": "× 1.100", "tex": "1.100", "html": "× 1.100", "csv": ",1.1\n"}.items():
        text = (tmp_path / "tables" / f"cost_table12.{ending}").read_text(encoding="utf-8")
        assert ratio in text, ending
        assert "failed" in text


def test_a_run_of_the_experiment_is_measured(flexlora_run, arguments, tmp_path):
    words = [word for word in arguments if not word.startswith(("variant", "training.learning_rate"))]
    sweep = ("-m", "experiment=cost", *words, "training.max_steps=6", f"output_root={tmp_path}", "seed=0")
    ran = flexlora_run(*sweep)
    assert ran.returncode == 0, ran.stderr
    runs = {run.record.method: run for run in collect(tmp_path).runs}
    assert runs.keys() == {"lora", "adalora", "flexlora"}
    operations = {method: run.record.flops for method, run in runs.items()}
    # As many directions for LoRA and FlexLoRA at least, whose penalty and spare ones come on top.
    assert 0 < operations["lora"] < operations["flexlora"]
    for run in runs.values():
        assert (run.record.variant, len(run.record.history)) == ("cost", 1)
        (train, evaluated) = [row["kind"] for row in rows_of(run.path / "metrics.jsonl")]
        assert (train, evaluated) == ("train", "eval")
    lines = figures(tmp_path, "--table", "cost_table12")
    assert float(line(lines, "flexlora", "flops")["ratio"]) == operations["flexlora"] / operations["lora"]
    assert all(float(line(lines, method, "samples_per_second")["mean"]) > 0 for method in runs)


def test_what_several_processes_do_is_not_counted(monkeypatch, tmp_path):
    monkeypatch.setattr("flexlora.training.accelerator.Accelerator", lambda **_: SimpleNamespace(num_processes=2))
    with pytest.raises(UserError, match="count_flops=true counts what one process does"):
        make_accelerator(settings_of("lora", "training.count_flops=true"), tmp_path)


@pytest.mark.parametrize("words", [("--against", "lora"), ("--intervals",), ("--metric", "best"), ("--all-tasks",)])
def test_options_of_scores_are_refused(tmp_path, words):
    write_cost(tmp_path, 10.0, **PAPER)
    result = report(tmp_path, "--table", "cost_table12", *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"flexlora-report: cost_table12 is of costs, and not of scores: leave {words[0]} out\n"
