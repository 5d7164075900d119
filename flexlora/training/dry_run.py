"""The dry run: it shows the status of each run, and estimates the time that the missing runs would take.

It only reads the folders of the runs and starts none of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexlora.results.checkpoint_files import checkpoint_folders
from flexlora.results.folder import RunFolder
from flexlora.results.record import Ending, read_record
from flexlora.training.expected_time import expected_seconds
from flexlora.training.progress import duration


class DryRun:
    """Looks at one run after another and adds up the remaining time."""

    def __init__(self) -> None:
        self.asked = False
        self.seconds = 0.0
        """The expected seconds of the runs that are not done, one after another. Runs in `unknown` are not included."""
        self.unknown = 0
        """The number of runs that are not done and whose time cannot be estimated."""

    def look(self, path: Path, config: Mapping[str, Any]) -> Ending:
        """Return the status of the run in `path`, and what the same command would do.

        The status is `done`, `diverged`, `failed`, `interrupted`, `running` or `missing`.

        Raises:
            UserError: the folder has a run of another config.
        """
        self.asked = True
        folder = RunFolder(path, config)
        holder = folder.holder()
        if holder is not None:
            return Ending("running", f"held by {holder}")
        unknown = folder.finished()
        if unknown is not None:
            return Ending("done", "; ".join(unknown) or None)
        return self._unfinished(path, config, resumes=folder.can_resume())

    def _unfinished(self, path: Path, config: Mapping[str, Any], resumes: bool) -> Ending:
        status, parts = "interrupted" if resumes else "missing", []
        if (path / "result.json").is_file():
            record = read_record(path / "result.json")
            status, parts = record.status, [record.error or ""]
        if resumes:
            parts.append(f"resumes after step {next(iter(checkpoint_folders(path)))}")
        seconds = expected_seconds(path, config)
        if seconds is None:
            self.unknown += 1
        else:
            self.seconds += seconds
            parts.append(f"{duration(seconds)} by the runs that are done")
        return Ending(status, "; ".join(parts) or None)

    def __str__(self) -> str:
        if not self.seconds and not self.unknown:
            return "nothing is left to do"
        if not self.seconds:
            return "time left: not known before a first run is done"
        others = f", and {self.unknown} runs of a kind that none is done of" if self.unknown else ""
        return f"about {duration(self.seconds)} left, one run after another{others}"
