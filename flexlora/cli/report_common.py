"""What the subcommands of `flexlora-report` share: a refusal is one line, and so is every broken record."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from flexlora.errors import UserError, did_you_mean
from flexlora.results.collect import Collection, Run, collect, without_duplicates
from flexlora.results.files import write_bytes

BROKEN, REFUSED = 1, 2
FIRST_RUNS = "flexlora-run -m task=glue/cola method=lora,flexlora scale=tiny makes two."


class Parser(argparse.ArgumentParser):
    """Raises a `UserError` where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists what there is)")


def collect_runs(root: Path) -> Collection:
    """All runs under `root`, at least one; a line on stderr for each record that is broken.

    Raises:
        UserError: there is no such folder, or no run in it.
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
    """The options of tables that say how sure a difference or a figure is."""
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
    """The runs of these methods, `A,B`; all where none is given.

    Raises:
        UserError: no run is of one of them.
    """
    return _of("method", runs, wanted)


def of_tasks(runs: list[Run], wanted: str | None) -> list[Run]:
    """The runs of these tasks, as `of_methods`."""
    return _of("task", runs, wanted)


def once(runs: list[Run]) -> list[Run]:
    """The runs without copies, as of a folder that lies there twice: they are no seeds. A line on stderr for each."""
    kept, notes = without_duplicates(runs)
    for note in notes:
        say(note)
    return kept


def check_method(name: str, runs: list[Run]) -> None:
    """Raise a `UserError` where no run is of this method."""
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
    """Make `folder` where it is missing; a `UserError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error


def write(path: Path, text: str) -> None:
    """Replace `path` by `text`; a `UserError` where that cannot be. Half a character, as of a file's name that is not
    UTF-8, is spelled out."""
    write_content(path, text.encode("utf-8", "backslashreplace"))


def write_content(path: Path, content: bytes) -> None:
    """Replace `path` by `content`; a `UserError` where that cannot be."""
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def say(what: object) -> None:
    """A line on stderr."""
    print(f"flexlora-report: {what}", file=sys.stderr)
