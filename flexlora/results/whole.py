"""Compares a finished run with its record: the files of its folder, and the files that it read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexlora.results.predictions import BEST, LAST
from flexlora.results.record import RunRecord
from flexlora.results.stamps import Stamp, difference, folder_stamp, stamps

CONFIGURATION = "configuration.json"
"""What the method chose from gradients before training, such as a sharing plan."""
VOUCHED = ("metrics.jsonl", "ranks.jsonl", LAST, BEST, "config.yaml", CONFIGURATION)
"""The files of a run's folder that its record vouches for, besides those in `adapter/`."""
CARD = "README.md"
"""PEFT's page about an adapter. It is not compared, because users may edit it."""
NOUNS = {"data": "data", "images": "images", "model": "model", "adapter": "initial adapter", "ranks": "source of ranks"}


@dataclass
class Findings:
    """The differences between a run and its record."""

    damaged: list[str] = field(default_factory=list)
    """A line for each file of the run's folder that differs."""
    changed: dict[str, list[str]] = field(default_factory=dict)
    """A line for each file that the run read and that differs, by the kind of input."""
    unknown: list[str] = field(default_factory=list)
    """A line for each part that cannot be compared, with the reason."""


def vouched_files(folder: Path) -> dict[str, Stamp]:
    """Return the stamps of the files that the record of the run in `folder` vouches for, by their path in it.

    Raises:
        OSError: a file cannot be read.
    """
    weights = [path for path in sorted((folder / "adapter").rglob("*")) if path.name != CARD]
    found = stamps(path for path in [*weights, *(folder / name for name in VOUCHED)] if path.is_file())
    return {Path(path).relative_to(folder).as_posix(): values for path, values in found.items()}


def look(folder: Path, record: RunRecord, sha256_of: Callable[[Path], str] | None = None) -> Findings:
    """Compare the run in `folder` with its record.

    Args:
        folder: the run's folder.
        record: its record.
        sha256_of: computes the hash of a file, and is called for all files. Without it, a file is read only if its time
            of change differs.
    """
    found = Findings(
        damaged=_differences(((name, folder / name, old) for name, old in record.files.items()), sha256_of)
    )
    if not record.files:
        found.unknown.append("its record has no checksums of its files")
    for group, files in record.inputs.items():
        here = {path: old for path, old in files.items() if Path(path).exists()}
        absent = next((path for path in files if path not in here), None)
        if absent is not None:
            found.unknown.append(f"its {NOUNS[group]} cannot be compared: there is no {absent}")
        if group == "images":
            found.unknown += _folders(here)
            continue
        lines = _differences(((path, Path(path), old) for path, old in here.items()), sha256_of)
        if lines and group == "ranks":  # the run may have been repeated with the same ranks
            found.unknown.append(f"its {NOUNS[group]} changed since: {first_of(lines)}")
        elif lines:
            found.changed[group] = lines
    return found


def _differences(
    files: Iterable[tuple[str, Path, Mapping[str, Any]]], sha256_of: Callable[[Path], str] | None
) -> list[str]:
    found = ((name, difference(path, old, sha256_of)) for name, path, old in files)
    return [f"{name} {why}" for name, why in found if why is not None]


def _folders(folders: Mapping[str, Any]) -> list[str]:
    """Return a line for each folder of images that changed. Only a task knows whether it read the changed files."""
    changed = []
    for path, before in folders.items():
        try:
            if folder_stamp(Path(path)) == before:
                continue
        except OSError:
            pass
        changed.append(f"the images in {path} have other sizes or times than when it ran")
    return changed


def first_of(lines: list[str]) -> str:
    """Return the first line, and the number of the other lines."""
    return lines[0] if len(lines) == 1 else f"{lines[0]} (and {len(lines) - 1} more)"
