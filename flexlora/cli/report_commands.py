"""The subcommands of `flexlora-report`. Each subcommand imports the modules that it needs when it is called."""

import argparse
import itertools
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flexlora.cli.report_common import (
    BROKEN,
    Parser,
    add_comparisons,
    check_method,
    collect_runs,
    make_folder,
    of_methods,
    of_tasks,
    once,
    say,
    write,
    write_content,
)
from flexlora.errors import UserError, did_you_mean
from flexlora.results.collect import Collection, Run, collect

if TYPE_CHECKING:
    from flexlora.report.seed_groups import Allocated, Allocations

DIFFER = 1
FIGURES = {
    "ranks": "ranks by layer and module over training (the paper's Figure 2)",
    "singular_values": "singular values by matrix (Figure 3)",
    "energy_entropy": "energy, entropy and rank of every matrix",
    "importance": "importance of every matrix at every event",
    "learning_curves": "learning curves with bands over seeds",
    "accuracy_parameters": "the last evaluation against active parameters",
}
ENDINGS = ("png", "svg")
GROUPS_ON_PAGE = 2
"""The number of groups of seeds whose ranks a page shows; a sweep may have hundreds of groups."""


def _figures(words: Sequence[str]) -> int:
    listed = "; ".join(f"{name}: {text}" for name, text in FIGURES.items())
    parser = _parser("figures", f"Figures of the runs under a folder, each as PNG and SVG. {listed}.")
    parser.add_argument("--save", type=Path, metavar="FOLDER", required=True, help="write them into this folder")
    parser.add_argument("--only", metavar="A,B", help="these figures only")
    options = parser.parse_args(words)
    wanted = list(FIGURES) if options.only is None else options.only.split(",")
    for name in wanted:
        if name not in FIGURES:
            raise UserError(
                f"there is no figure '{name}'.{did_you_mean(name, FIGURES)} There are: {', '.join(FIGURES)}."
            )
    figures = _load_figures()
    found = collect_runs(options.folder)
    runs = once(_chosen(found.runs, options))
    ranks = _allocated(found, runs if set(wanted) & set(figures.OF_ALLOCATIONS) else [])
    make_folder(options.save)
    count = 0
    for drawing in itertools.chain(figures.draw_allocations(ranks.groups, wanted), figures.draw_sweeps(runs, wanted)):
        for ending in ENDINGS:
            write_content(options.save / f"{drawing.name}.{ending}", drawing.save(ending))
        print(f"{options.save / drawing.name}.{{{','.join(ENDINGS)}}}", flush=True)
        count += 1
    if not count and not ranks.broken:
        raise UserError(
            f"there is nothing to draw in {options.folder}: no run that is done has what these figures show"
        )
    return BROKEN if found.broken else 0


def _claims(words: Sequence[str]) -> int:
    parser = _parser(
        "claims", "What the paper's text says of its allocations, checked on each group of seeds, with the numbers."
    )

    from flexlora.report.paper_claims import as_text, check

    return _of_allocations(parser.parse_args(words), lambda groups: as_text([(g.name, check(g.seeds)) for g in groups]))


def _stability(words: Sequence[str]) -> int:
    parser = _parser(
        "stability",
        "How steady the scores that move ranks are, event to event, and how far seeds agree: Spearman's correlation "
        "over the matrices, of each group of seeds.",
    )

    from flexlora.report.rank_stability import as_text, stability

    return _of_allocations(
        parser.parse_args(words), lambda groups: as_text([(g.name, stability(g.seeds)) for g in groups])
    )


def _of_allocations(options: argparse.Namespace, text: Callable[[Sequence["Allocated"]], str]) -> int:
    """Print a text about the runs that had rank events."""
    found = collect_runs(options.folder)
    ranks = _allocated(found, once(_chosen(found.runs, options)))
    if not ranks.groups and not ranks.broken:
        raise UserError(f"no run in {options.folder} that is done moved its ranks")
    print(text(ranks.groups), end="", flush=True)
    return BROKEN if found.broken else 0


def _parser(name: str, description: str) -> Parser:
    parser = Parser(prog=f"flexlora-report {name}", description=description)
    parser.add_argument(
        "folder", nargs="?", default="outputs", type=Path, help="where to look for runs (default: outputs)"
    )
    parser.add_argument("--task", metavar="A,B", help="of these tasks only, such as glue/cola")
    parser.add_argument("--method", metavar="A,B", help="of these methods only")
    return parser


