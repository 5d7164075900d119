"""All runs under a folder: their records, those that are still going or were killed, and the files that are broken."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from flexlora.results.record import RunRecord, read_record


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
    for folder in _run_folders(root):
        try:
            result = folder / "result.json"
            record = read_record(result) if result.is_file() else _unfinished(folder)
        except ValueError as error:
            found.broken.append(str(error))
            continue
        if record is not None:
            found.runs.append(Run(folder, record))
    return found


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        if {"result.json", "config.yaml"} & set(files):
            below.clear()  # what lies in a run's folder (its adapter, its checkpoints) is no run
            yield Path(folder)
        below.sort()


def _unfinished(folder: Path) -> RunRecord | None:
    """What is known of a run that has only its `config.yaml`; None where that is some other file of this name."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return RunRecord(
            status="interrupted",
            error="no result.json: still running, or killed",
            scale=config["scale"],
            task=config["task"]["name"],
            model=folder.absolute().parents[2].name,
            method=config["method"]["name"],
            variant=folder.absolute().parent.name,
            seed=config["seed"],
            data_seed=config["data_seed"],
            config=config,
            config_hash="",
        )
    except (OSError, yaml.YAMLError, ValueError, RecursionError, KeyError, TypeError, IndexError):
        return None
