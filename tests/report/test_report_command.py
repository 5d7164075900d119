"""`flexlora-report` as a command: its options, its refusals, and what it finds under a folder."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from report_helpers import SCORES, figures, line_of, report, write_run

from flexlora.results.collect import collect

PAPER = {"scale": "paper", "model": "deberta_v3_base"}
UNFINISHED = "scale: local\ntask: {name: glue/cola}\nmethod: {name: lora}\nseed: 0\ndata_seed: 0\n"


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The only line of a command that had nothing to show."""
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("flexlora-report: ")
    return line


def test_a_run_without_a_result_is_still_running_or_was_killed(tmp_path):
    folder = write_run(tmp_path)
    (folder / "config.yaml").write_text(UNFINISHED)
    (folder / "result.json").unlink()
    result = report(tmp_path)
    assert result.returncode == 0
    assert line_of(result.stdout, "lora")[-1] == "interrupted"
    assert "still running, or killed" in result.stdout


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_text_keeps_to_the_width_and_loses_no_figure(tmp_path, columns):
    for task in SCORES:
        for method in ("lora", "flexlora"):
            write_run(tmp_path, 0.123, task=task, method=method, **PAPER)
    text = report(tmp_path, columns=columns).stdout
    table = text[: text.index("·  ")]
    assert max(map(len, table.splitlines())) <= columns
    assert table.count("12.3 (1)") == 2 * 14


def test_the_format_follows_the_files_ending(tmp_path):
    write_run(tmp_path / "outputs")
    for name, start in (("t.md", "### GLUE"), ("t.csv", "table,scale,"), ("t.txt", "GLUE,")):
        result = report(tmp_path / "outputs", "--output", tmp_path / name)
        assert result.returncode == 0
        assert result.stdout.strip() == f"{tmp_path / name}: 1 table"
        assert (tmp_path / name).read_text().startswith(start)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["outputs", "t.csv", "t.md", "t.txt"]


def test_outputs_is_where_it_looks_by_default(tmp_path):
    write_run(tmp_path / "outputs", 0.5)
    assert "50.0 (1)" in report(cwd=tmp_path).stdout


def test_methods_can_be_chosen(tmp_path):
    for method in ("lora", "flexlora"):
        write_run(tmp_path, method=method)
    assert {row["method"] for row in figures(tmp_path, "--method", "lora")} == {"lora"}
    assert "Did you mean flexlora?" in refusal(report(tmp_path, "--method", "flexlor"))


def test_a_broken_record_is_named_and_the_others_are_shown(tmp_path):
    write_run(tmp_path, 0.5)
    bad = [write_run(tmp_path, method=f"m{i}") / "result.json" for i in range(4)]
    values = json.loads(bad[0].read_text())
    bad[0].write_text("{")
    bad[1].write_text("[]")
    bad[2].write_text(json.dumps(values | {"metrics": "good"}))
    bad[3].write_text(json.dumps(values | {"seed": None}))
    result = report(tmp_path)
    assert result.returncode == 1
    assert "50.0 (1)" in result.stdout
    lines = result.stderr.strip().splitlines()
    assert [str(path) in line for path, line in zip(bad, lines, strict=True)] == [True] * 4
    assert "'metrics' cannot be 'good'" in lines[2]


def test_a_record_of_an_older_version_is_read(tmp_path):
    path = write_run(tmp_path, 0.5) / "result.json"
    values = json.loads(path.read_text())
    for key in ("flops", "parameters", "data", "subset", "tokens"):
        del values[key]
    path.write_text(json.dumps(values))
    result = report(tmp_path)
    assert result.returncode == 0, result.stderr
    assert line_of(result.stdout, "lora") == ["lora", "–", "–", "50.0", "(1)"]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("config.yaml", "a: 1", 0), ("config.yaml", "{", 0), ("result.json", "[1]", 1), ("result.json", "{", 1)],
)
@pytest.mark.parametrize("place", ["", "local", "local/glue/cola"])
def test_another_file_of_a_runs_name_hides_no_run(tmp_path, name, content, code, place):
    folder = write_run(tmp_path, 0.5)
    (tmp_path / place / name).write_text(content)
    found = collect(tmp_path)
    assert [run.path for run in found.runs] == [folder]
    assert len(found.broken) == code
    result = report(tmp_path)
    assert result.returncode == code
    assert "50.0 (1)" in result.stdout


def test_what_lies_in_a_runs_folder_is_not_looked_at(tmp_path, monkeypatch):
    folders = [write_run(tmp_path, seed=seed) for seed in (0, 1)]
    (folders[1] / "result.json").unlink()
    (folders[1] / "config.yaml").write_text(UNFINISHED)
    looked: list[str] = []
    walk = os.walk

    def watched(root):
        for found in walk(root):
            looked.append(found[0])
            yield found

    for folder in folders:
        shutil.copytree(folder, folder / "adapter" / "copy")
    monkeypatch.setattr("os.walk", watched)
    assert [run.path for run in collect(tmp_path).runs] == folders
    assert not [path for path in looked if "adapter" in path]


@pytest.mark.parametrize("name", ["scale", "seed"])
def test_a_config_of_another_shape_is_no_run(tmp_path, name):
    folder = write_run(tmp_path)
    (folder / "result.json").unlink()
    config = "".join(f"{name}: [1]\n" if line.startswith(name) else f"{line}\n" for line in UNFINISHED.splitlines())
    (folder / "config.yaml").write_text(config)
    assert collect(tmp_path).runs == []


def test_only_broken_records(tmp_path):
    (write_run(tmp_path) / "result.json").write_text("{}")
    result = report(tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "is not the record of a run" in result.stderr


def test_nothing_to_show_is_one_line(tmp_path):
    assert "there is no folder" in refusal(report(tmp_path / "nowhere"))
    assert "flexlora-run -m task=glue/cola" in refusal(report(tmp_path))
    write_run(tmp_path, task="my/own")
    assert "no run of a task in the table vtab: its runs are of my/own" in refusal(report(tmp_path, "--table", "vtab"))
    write_run(tmp_path / "vtab", task="vtab/dtd")
    refused = refusal(report(tmp_path / "vtab", "--table", "vtab_table16"))
    assert "no run of the methods and settings that the table vtab_table16 shows" in refused


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--table", "gleu"], "there is no table 'gleu'. Did you mean glue?"),
        (["--tabel", "glue"], "--tabel"),
        (["--metric", "worst"], "worst"),
        (["--output", "table.xlsx"], ".csv"),
        (["--output", "nowhere/table.md"], "cannot write nowhere/table.md"),
    ],
)
def test_a_wrong_command_line_is_one_line(tmp_path, arguments, what):
    write_run(tmp_path)
    assert what in refusal(report(tmp_path, *arguments, cwd=tmp_path))


def test_help_says_what_there_is():
    result = report("--help")
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("--table", "--format", "--metric", "--all-tasks", "outputs", "glue"))


def test_a_reader_that_stops_early_is_no_traceback(tmp_path):
    for method in map(str, range(300)):
        write_run(tmp_path, method=f"m{method}")
    from report_helpers import COMMAND

    script = f'"{COMMAND}" "{tmp_path}" --all-tasks | head -1'
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == ""


def test_the_report_imports_nothing_heavy(tmp_path):
    write_run(tmp_path, **PAPER)
    code = (
        "import sys\n"
        "from flexlora.cli.report import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'numpy', 'hydra', 'accelerate', 'matplotlib'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "paper: FlexLoRA" in result.stdout
