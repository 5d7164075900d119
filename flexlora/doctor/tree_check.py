"""Check all runs under a folder: whether the files of a finished run match its record, and which runs can resume."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from flexlora.errors import UserError, one_line
from flexlora.results.checkpoint_files import checkpoint_folders, verify
from flexlora.results.collect import Run, collect
from flexlora.results.files import file_sha256
from flexlora.results.folder import KEPT, RunFolder
from flexlora.results.whole import NOUNS, look


@dataclass
class TreeReport:
    """The result of the check of a folder."""

    root: Path
    statuses: Counter[str] = field(default_factory=Counter)
    problems: dict[Path, list[str]] = field(default_factory=dict)
    """The differences between a run's files and its record, by the folder of the run."""
    unreadable: list[str] = field(default_factory=list)
    """A line for each `result.json` that is not a record."""
    warnings: dict[Path, list[str]] = field(default_factory=dict)
    """Notes that are not errors, and things that cannot be compared, by the folder of the run."""

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common())
        total = sum(self.statuses.values())
        lines = [f"{total} {'run' if total == 1 else 'runs'} in {self.root}: {counts}"]
        for mark, found in (("!", self.warnings), ("✗", self.problems)):
            for folder, texts in found.items():
                lines += [f"  {mark} {folder.relative_to(self.root)}: {text}" for text in texts]
        lines += [f"  ✗ {text}" for text in self.unreadable]
        count = len(self.problems) + len(self.unreadable)
        if count == 0:
            return "\n".join([*lines, "every finished run is what its record says"])
        return "\n".join([*lines, f"{count} {'run is' if count == 1 else 'runs are'} damaged or changed, marked ✗"])

    @property
    def is_whole(self) -> bool:
        """Whether the files of every finished run match its record."""
        return not self.problems and not self.unreadable


def check_tree(root: Path) -> TreeReport:
    """Check all runs under `root`. Every file of a run is read. A data file that several runs use is read only once.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the output_root of your runs")
    found = collect(root)
    if not found.runs and not found.broken:
        raise UserError(f"there are no runs in {root}")
    report = TreeReport(root)
    sha256_of = cache(file_sha256)
    for run in found.runs:
        holder = RunFolder(run.path, {}).holder()
        report.statuses[run.record.status if holder is None else "running"] += 1
        if holder is not None:
            report.warnings[run.path] = [f"in use by {holder}: not checked"]
        else:
            _check(run, report, sha256_of)
    report.statuses.update({"unreadable": len(found.broken)} if found.broken else {})
    report.unreadable += found.broken
    return report


def _check(run: Run, report: TreeReport, sha256_of: Callable[[Path], str]) -> None:
    problems, warnings = [], []
    if run.record.status in KEPT:
        different = look(run.path, run.record, sha256_of)
        problems += different.damaged
        problems += [
            f"its {NOUNS[group]} changed: {line}" for group, lines in different.changed.items() for line in lines
        ]
        warnings += different.unknown
    else:
        warnings.append(f"{run.record.status}: {run.record.error}")
        for folder in checkpoint_folders(run.path).values():
            try:
                verify(folder)
            except (OSError, ValueError) as error:
                problems.append(f"{folder.relative_to(run.path)} is damaged ({one_line(error)})")
    warnings += [f"{part.relative_to(run.path)} was left by a killed process" for part in run.path.rglob(".*.part")]
    if problems:
        report.problems[run.path] = problems
    if warnings:
        report.warnings[run.path] = warnings
