"""`dry=true`: what of a command line is done, failed, interrupted or missing; nothing is run."""

import json
import re
from pathlib import Path

import pytest
from report_helpers import write_run

from flexlora.results.record import Ending
from flexlora.training.dry_run import DryRun
from flexlora.training.expected_time import expected_seconds
from flexlora.training.progress import Position


def listed(stdout: str) -> dict[str, str]:
    """Status by method."""
    return {found[2]: found[1] for found in re.finditer(r"^  (\w+) +flexlora-run .*method=(\w+)", stdout, re.M)}


def test_a_sweep_is_told_without_a_run(flexlora_run, arguments, tmp_path):
    sweep = ["-m", *arguments, "training.max_steps=2", f"output_root={tmp_path}"]
    told = flexlora_run(*sweep, "method=lora,linear,bitfit", "dry=true")
    assert told.returncode == 0, told.stderr
    assert listed(told.stdout) == {"lora": "missing", "linear": "missing", "bitfit": "missing"}
    assert "time left: not known" in told.stdout
    assert "dry" not in told.stdout  # the commands are those that would run
    assert not list(tmp_path.rglob("config.yaml"))

    trained = flexlora_run(*sweep, "method=lora,linear")
    assert trained.returncode == 0
    assert re.search(r"\[1/2\]  \S+ · lora · ", trained.stdout), trained.stdout
    assert re.search(r"\[2/2\] about \S+ left  \S+ · linear · ", trained.stdout), trained.stdout
    (record,) = (file for file in tmp_path.rglob("result.json") if "lora" in file.parts)
    values = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**values, "status": "failed", "error": "it broke"}), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("seed0/*")}
    told = flexlora_run(*sweep, "method=lora,linear,bitfit", "dry=true")
    assert listed(told.stdout) == {"lora": "failed", "linear": "done", "bitfit": "missing"}
    assert re.search(r"it broke; \S+ by the runs that are done", told.stdout), told.stdout
    assert re.search(r"^about .* left, one run after another$", told.stdout, re.M), told.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("seed0/*")} == before


def test_one_run_and_a_folder_of_another_config(flexlora_run, arguments, tmp_path):
    run = [*arguments, "method=linear", "training.max_steps=2", f"output_root={tmp_path}"]
    assert flexlora_run(*run, "dry=true").stdout.splitlines()[-2:] == [
        "missing", "time left: not known before a first run is done",
    ]  # fmt: skip
    alone = flexlora_run(*run)
    assert (alone.returncode, "[" in alone.stdout.split(" · ")[0]) == (0, False)
    (record,) = tmp_path.rglob("result.json")
    assert "training.max_steps=2" in json.loads(record.read_text())["overrides"]
    assert flexlora_run(*run, "dry=true").stdout.splitlines()[-2:] == ["done", "nothing is left to do"]
    other = flexlora_run(*run, "training.batch_size=4", "dry=true")
    assert (other.returncode, "training.batch_size: 8 → 4" in other.stderr) == (2, True)


@pytest.mark.parametrize("name", ["step-000000004", "step-000000012"])
def test_an_unfinished_run_goes_on_from_its_newest_checkpoint(tmp_path: Path, name):
    from flexlora.results.folder import RunFolder

    path = tmp_path / "scale" / "task" / "model" / "lora" / "default" / "seed0"
    path.mkdir(parents=True)
    RunFolder(path, {"seed": 0}).begin()
    for folder in ("step-000000002", name):
        (path / "checkpoints" / folder).mkdir(parents=True)
    assert DryRun().look(path, {"seed": 0}) == Ending("interrupted", f"resumes after step {int(name[5:])}")


def test_a_short_trial_says_how_long_a_whole_run_takes(tmp_path):
    """30 steps in 60 s, one evaluation in 6 s: three epochs of 128 steps take 768 s, three evaluations and a start."""
    short = {"epochs": 3, "max_steps": 30, "batch_size": 32, "gradient_accumulation": 1, "eval_every": None}
    trial = write_run(
        tmp_path, config={"training": short}, steps=30, epochs=30 / 128, samples={"train": 4096}, train_seconds=60.0,
        eval_seconds=6.0, total_seconds=76.0, history=[{"step": 30}], variant="trial",
    )  # fmt: skip
    path = trial.parents[1] / "default" / "seed1"
    assert expected_seconds(path, {"training": short}) == pytest.approx(76)
    assert expected_seconds(path, {"training": {**short, "max_steps": None}}) == pytest.approx(768 + 18 + 10)
    other_batch = {**short, "max_steps": None, "gradient_accumulation": 2, "eval_every": 64}
    assert expected_seconds(path, {"training": other_batch}) == pytest.approx(384 + 18 + 10)


def test_the_time_left_is_that_of_the_runs_most_like_those_that_wait():
    jobs = [(f"task={task}", f"method={method}", f"seed={seed}") for task in "ab" for method in "mn" for seed in "01"]
    position = Position()
    position.begin(jobs)
    position.enter(jobs[0])
    assert str(position) == "[1/8]  "
    position.leave(jobs[0], 100.0)
    position.enter(jobs[1])
    assert str(position) == "[2/8] about 11m40s left  "
    position.leave(jobs[1], 100.0)
    position.leave(jobs[2], 40.0)
    position.enter(jobs[3])  # 40 s as seed 0 took, then 4 runs of a task of which none is done: 80 s each
    assert str(position) == "[4/8] about 6m00s left  "
    position.begin(jobs, done=jobs[4:])  # another table's command has finished the second task
    position.leave(jobs[0], 100.0)
    position.enter(jobs[1])
    assert str(position) == "[2/8] about 5m00s left  "
    position.begin([])
    assert str(position) == ""
