"""`flexlora-report`: print the tables of the runs under a folder, or run a subcommand."""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from flexlora.cli.interrupt import raise_from_here
from flexlora.cli.report_commands import COMMANDS
from flexlora.cli.report_common import (
    BROKEN,
    REFUSED,
    Parser,
    add_comparisons,
    check_method,
    collect_runs,
    make_folder,
    of_methods,
    once,
    say,
    write,
)
from flexlora.cli.terminal import take_any_letter
from flexlora.errors import UserError, did_you_mean
from flexlora.report.build import build, default_tables
from flexlora.report.formats import ENDINGS, WRITERS
from flexlora.report.formats.text import as_text
from flexlora.report.sheet import Sheet
from flexlora.report.table import Table
from flexlora.report.table_file import read_table
from flexlora.report.tables import DEFAULTS, TABLES
from flexlora.results.collect import Run

SAVED = ("md", "csv", "tex", "html")
# Options that a table of costs would ignore, and those that `--tuned` would ignore.
OF_SCORES = ("metric", "against", "intervals", "all_tasks")
OF_TABLES = (*OF_SCORES, "table", "format", "output", "save")


def main() -> None:
    """Print the tables or the page that the command line asks for.

    The exit code is 0 if all records could be read, 1 if some are broken (the table shows the others), and 2 if there
    is nothing to show or the command line is wrong.
    """
    try:
        raise_from_here()
        take_any_letter()
        if "--watch" in sys.argv:  # flexlora-report outputs --watch
            sys.argv[1:] = ["watch", *(word for word in sys.argv[1:] if word != "--watch")]
        name, *words = sys.argv[1:] or [""]
        sys.exit(COMMANDS[name](words) if name in COMMANDS else _tables(_parser().parse_args()))
    except UserError as error:
        say(error)
        sys.exit(REFUSED)
    except BrokenPipeError:  # the reader closed the pipe, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(128 + signal.SIGINT)


def _parser() -> Parser:
    parser = Parser(
        prog="flexlora-report",
        description="The tables of all runs under a folder, with the paper's numbers beside runs of the paper's size. "
        "One table for each scale and model; a row for each method and variant, a cell for its seeds.",
        epilog="A folder of one scale, task or model narrows the table: flexlora-report outputs/local/glue/cola. "
        "Exit code: 0; 1 where some record is broken; 2 where there is nothing to show. "
        f"Other pages, each with a --help of its own: {', '.join(f'flexlora-report {name}' for name in COMMANDS)}.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('flexlora')}")
    parser.add_argument("folder", nargs="?", default="outputs", help="where to look for runs (default: outputs)")
    parser.add_argument(
        "--table",
        metavar="NAME",
        help=f"one of: {', '.join(TABLES)}; or a YAML file of your own (default: those of "
        f"{', '.join(table.name for table in DEFAULTS)} that have runs, and a plain table of all other tasks)",
    )
    parser.add_argument("--method", metavar="A,B", help="show these methods only")
    parser.add_argument(
        "--metric",
        choices=("last", "best"),
        default="last",
        help="figures of each run's last evaluation, or of its best one, which is biased upwards (default: last)",
    )
    add_comparisons(parser)
    parser.add_argument(
        "--tuned",
        metavar="KEY",
        help="of a sweep over this setting (training.learning_rate) on rows held out of train (task.validation_rows): "
        "each method at its best value, and how many runs it was given",
    )
    parser.add_argument("--all-tasks", action="store_true", help="show the tasks without a run too")
    parser.add_argument("--format", choices=tuple(ENDINGS), help="default: by the ending of --output, else text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead of the terminal")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help=f"write each table into this folder: <name>.{{{','.join(SAVED)}}}",
    )
    return parser


