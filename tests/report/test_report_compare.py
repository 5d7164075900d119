"""`flexlora-report compare A B`: each way in which two runs can differ is found and named; clocks are none."""

import json

import numpy as np
import pytest
from report_helpers import report, write_run, write_training
from safetensors.numpy import load_file, save_file

from flexlora.report.compare_runs import compare
from flexlora.results.collect import collect
from flexlora.results.predictions import BEST, LAST, Predictions

HISTORY = [
    {"step": step, "epoch": step / 10, "eval_loss": {"validation": 0.5}, "accuracy": 0.1 * step, "eval_seconds": 1.0}
    for step in (3, 5)
]


def make(root, **fields):
    folder = write_training(write_run(root, history=HISTORY, **fields))
    Predictions(folder).keep(5, {"validation": [0, 1, 1]}, {"validation": [0, 1, 0]}, best=True)
    return folder


@pytest.fixture
def pair(tmp_path):
    return make(tmp_path / "a"), make(tmp_path / "b")


def found(first, second):
    """The differences by section, and the titles of those that count."""
    sections = compare(*(collect(folder).runs[0] for folder in (first, second)))
    differences = {section.title: [tuple(vars(d).values()) for d in section.differences] for section in sections}
    return differences, [section.title for section in sections if section.counts]