def _chosen(runs: list[Run], options: argparse.Namespace) -> list[Run]:
    return of_methods(of_tasks(runs, options.task), options.method)


def _allocated(found: Collection, runs: Sequence[Run], most: int | None = None) -> "Allocations":
    """Read the allocations of `runs`. A broken file is reported and added to `found.broken`."""
    from flexlora.report.seed_groups import allocated

    allocations = allocated(runs, most)
    for line in allocations.broken:
        say(line)
    found.broken += allocations.broken
    return allocations


def _load_figures() -> ModuleType:
    try:
        from flexlora.report import figures
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        raise UserError("figures need matplotlib: pip install 'flexlora[figures]'") from error
    return figures


def _html(words: Sequence[str]) -> int:
    parser = _parser(
        "html", "One self-contained page of the runs under a folder: sortable tables, figures, settings, failures."
    )
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="write to this file")
    add_comparisons(parser)
    options = parser.parse_args(words)

    found = collect_runs(options.folder)
    runs = _chosen(found.runs, options)
    if options.against is not None:
        check_method(options.against, runs)
    compared = {"against": options.against, "intervals": options.intervals}
    command = shlex.join(["flexlora-report", "html", *words])
    page = _page(options.folder, Collection(runs, found.broken), command, options.output.parent, compared)
    write(options.output, page)
    print(f"{options.output}: {len(runs)} runs")
    return BROKEN if found.broken else 0


def _page(root: Path, found: Collection, command: str, folder: Path, compared: dict[str, Any]) -> str:
    """Return the page of these runs. Links are relative to `folder`."""
    from flexlora.report.build import build, default_tables
    from flexlora.report.page import as_page
    from flexlora.report.paper_claims import check

    distinct = once(found.runs)
    groups, more, _ = _allocated(found, distinct, most=GROUPS_ON_PAGE)
    note = f"The ranks of {more} more groups of seeds: flexlora-report figures {root} --save DIR"
    return as_page(
        root,
        found,
        [sheet for table in default_tables(found.runs) for sheet in build(table, found.runs, **compared)],
        distinct,
        groups,
        [(group.name, check(group.seeds)) for group in groups],
        command,
        folder,
        note if more else None,
    )


def _watch(words: Sequence[str]) -> int:
    from flexlora.cli.watch import command_of, watch

    def page(root: Path) -> str:
        return _page(root, collect(root), command_of(words), root, {})

    def text(runs: Sequence[Run]) -> str:
        from flexlora.report.build import build, default_tables
        from flexlora.report.formats.text import as_text

        width = shutil.get_terminal_size((100, 24)).columns
        return as_text([sheet for table in default_tables(list(runs)) for sheet in build(table, list(runs))], width)

    return watch(words, page, text)


def _compare(words: Sequence[str]) -> int:
    parser = Parser(
        prog="flexlora-report compare",
        description="Where two runs differ: settings, data, versions, outcome, every evaluation, the first line of "
        "metrics.jsonl, rank events, predictions, weights.",
        epilog="Exit code: 0 where they are equal but for clocks and interruptions; 1 where they differ; 2 refused.",
    )
    parser.add_argument("first", metavar="A", type=Path, help="a run's folder")
    parser.add_argument("second", metavar="B", type=Path, help="another's")
    options = parser.parse_args(words)

    from flexlora.report.compare_runs import as_text, compare

    first, second = (_run(folder) for folder in (options.first, options.second))
    sections = compare(first, second)
    print(as_text(first, second, sections, shutil.get_terminal_size((140, 24)).columns), end="", flush=True)
    return DIFFER if any(section.counts for section in sections) else 0


def _run(folder: Path) -> Run:
    """Return the only run in `folder`.

    Raises:
        UserError: the run's record is broken, or there is no run or more than one.
    """
    found = collect(folder)
    if found.broken:
        raise UserError(found.broken[0])
    if len(found.runs) != 1:
        count = f"are {len(found.runs)} runs" if found.runs else "is no run"
        raise UserError(f"there {count} in {folder}: give a run's own folder, .../seed<k>")
    return found.runs[0]


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "figures": _figures,
    "claims": _claims,
    "stability": _stability,
    "html": _html,
    "compare": _compare,
    "watch": _watch,
}
