"""`flexlora-doctor`: check whether a run could start here. It trains nothing and changes no folder of a run."""

import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig

from flexlora.cli.choices import config_folders, given_folders, method_files
from flexlora.cli.command import FAILED, REFUSED, call_with_settings
from flexlora.cli.terminal import say, take_any_letter
from flexlora.conf_path import conf_dir
from flexlora.doctor.findings import Finding, Mark
from flexlora.doctor.lists import LISTS
from flexlora.doctor.method_rows import Described, method_rows
from flexlora.doctor.run_check import check_run
from flexlora.doctor.tree_check import check_tree
from flexlora.errors import UserError
from flexlora.results.record import Ending
from flexlora.settings import MethodSettings, RunSettings, resolve_method
from flexlora.settings.recipes import method_table as recipe_rows
from flexlora.settings.recipes import written_fields
from flexlora.settings.sources import sources
from flexlora.training.progress import is_main_process, show_log

PROGRAM = "flexlora-doctor"
WIDTH = 100
SETTINGS = "settings"
HEADER = f"""{PROGRAM} says whether a run could start here, and what it would do. It takes what flexlora-run takes.

  {PROGRAM} task=glue/cola method=flexlora
  {PROGRAM} task=glue/cola method=lora model=local model.path=DIR task.data_dir=DIR
  {PROGRAM} methods                      # every method, and what it trains on the model
  {PROGRAM} tasks [WORD]                 # every task; experiments [WORD]: every sweep that has a name
  {PROGRAM} settings WORD                # every setting with this word in its name or meaning
  {PROGRAM} outputs                      # are all finished runs in this folder what their records say?
"""
FOOTER = "Exit code: 0 if the run could start; 1 if not; 2 where the settings are refused."


def main() -> None:
    """Print a page about every run of the command line.

    The exit code is 0 if all runs could start, 1 if one could not, and 2 if the settings are refused.
    """
    if sys.argv[1:2] and sys.argv[1] in LISTS:
        sys.exit(_list(*sys.argv[1:]))
    if _names_a_tree(sys.argv[1:]):
        sys.exit(_check_tree(Path(sys.argv[-1])))
    job = _examine
    if sys.argv[1:2] == ["methods"]:
        job = _list_methods
        del sys.argv[1]
        if not any(argument.startswith("task=") for argument in sys.argv):
            sys.argv.append("task=glue/cola")
    with tempfile.TemporaryDirectory() as scratch:  # for a sweep's multirun.yaml, instead of the folder of the runs
        ours = {"job.name": PROGRAM, "sweep.dir": scratch, "help.header": HEADER, "help.footer": FOOTER}
        endings = call_with_settings(PROGRAM, job, [f"hydra.{key}='{value}'" for key, value in ours.items()])
    bad = {ending.status for ending in endings} - {"ready"}
    sys.exit(0 if not bad else REFUSED if "refused" in bad else FAILED)


def _names_a_tree(arguments: Sequence[str]) -> bool:
    """Return whether the command is a folder, or `outputs` (the default of `output_root`), alone or before a folder."""
    return arguments[:1] == ["outputs"] or (len(arguments) == 1 and Path(arguments[0]).is_dir())


def _list(name: str, *words: str) -> int:
    """Print one of `LISTS`. The words that are no option are what its lines must have."""
    take_any_letter()
    folders = given_folders()
    sought = [word for word in words if not word.startswith("-") and Path(word) not in folders]
    try:
        print(LISTS[name](folders, " ".join(sought)))
    except UserError as error:
        say(PROGRAM, error)
        return REFUSED
    return 0


def _check_tree(root: Path) -> int:
    try:
        report = check_tree(root)
    except UserError as error:
        say(PROGRAM, error)
        return REFUSED
    print(report)
    return 0 if report.is_whole else FAILED


def _examine(settings: RunSettings, plain: dict[str, Any], overrides: list[str]) -> Ending:
    show_log()
    from flexlora.training.job import run_path

    path = run_path(settings, overrides)
    findings = [*_settings(settings, plain, overrides), *check_run(settings, plain, path)]
    problems = [finding.text for finding in findings if finding.mark is Mark.problem]
    if is_main_process():
        model, method = path.parents[2].name, settings.method.name
        print(f"{settings.task.name} · {method} · {model} · seed {settings.seed}\n")
        print(page(findings))
    return Ending("not ready", problems[0]) if problems else Ending("ready")


