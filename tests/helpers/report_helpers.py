"""Result folders for the report's tests: records as the runner writes them, with figures of the test's own."""

import contextlib
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flexlora.cli.report import main
from flexlora.report.published import read_published
from flexlora.results.folder import config_hash
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
    values = given | fields
    values.setdefault("config_hash", config_hash(values["config"]))
    record = RunRecord(task=f"glue/{task}" if task in SCORES else task, **run, **values)
    folder = root.joinpath(record.scale, record.task, record.model, record.method, record.variant, f"seed{record.seed}")
    folder.mkdir(parents=True)
    record.write(folder / "result.json")
    return folder


def report(*arguments: object, columns: int = 200, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `flexlora-report` prints, run in this process; one that ends in a traceback raises."""
    out, err = io.StringIO(), io.StringIO()
    words = ["flexlora-report", *map(str, arguments)]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", words)
        patch.setenv("COLUMNS", str(columns))
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def figures(*arguments: object) -> list[dict[str, str]]:
    """The lines of the CSV; the command must succeed."""
    result = report(*arguments, "--format", "csv")
    assert result.returncode == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout)))


def printed(file: str, table: str, row: str, **where: str) -> float:
    """The number of `published/<file>` in this row of the paper's table: `task="glue/cola"`, or `metric="BoolQ"`."""
    lines = [line for line in read_published(file) if (line.table, line.row) == (table, row)]
    (value,) = {line.value for line in lines if all(getattr(line, key) == value for key, value in where.items())}
    assert value is not None
    return value


def line_of(text: str, start: str) -> list[str]:
    """The words of the first line that starts with `start`."""
    return next(line.split() for line in text.splitlines() if line.startswith(start))


KINDS = (
    "attention.self.query_proj",
    "attention.self.key_proj",
    "attention.self.value_proj",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def write_training(folder: Path, layers: int = 4, events: int = 5, tilt: int = 1, kinds=KINDS, seed: int = 0) -> Path:
    """What a run of FlexLoRA leaves beside its record, for `folder` of `write_run`: ranks, metrics, adapter.

    At every event a matrix of a first layer (with a `tilt` of -1: of a last one) whose turn it is gains a direction,
    and the one of the same kind at the other end loses one; ranks begin at 8, and λ is drawn by `seed`.
    """
    from safetensors.numpy import save_file

    draw = np.random.default_rng(seed)
    names = [f"model.encoder.layer.{layer}.{kind}" for layer in range(layers) for kind in kinds]
    ranks = dict.fromkeys(names, 8)
    rows = []
    for event in range(events):
        spectra = {
            name: sorted(map(float, draw.exponential(size=ranks[name]).round(3)), reverse=True) for name in names
        }
        shallow, deep = 0 + event % max(1, layers // 3), layers - 1 - event % max(1, layers // 4)
        kind = kinds[event % len(kinds)]
        grown, pruned = (f"model.encoder.layer.{i}.{kind}" for i in ((shallow, deep)[::tilt]))
        if ranks[pruned] == 1:
            grown, pruned = pruned, grown
        ranks[grown] += 1
        ranks[pruned] -= 1
        rows.append(
            {
                "step": 10 * (event + 1),
                "budget": 1,
                "pruned": [pruned],
                "grown": [grown],
                "ranks": dict(ranks),
                "scores": {name: float(draw.uniform(0.4, 1)) for name in names},
                "energy": {name: sum(value**2 for value in spectrum) for name, spectrum in spectra.items()},
                "singular_values": spectra,
                "total_rank": sum(ranks.values()),
            }
        )
    (folder / "ranks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    metrics = [{"kind": "train", "step": step, "loss": 1 / step, "train_seconds": 0.1} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in metrics), encoding="utf-8")
    tensors = {}
    for name in names:
        values = draw.normal(size=ranks[name]).astype(np.float32)
        tensors[f"base_model.model.{name}.flexlora_lambda"] = values
    (folder / "adapter").mkdir()
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    return folder


GPU = {"device": "cuda:0", "accelerator": "NVIDIA A GPU", "torch_threads": 1}


CPU = {"device": "cpu", "accelerator": None, "torch_threads": 2}


PAPER = {"scale": "paper", "model": "deberta_v3_base"}


def write_cost(root, seconds, method="lora", task="cola", hardware=GPU, max_steps=None, counted=True, **fields):
    training = {"max_steps": max_steps, "count_flops": counted, "batch_size": 32, "learning_rate": 1e-4}
    last = {"step": 101, "epoch": 2.0, "matthews_correlation": 0.1, "accuracy": 0.1, "eval_seconds": seconds / 100}
    memory = {"device_bytes": 3 * 2**20 if hardware is GPU else None, "process_bytes": 2**30}
    given = {
        "config": {"method": {"name": method}, "training": training},
        "metrics": {"last": last, "best": last},
        "samples": {"train": 5050, "evaluation": {"validation": 10}},
        "variant": "cost", "epochs": 2.0, "steps": 101, "train_seconds": seconds, "eval_seconds": 9e9,
        "peak_memory": memory, "flops": seconds * 1e9, "hardware": hardware,
    }  # fmt: skip
    return write_run(root, 0.1, method=method, task=task, **(given | fields))