def _tables(options: argparse.Namespace) -> int:
    asked = None if options.table is None else _table(options.table)
    if options.save and (options.output or options.format):
        raise UserError("--save writes every format under names of its own: leave --output and --format out")
    if options.tuned is not None:
        _refuse(options, OF_TABLES, "--tuned prints a table of its own, to the terminal")
    elif asked is not None and asked.of_costs:
        _refuse(options, OF_SCORES, f"{options.table} is of costs, and not of scores")
    kind = options.format or _format_of(options.output)
    root = Path(options.folder)
    found = collect_runs(root)
    if not found.runs:
        return BROKEN
    runs = of_methods(found.runs, options.method)
    if options.against is not None:
        check_method(options.against, runs)
    if options.tuned is not None:
        print(_tuned(once(runs), options.tuned, root), end="", flush=True)
        return BROKEN if found.broken else 0
    tables = default_tables(runs) if asked is None else [asked]
    sheets = [
        sheet
        for table in tables
        for sheet in (build(table, runs, options.metric, options.all_tasks, options.against, options.intervals))
    ]
    if not sheets:
        raise UserError(_why_nothing(root, runs, tables))
    if options.save:
        _save_all(sheets, options.save)
    else:
        _show(sheets, kind, options.output)
    return BROKEN if found.broken else 0


def _table(name: str) -> Table:
    """Return the table with this name, or the table in this file."""
    if name in TABLES:
        return TABLES[name]
    if name.endswith((".yaml", ".yml")):
        return read_table(Path(name))
    near = did_you_mean(name, TABLES)
    raise UserError(f"there is no table '{name}'.{near} There are: {', '.join(TABLES)}; or a YAML file of your own.")


def _why_nothing(root: Path, runs: Sequence[Run], tables: Sequence[Table]) -> str:
    tasks = {run.record.task for run in runs}
    names = ", ".join(table.name for table in tables)
    if any(column.task in tasks for table in tables for column in table.columns):
        page = "docs/reference/flexlora-report.md"
        return f"{root} has no run of the methods and settings that the table {names} shows ({page})"
    return f"{root} has no run of a task in the table {names}: its runs are of {', '.join(sorted(tasks))}"


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Check that none of these options was given.

    Raises:
        UserError: one of them was given. `why` is the beginning of the message.
    """
    default = _parser().get_default
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != default(name)]
    if given:
        raise UserError(f"{why}: leave {' and '.join(given)} out")


def _format_of(output: Path | None) -> str:
    if output is None:
        return "text"
    kinds = {ending: kind for kind, ending in ENDINGS.items()}
    if output.suffix not in kinds:
        raise UserError(f"--output {output}: give --format, or one of the endings {', '.join(kinds)}")
    return kinds[output.suffix]


def _tuned(runs: list[Run], key: str, root: Path) -> str:
    from flexlora.report import tuning  # here, because it imports hydra

    entries = tuning.tuned(runs, key)
    if not entries:
        raise UserError(
            f"{root} has no runs on held-out rows (task.validation_rows) with several values of {key}: "
            "flexlora-run experiment=lr_sweep makes some"
        )
    return tuning.as_text(entries, key, shutil.get_terminal_size((140, 24)).columns)


def _save_all(sheets: list[Sheet], folder: Path) -> None:
    make_folder(folder)
    for name in dict.fromkeys(sheet.table.name for sheet in sheets):
        of_table = [sheet for sheet in sheets if sheet.table.name == name]
        for ending in SAVED:
            path = folder / f"{name}.{ending}"
            write(path, WRITERS[_format_of(path)](of_table))
        print(f"{folder / name}.{{{','.join(SAVED)}}}: {_number(of_table)}")


def _show(sheets: list[Sheet], kind: str, output: Path | None) -> None:
    if kind in WRITERS:
        text = WRITERS[kind](sheets)
    else:
        colour = output is None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
        text = as_text(sheets, shutil.get_terminal_size((140, 24)).columns, colour)
    if output is None:
        print(text, end="", flush=True)
        return
    write(output, text)
    print(f"{output}: {_number(sheets)}")


def _number(sheets: list[Sheet]) -> str:
    return f"{len(sheets)} table{'s' if len(sheets) > 1 else ''}"


if __name__ == "__main__":
    main()