def edit(path, change):
    """`change` the JSON of a file, or that of each line of it."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    rows = [json.loads(line) for line in lines]
    change(rows if path.suffix == ".jsonl" else rows[0])
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_equal_runs_exit_0(pair):
    assert found(*pair) == ({}, [])
    result = report("compare", *pair)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("They are equal but for clocks and interruptions.\n")
    assert all(str(folder) in result.stdout for folder in pair)


def test_clocks_do_not_count(pair):
    def later(record):
        record["train_seconds"], record["started"], record["resumed_at"] = 12.5, "2026-01-01", [3]
        record["history"][0]["eval_seconds"] = 99.0
        record["config"]["output_root"] = "elsewhere"

    edit(pair[1] / "result.json", later)
    edit(pair[1] / "metrics.jsonl", lambda rows: rows[0].update(train_seconds=7.0))
    differences, counted = found(*pair)
    assert counted == []
    assert list(differences) == ["clocks and interruptions"]
    assert ("train_seconds", "null", "12.5") in differences["clocks and interruptions"]
    assert report("compare", *pair).returncode == 0


@pytest.mark.parametrize(
    ("change", "title", "difference"),
    [
        (lambda r: r["config"]["method"].update(r=4), "settings", ("method.r", "8", "4")),
        (lambda r: r["config"].update(extra=True), "settings", ("extra", "–", "true")),
        (lambda r: r.update(versions={"torch": "9"}), "versions and hardware", ("versions.torch", "–", "9")),
        (lambda r: r["data"].update(revision="abd"), "data and backbone", ("data.revision", "abc", "abd")),
        (lambda r: r.update(train_loss=0.25), "outcome", ("train_loss", "null", "0.25")),
        (lambda r: r.update(seed=1), "run", ("seed", "0", "1")),
        (
            lambda r: r["history"][1].update(accuracy=0.4),
            "evaluations",
            ("step 5: accuracy", "0.5", "0.4"),
        ),
        (
            lambda r: r["history"][1].update(accuracy=0.5 + 1e-12),
            "evaluations",
            ("step 5: accuracy", "0.5", repr(0.5 + 1e-12)),
        ),
        (lambda r: r["history"].pop(), "evaluations", ("step 5", "evaluated", "–")),
        (
            lambda r: r["history"][0]["eval_loss"].update(validation=0.75),
            "evaluations",
            ("step 3: eval_loss.validation", "0.5", "0.75"),
        ),
    ],
)
def test_what_the_records_differ_in(pair, change, title, difference):
    edit(pair[1] / "result.json", change)
    differences, counted = found(*pair)
    assert differences == {title: [difference]}
    assert counted == [title]


def test_the_first_line_of_the_metrics_that_differs(pair):
    edit(pair[1] / "metrics.jsonl", lambda rows: [row.update(loss=2.0) for row in rows[1:]])
    assert found(*pair)[0] == {"metrics.jsonl, from here on": [("line 2, step 2: loss", "0.5", "2")]}


def test_metrics_that_end_before(pair):
    edit(pair[1] / "metrics.jsonl", lambda rows: rows.pop())
    differences = {"metrics.jsonl, from here on": [("line 3, step 3", '"train"', "ended before")]}
    assert found(*pair)[0] == differences


def test_a_line_that_is_half_written_is_none(pair):
    with (pair[1] / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    assert found(*pair) == ({}, [])


def test_rank_events(pair):
    def other_module(rows):
        rows[2]["grown"] = ["model.encoder.layer.3.output.dense"]
        rows[2]["ranks"]["model.encoder.layer.3.output.dense"] = 9
        rows[3]["step"] = 41
        rows.pop()

    edit(pair[1] / "ranks.jsonl", other_module)
    assert found(*pair)[0]["rank events"] == [
        ("number of events", "5", "4"),
        ("events that differ", "2", "of 4 that both have"),
        (
            "step 30: grown, there alone",
            "model.encoder.layer.0.attention.self.value_proj",
            "model.encoder.layer.3.output.dense",
        ),
        ("step 30: ranks of model.encoder.layer.3.output.dense", "8", "9"),
    ]


def test_predictions(pair):
    Predictions(pair[1]).keep(5, {"validation": [1, 1, 0]}, {"validation": [0, 1, 0]}, best=False)
    assert found(*pair)[0] == {"predictions": [(f"{LAST}: validation", "2 answers differ", "of 3")]}
    (pair[1] / BEST).unlink()
    assert found(*pair)[0]["predictions"][1] == (BEST, "kept", "–")


def test_weights(pair):
    file = pair[1] / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name, other, third = list(tensors)[:3]
    was = float(tensors[name][1])
    tensors[name][1] += np.float32(0.5)
    tensors[other] = np.append(tensors[other], np.float32(0))
    del tensors[third]
    save_file(tensors, file)
    differences = {what.removeprefix("adapter_model.safetensors: "): rest for what, *rest in found(*pair)[0]["weights"]}
    assert differences.keys() == {name, other, third}
    assert [float(value) for value in differences[name]] == pytest.approx([was, was + 0.5], rel=1e-4)
    assert differences[other] == [f"F32 [{len(tensors[other]) - 1}]", f"F32 [{len(tensors[other])}]"]
    assert differences[third] == ["saved", "–"]


def test_long_lists_are_cut_and_the_exit_code_is_1(pair):
    edit(pair[1] / "result.json", lambda r: r["config"].update({f"key{i}": i for i in range(20)}))
    result = report("compare", *pair)
    assert result.returncode == 1
    assert "key11" in result.stdout
    assert "key12" not in result.stdout
    assert "and 8 more" in result.stdout
    assert "They differ in: settings." in result.stdout


def test_refusals_are_one_line(pair, tmp_path):
    for words, expected in (
        ((pair[0],), "the following arguments are required: B"),
        ((pair[0], tmp_path / "nothing"), "there is no run in"),
        ((pair[0], tmp_path), "there are 2 runs"),
    ):
        result = report("compare", *words)
        assert (result.returncode, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) == 1
        assert expected in result.stderr
    (pair[1] / "ranks.jsonl").write_text("{]\n")
    result = report("compare", *pair)
    assert result.returncode == 2
    assert f"{pair[1] / 'ranks.jsonl'}, line 1, is not JSON" in result.stderr
    (pair[1] / "ranks.jsonl").unlink()
    (pair[1] / "adapter" / "adapter_model.safetensors").write_bytes(b"none")
    assert "is no safetensors file" in report("compare", *pair).stderr


@pytest.mark.parametrize("row", [{"accuracy": 0.5}, 7, {"step": [1]}])
def test_a_damaged_history_is_one_line(pair, row):
    edit(pair[1] / "result.json", lambda record: record["history"].insert(1, row))
    result = report("compare", *pair)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert f"{pair[1] / 'result.json'}: entry 2 of its history is no evaluation after a step" in result.stderr


def test_rows_without_their_kind_or_step(pair):
    edit(pair[0] / "metrics.jsonl", lambda rows: rows.append({"loss": 0.1}))
    edit(pair[1] / "ranks.jsonl", lambda rows: rows[2].pop("step"))
    differences = found(*pair)[0]
    assert differences["metrics.jsonl, from here on"] == [("line 4, step ?", '"?"', "ended before")]
    assert differences["rank events"] == [("events that differ", "1", "of 5 that both have"), ("step", "30", "null")]


def test_no_torch_is_imported(pair):
    import subprocess
    import sys

    code = "import sys; from flexlora.cli.report_commands import COMMANDS; COMMANDS['compare'](sys.argv[1:]); "
    code += "print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, *map(str, pair)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.endswith("False\n")
