"""Result folders for the report's tests: records as the runner writes them, with figures of the test's own."""

import csv
import io
import subprocess
import sys
from pathlib import Path

from flexlora.results.record import RunRecord

COMMAND = Path(sys.executable).with_name("flexlora-report")
HUB = {"source": "hub", "path": "nyu-mll/glue/cola", "revision": "abc", "sha256": None}
SCORES = {
    "cola": ("matthews_correlation",),
    "mnli": ("matched_accuracy", "mismatched_accuracy"),
    "mrpc": ("accuracy", "f1"),
    "rte": ("accuracy",),
    "qnli": ("accuracy",),
    "sst2": ("accuracy",),
    "stsb": ("pearson", "spearman", "pearson_spearman_mean"),
    "qqp": ("accuracy", "f1"),
}


def write_run(root: Path, value: float | None = 0.5, best: float | None = None, **fields) -> Path:
    """A run whose figures are all `value` (its best evaluation's `best`); its folder.

    `task` is one of GLUE, or any other by its whole name; `scores`: the names of its figures, by default the task's.
    """
    task = fields.pop("task", "cola")
    scores = fields.pop("scores", SCORES.get(task, ("accuracy",)))
    run = {"scale": "local", "model": "small", "method": "lora", "variant": "default", "seed": 0, "status": "done"}
    run |= {key: fields.pop(key) for key in list(fields) if key in run}
    last = None if value is None else {"step": 5, "epoch": 1.0, **dict.fromkeys(scores, value)}
    top = last if best is None else {"step": 3, "epoch": 0.6, **dict.fromkeys(scores, best)}
    config = {"method": {"name": run["method"], "r": 8}, "training": {"epochs": 2}}
    given = {
        "error": None if run["status"] == "done" else f"it {run['status']}",
        "data_seed": run["seed"],
        "config": {**config, "seed": run["seed"], "data_seed": run["seed"]},
        "config_hash": "0",
        "metrics": {"last": last, "best": top},
        "subset": False,
        "parameters": {
            "adapter_active": 1_327_680,
            "adapter_allocated": 1_500_000,
            "head": 592_130,
            "total": 184_423_682,
        },
        "data": HUB,
    }
    record = RunRecord(task=f"glue/{task}" if task in SCORES else task, **run, **(given | fields))
    folder = root.joinpath(record.scale, record.task, record.model, record.method, record.variant, f"seed{record.seed}")
    folder.mkdir(parents=True)
    record.write(folder / "result.json")
    return folder


def report(*arguments: object, columns: int = 200, **options) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    import os

    environment = {**os.environ, "COLUMNS": str(columns)}
    words = [str(COMMAND), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment, check=False, **options)


def figures(*arguments: object) -> list[dict[str, str]]:
    """The lines of the CSV; the command must succeed."""
    result = report(*arguments, "--format", "csv")
    assert result.returncode == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout)))


def line_of(text: str, start: str) -> list[str]:
    """The words of the first line that starts with `start`."""
    return next(line.split() for line in text.splitlines() if line.startswith(start))
