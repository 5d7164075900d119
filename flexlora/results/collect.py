"""Finds all runs under a folder: finished ones, running or killed ones, and records that cannot be read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from flexlora.reading import read_yaml_text
from flexlora.results.record import RunRecord, read_record, record_of


@dataclass(frozen=True)
class Run:
    """The record of a run and the folder of the run."""

    path: Path
    record: RunRecord


@dataclass
class Collection:
    """The runs under a folder, sorted by path."""

    runs: list[Run] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """A line for each `result.json` that is not the record of a run."""


def collect(root: Path) -> Collection:
    """Read every run under `root`, which may be the folder of one run.

    A run without a `result.json` is still running or was killed; its status is "interrupted".
    """
    found = Collection()
    for folder, below, files in os.walk(root):
        below.sort()
        try:
            record = _read(Path(folder), files)
        except ValueError as error:
            found.broken.append(str(error))
            continue
        if record is not None:
            found.runs.append(Run(Path(folder), record))
            below.clear()  # folders in a run's folder (adapter, checkpoints) are not runs
    return found


def without_duplicates(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keep the latest of several runs that differ only in their folder.

    Returns:
        The runs that are kept, in the given order, and a line for each run that is left out.
    """
    latest: dict[tuple[str, str, str, str, str, int], Run] = {}
    notes = []
    for run in sorted(runs, key=lambda run: run.record.started or ""):
        record = run.record
        key = (record.scale, record.model, record.task, record.method, record.variant, record.seed)
        if key in latest:
            notes.append(f"left out {latest[key].path}: {run.path} is a later run of the same settings")
        latest[key] = run
    kept = {run.path for run in latest.values()}
    return [run for run in runs if run.path in kept], notes


def _read(folder: Path, files: Sequence[str]) -> RunRecord | None:
    """Return the record of the run in `folder`; None if `folder` is not the folder of a run.

    Raises:
        ValueError: `result.json` is not the record of a run.
    """
    if "result.json" in files:
        return read_record(folder / "result.json")
    return _unfinished(folder) if "config.yaml" in files else None


def _unfinished(folder: Path) -> RunRecord | None:
    """Return a record from the `config.yaml` of a run without a `result.json`; None if no run wrote that file."""
    try:
        config = yaml.safe_load(read_yaml_text(folder / "config.yaml"))
        return record_of(
            {
                "status": "interrupted",
                "error": "no result.json: still running, or killed",
                "scale": config["scale"],
                "task": config["task"]["name"],
                "model": folder.absolute().parents[2].name,
                "method": config["method"]["name"],
                "variant": folder.absolute().parent.name,
                "seed": config["seed"],
                "data_seed": config["data_seed"],
                "config": config,
                "config_hash": "",
            }
        )
    except Exception:  # YAML's constructors raise any kind of error on a value that they do not know
        return None
