"""The code that `flexlora-run` and `flexlora-doctor` share: composing with Hydra, one-line errors, exit codes."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flexlora.cli import config_loader
from flexlora.cli.explain import explain, require_task
from flexlora.cli.flags import check_flags
from flexlora.cli.help_page import list_choices, list_settings
from flexlora.cli.interrupt import raise_from_here
from flexlora.cli.sweep import list_endings
from flexlora.cli.terminal import say, take_any_letter, warn_in_one_line
from flexlora.conf_path import conf_dir
from flexlora.errors import UserError, one_line, printable
from flexlora.results.record import Ending
from flexlora.settings import RunSettings, register_schemas, resolve
from flexlora.training.signals import raise_interrupted

REFUSED, FAILED = 2, 1
PRINTS = ("-h", "--h", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")  # options that print and run nothing

# Our modules that Hydra calls and that call Hydra's own code. They may be in the traceback of an error of Hydra's.
BETWEEN = {"flexlora.cli.config_loader", "flexlora.cli.sweep"}

Job = Callable[[RunSettings, dict[str, Any], list[str]], Ending]
Finished = Callable[[RunSettings, dict[str, Any], list[str]], bool]
Inputs = Callable[[RunSettings], None]

# The settings that name what a run reads. Runs with the same values read the same.
INPUTS = ("task.name", "task.data_dir", "model.path", "model.kind", "method.ranks_from", "adapter")


class Task:
    """The function that Hydra calls for every run of the command line, here or in a process that a launcher starts."""

    def __init__(
        self,
        program: str,
        job: Job,
        finished: Finished | None = None,
        skipped: Finished | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        self.program = program
        self.job = job
        self.finished = finished
        self.skipped = skipped
        self.inputs = inputs
        self._troubles: dict[tuple[Any, ...], str | None] = {}
        self.show_tracebacks = bool(os.environ.get("HYDRA_FULL_ERROR"))
        self.endings: list[Ending] = []

    def __call__(self, config: DictConfig) -> Ending:
        """Call the job. A `UserError` becomes a line on stderr and the ending `refused`."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, raise_interrupted)
        try:
            settings, plain = _resolved(config)
            ending = self.job(settings, plain, _as_sweeps_spell(HydraConfig.get().overrides.task))
        except UserError as error:
            if self.show_tracebacks:
                raise
            say(self.program, error)
            ending = Ending("refused", one_line(error))
        self.endings.append(ending)
        return ending

    def is_finished(self, config: DictConfig) -> bool:
        """Return whether the run is finished on the disk. `config` is composed and contains Hydra's own part."""
        return self.finished is not None and self._holds(self.finished, config)

    def skips(self, config: DictConfig) -> bool:
        """Return whether a sweep need not launch the run, and say so. It is asked before the first run begins."""
        return self.skipped is not None and not config.dry and self._holds(self.skipped, config)

    def _holds(self, question: Finished, config: DictConfig) -> bool:
        try:
            with _hydra_of(config) as own:
                settings, plain = _resolved(own)
                return question(settings, plain, _as_sweeps_spell(HydraConfig.get().overrides.task))
        except UserError:
            return False

    def trouble(self, config: DictConfig) -> str | None:
        """Return why a run could not read its inputs, or None. It is for the runs of a sweep, before the first begins.

        A run that is finished needs no inputs. Settings that are refused are refused when the run begins.
        """
        if self.inputs is None or config.dry:
            return None
        key = tuple(OmegaConf.select(config, name, throw_on_missing=False) for name in INPUTS)
        if key not in self._troubles:
            self._troubles[key] = self._ask(self.inputs, config)
        found = self._troubles[key]
        return None if found is None or self.is_finished(config) else found

    def _ask(self, inputs: Inputs, config: DictConfig) -> str | None:
        with _hydra_of(config) as own:
            try:
                settings, _ = _resolved(own)
            except UserError:
                return None
            try:
                inputs(settings)
            except UserError as error:
                return str(error)
        return None


