"""The code that the subcommands of `flexlora-report` share. A refusal and a broken record are one line each."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from flexlora.errors import UserError, did_you_mean
from flexlora.results.collect import Collection, Run, collect, distinct_runs
from flexlora.results.files import write_bytes

BROKEN, REFUSED = 1, 2
FIRST_RUNS = "flexlora-run -m task=glue/cola method=lora,flexlora scale=tiny makes two."


class Parser(argparse.ArgumentParser):
    """A parser that raises a `UserError` instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists what there is)")


def collect_runs(root: Path) -> Collection:
    """Return all runs under `root`, and print a line on stderr for each broken record.

    Raises:
        UserError: there is no such folder, or it has neither runs nor broken records.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the output_root of your runs. {FIRST_RUNS}")
    found = collect(root)
    for line in found.broken:
        say(line)
    if not found.runs and not found.broken:
        raise UserError(f"there are no runs in {root}. {FIRST_RUNS}")
    return found


def add_comparisons(parser: argparse.ArgumentParser) -> None:
    """Add the options for tables that say how certain a difference or a figure is."""
    parser.add_argument(
        "--against",
        metavar="METHOD",
        help="compare the other rows with this method's, over the seeds that both have (paired t test)",
    )
    parser.add_argument(
        "--intervals",
        action="store_true",
        help="below figures of one seed, and differences in one, their 95 %% interval over the examples (bootstrap of "
        "the kept predictions)",
    )


def of_methods(runs: list[Run], wanted: str | None) -> list[Run]:
    """Return the runs of these methods (`A,B`), or all runs if `wanted` is None.

    Raises:
        UserError: one of the methods has no run.
    """
    return _of("method", runs, wanted)


def of_tasks(runs: list[Run], wanted: str | None) -> list[Run]:
    """Return the runs of these tasks (`A,B`), or all runs if `wanted` is None.

    Raises:
        UserError: one of the tasks has no run.
    """
    return _of("task", runs, wanted)


def once(runs: list[Run]) -> list[Run]:
    """Return the runs without copies, such as those of a folder that was copied: a copy is not another seed.

    A line on stderr names each copy, and runs that share their names and not their settings.
    """
    kept, notes = distinct_runs(runs)
    for note in notes:
        say(note)
    return kept


def check_method(name: str, runs: list[Run]) -> None:
    """Check that a method has runs.

    Raises:
        UserError: no run is of this method.
    """
    _check("method", name, runs)


def _of(field: str, runs: list[Run], wanted: str | None) -> list[Run]:
    if wanted is None:
        return runs
    names = wanted.split(",")
    for name in names:
        _check(field, name, runs)
    return [run for run in runs if getattr(run.record, field) in names]


def _check(field: str, name: str, runs: list[Run]) -> None:
    known = sorted({getattr(run.record, field) for run in runs})
    if name not in known:
        raise UserError(f"no run of {field} '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}.")


def make_folder(folder: Path) -> None:
    """Create `folder` if it is missing.

    Raises:
        UserError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error


def write(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`. A half character, as in a file name that is not UTF-8, is escaped.

    Raises:
        UserError: the file cannot be written.
    """
    write_content(path, text.encode("utf-8", "backslashreplace"))


def write_content(path: Path, content: bytes) -> None:
    """Replace the content of `path` by `content`.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def say(what: object) -> None:
    """Print a line on stderr."""
    print(f"flexlora-report: {what}", file=sys.stderr)
