"""All runs under a folder: their records, those that are still going or were killed, and the files that are broken."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from flexlora.results.record import RunRecord, read_record, record_of


@dataclass(frozen=True)
class Run:
    """A record and the folder it lies in."""

    path: Path
    record: RunRecord


@dataclass
class Collection:
    """What lies under a folder, in the order of its paths."""

    runs: list[Run] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """A line for each `result.json` that is not the record of a run."""


def collect(root: Path) -> Collection:
    """Read every run under `root`, which may be one run's own folder.

    A run without a `result.json` is still going, or was killed before it could write one: it counts as interrupted.
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
            below.clear()  # what lies in a run's folder (its adapter, its checkpoints) is no run
    return found


def without_duplicates(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Of runs that differ in nothing but their folder the latest, in the order given; a note for each one left out."""
    latest: dict[tuple[str, str, str, str, str, int], Run] = {}
    notes = []
    for run in sorted(runs, key=lambda run: run.record.started or ""):
        record = run.record
        key = (record.scale, record.model, record.task, record.method, record.variant, record.seed)
        if key in latest:
            notes.append(f"left out, as {run.path} is the same run and later: {latest[key].path}")
        latest[key] = run
    kept = {run.path for run in latest.values()}
    return [run for run in runs if run.path in kept], notes


def _read(folder: Path, files: Sequence[str]) -> RunRecord | None:
    """The record of the run whose folder this is; None where it is no run's.

    Raises:
        ValueError: its `result.json` is not the record of a run.
    """
    if "result.json" in files:
        return read_record(folder / "result.json")
    return _unfinished(folder) if "config.yaml" in files else None


def _unfinished(folder: Path) -> RunRecord | None:
    """What is known of a run that has only its `config.yaml`; None where that is some other file of this name."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
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
    except (OSError, yaml.YAMLError, ValueError, RecursionError, KeyError, TypeError, IndexError):
        return None