@contextlib.contextmanager
def _hydra_of(config: DictConfig) -> Iterator[DictConfig]:
    """Make Hydra's part of `config` the current one. Yield the rest."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = config  # type: ignore[assignment]  # `set_config` would copy it
    try:
        yield OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    finally:
        HydraConfig.instance().cfg = before


def call_with_settings(
    program: str,
    job: Job,
    overrides: Sequence[str] = (),
    finished: Finished | None = None,
    skipped: Finished | None = None,
    inputs: Inputs | None = None,
) -> list[Ending]:
    """Call `job(settings, the same as plain data, the command line's overrides)` for every run of the command line.

    `job` itself imports the heavy packages, so that a bad setting is refused before these imports. If the settings
    cannot be composed (exit code 2) or the program is interrupted (130 or 143), the program prints a line and exits.

    Args:
        program: the name at the beginning of lines on stderr.
        job: returns how the run ended. A `UserError` from it becomes a line on stderr and the ending `refused`.
        overrides: the program's own overrides for Hydra, such as the text of `--help`.
        finished: returns whether a run is finished on the disk. A stopped sweep asks this about its remaining runs.
        skipped: the same, before the first run of a sweep; a sweep does not launch the run if this is true.
        inputs: raises a `UserError` if a run's data or model is missing. A sweep asks this about all its runs first.

    Returns:
        How each run ended, in order.
    """
    take_any_letter()
    warn_in_one_line()
    if "--version" in sys.argv:  # otherwise Hydra prints its own version
        print(f"{program} {version('flexlora')}")
        sys.exit()
    register_schemas()
    list_endings()
    config_loader.install()
    OmegaConf.register_new_resolver("choices", list_choices, replace=True)
    OmegaConf.register_new_resolver("settings", list_settings, replace=True)
    task = Task(program, job, finished, skipped, inputs)
    # With this variable Hydra raises its errors instead of printing them in its own way and exiting.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # These flags may be anywhere on the command line, but Hydra needs its overrides to follow each other.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda item: item not in {"-m", "--multirun"})
    try:
        signal.signal(signal.SIGTERM, raise_interrupted)
        raise_from_here()
        check_flags(sys.argv[1:])
        _insert(overrides)
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except BrokenPipeError:  # the reader closed the pipe, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except KeyboardInterrupt as error:
        say(program, "interrupted")
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    except Exception as error:
        line = None if task.show_tracebacks else refusal(error)
        if line is None:
            raise
        say(program, line)
        sys.exit(REFUSED)
    if not task.endings and not any(item.startswith(PRINTS) for item in sys.argv[1:]):
        say(program, "nothing to run: a list of the sweep is empty (globs know no task/…: write the tasks out)")
        sys.exit(REFUSED)
    return task.endings


def refusal(error: Exception) -> str | None:
    """Return the line for an error in composing and checking settings, or None if the error is a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError | OSError):
        return printable(explain(error))
    if isinstance(error, ValueError) and str(error).startswith(
        "Exceeds the limit"
    ):  # Python's limit for the digits of a number
        return "a number on the command line has thousands of digits"
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, ValueError | TypeError) and modules[-1:] == ["hydra._internal.defaults_list"]:
        return "task, method, model, scale and experiment take the name of a choice, not null or a number"
    return printable(_line_of_hydra(error)) if _is_of_hydra(modules) else None


def _is_of_hydra(modules: Sequence[str]) -> bool:
    """Return whether Hydra, or a library that it uses, raised an error about the command line or a YAML file.

    Args:
        modules: the modules of the frames in the error's traceback, the outermost first.
    """
    of_hydra = [i for i, module in enumerate(modules) if module.startswith("hydra.")]
    ours = [module for module in modules[of_hydra[0] :] if module.startswith("flexlora.")] if of_hydra else []
    return bool(of_hydra) and set(ours) <= BETWEEN and not modules[-1].startswith("flexlora.")


def _line_of_hydra(error: Exception) -> str:
    """Return the line for an error of which Hydra gives no explanation."""
    if isinstance(error, RecursionError):
        return "the defaults lists of the YAML files name each other in a circle"
    if isinstance(error, AssertionError):
        return "hydra.* has a value that Hydra cannot take; hydra.verbose is true, false, or names of loggers"
    return f"Hydra cannot take this: {type(error).__name__}: {one_line(error)}"


def _resolved(config: DictConfig) -> tuple[RunSettings, dict[str, Any]]:
    try:
        return resolve(config, require_task(config))
    except OmegaConfBaseException as error:  # an interpolation in a YAML file of the user
        raise UserError(f"{error.full_key}: {explain(error)}" if error.full_key else explain(error)) from error


def _as_sweeps_spell(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with values as a sweep spells them (1e-3 as 0.001). A single run then has the same name."""
    return [_as_a_sweep_spells(override) for override in overrides]


@cache
def _as_a_sweep_spells(override: str) -> str:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    key, equals, _ = override.partition("=")
    return f"{key}={parsed.get_value_element_as_str()}" if equals else override


def _insert(overrides: Sequence[str]) -> None:
    """Put the program's own overrides directly before the user's: argparse needs all overrides to follow each other."""
    place = next((i for i, item in enumerate(sys.argv) if i and "=" in item and item[0] != "-"), len(sys.argv))
    sys.argv[place:place] = overrides