def _settings(settings: RunSettings, plain: dict[str, Any], overrides: list[str]) -> list[Finding]:
    """Return a line for every setting that is not a plain default: its value, and the file and row of the value."""
    found = sources(settings, plain, overrides, HydraConfig.get().runtime.choices, config_folders())
    return [Finding(SETTINGS, item.setting, f"{item.value}  ({item.where})", Mark.told) for item in found]


def _list_methods(settings: RunSettings, plain: dict[str, Any], overrides: list[str]) -> Ending:
    """Print the table of every method in `conf/method` and in a `--config-dir`, on the model of the command line."""
    show_log()  # this hides deprecation warnings of libraries about each other
    files = method_files()
    kept = [item for item in overrides if not item.lstrip("+~").startswith(("method", "hydra"))]
    methods = _methods(files, kept)
    described = method_rows(settings, plain, methods, files)
    print(f"Active adapter parameters on {settings.model.name or settings.model.path}, ranks as each method starts.\n")
    print(method_table(described))
    return Ending("ready")


def _methods(files: Mapping[str, Path], overrides: Sequence[str]) -> dict[str, MethodSettings]:
    """Return the settings of each method, as a run with `overrides` has them.

    Without an experiment the configs of our own methods differ in `method` only. One is composed, which takes as long
    as ten replacements.
    """
    config, folders = compose("config", overrides=list(overrides)), config_folders()
    composed = any(item.lstrip("+").startswith("experiment") for item in overrides)
    methods = {}
    for name, file in files.items():
        if composed or not file.is_relative_to(conf_dir()):
            methods[name] = resolve_method(compose("config", overrides=[*overrides, f"method={name}"]))
        else:
            config.method = {**written_fields(name, folders), "recipes": recipe_rows(name, folders)}
            methods[name] = resolve_method(config)
    return methods


def method_table(described: Sequence[Described], width: int = WIDTH) -> str:
    """Return the table with one row for each method. The last column, its description, may take several lines."""
    kinds = [*described[0].backbones]
    rows = [("method", "from", *kinds, "merges", "parameters", "")]
    for method in described:
        marks = ["✓" if adapts else "–" for adapts in method.backbones.values()]
        merges = {True: "✓", False: "no", None: "–"}[method.merges]
        count = "–" if method.parameters is None else f"{method.parameters:,}"
        rows.append((method.name, method.source, *marks, merges, count, method.title))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(size) if i == len(widths) - 1 else cell.ljust(size)
            for i, (cell, size) in enumerate(zip(row, widths, strict=False))
        ]
        start = "  ".join(cells) + "  "
        lines += textwrap.wrap(row[-1], width, initial_indent=start, subsequent_indent=" " * len(start)) or [start]
    return "\n".join(line.rstrip() for line in lines)


def page(findings: Sequence[Finding], width: int = WIDTH) -> str:
    """Return the findings in aligned columns of at most `width` characters, followed by the verdict."""
    lines: list[str] = []
    for section in dict.fromkeys(finding.section for finding in findings):
        lines.append(section)
        # The settings have long names; all other sections share one column.
        column = max(len(f.name) for f in findings if (f.section == SETTINGS) is (section == SETTINGS))
        lines += [line for f in findings if f.section == section for line in _lines(f, column, width)]
        lines.append("")
    problems = [finding for finding in findings if finding.mark is Mark.problem]
    warnings = sum(finding.mark is Mark.warning for finding in findings)
    if not problems:
        return "\n".join([*lines, "ready to run" + (f", {_count(warnings, 'warning')}" if warnings else "")])
    return "\n".join([*lines, f"cannot run: {_count(len(problems), 'problem')}, marked {Mark.problem.value}"])


def _lines(finding: Finding, column: int, width: int) -> list[str]:
    start = f"  {finding.mark.value} {finding.name.ljust(column)}  "
    # Lines are broken only at spaces, so that a path or a command in the text stays whole and can be copied.
    return textwrap.wrap(
        finding.text,
        width,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


if __name__ == "__main__":
    main()
