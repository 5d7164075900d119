"""`dry=true`: what of a command line is done, failed, interrupted or missing; nothing is run."""

import json
import re
from pathlib import Path

import pytest

from flexlora.results.record import Ending
from flexlora.training.dry_run import DryRun


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

    assert flexlora_run(*sweep, "method=lora,linear").returncode == 0
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
    assert flexlora_run(*run).returncode == 0
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
