"""Finds all runs under a folder: finished ones, running or killed ones, and records that cannot be read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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


def distinct_runs(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keep the latest of several runs with the same settings, and rename runs that share their names only.

    Runs of one scale, model, task, method, variant and seed can have other settings: they are in several output roots,
    or a `variant` was given by hand. Their variants get the settings in which they differ, as if these were overrides.

    Returns:
        The runs that are kept, in the given order, and a line for each run left out and each variant that was renamed.
    """
    by_names: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.record.started or ""):
        by_names.setdefault((*_variant_of(run.record), run.record.task, run.record.seed), []).append(run)
    clashes = [alike for alike in by_names.values() if len(alike) > 1]
    if not clashes:
        return list(runs), []
    from flexlora.results.folder import config_hash, differing_keys  # here: it imports Hydra

    left_out: set[Path] = set()
    notes: list[str] = []
    differing: dict[tuple[Any, ...], set[str]] = {}
    for alike in clashes:
        latest: dict[str, Run] = {}
        for run in alike:
            settings = config_hash(run.record.config)
            if settings in latest:
                left_out.add(latest[settings].path)
                notes.append(f"left out {latest[settings].path}: {run.path} is a later run of the same settings")
            latest[settings] = run
        first, *others = latest.values()
        keys = {key for other in others for key in differing_keys(first.record.config, other.record.config)}
        variant = _variant_of(first.record)
        if keys and variant not in differing:
            paths = " and ".join(str(run.path) for run in (first, others[0]))
            notes.append(f"kept apart: {paths} have the same names and other settings ({', '.join(sorted(keys))})")
        if keys:
            differing.setdefault(variant, set()).update(keys)
    kept = [run for run in runs if run.path not in left_out]
    return [_renamed(run, differing.get(_variant_of(run.record), set())) for run in kept], notes


def _variant_of(record: RunRecord) -> tuple[str, str, str, str]:
    return record.scale, record.model, record.method, record.variant


def _renamed(run: Run, keys: set[str]) -> Run:
    """Return the run with the values of these settings in its variant."""
    if not keys:
        return run
    from flexlora.settings import flat_keys

    record, settings = run.record, flat_keys(run.record.config)
    parts = [f"{key}-{str(settings.get(key, 'absent')).replace('+', ' ')}" for key in sorted(keys)]
    own = [part for part in record.variant.split("+") if part.partition("-")[0] not in {"default", *keys}]
    return replace(run, record=replace(record, variant="+".join([*own, *parts])))


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
