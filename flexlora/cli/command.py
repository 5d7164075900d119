"""What `flexlora-run` and `flexlora-doctor` share: Hydra composes, an error is one line, the exit code tells."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flexlora.cli.explain import explain, list_choices, require_task
from flexlora.cli.terminal import take_any_letter
from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.settings import RunSettings, register_schemas, resolve
from flexlora.training.progress import is_main_process
from flexlora.training.stop import raise_interrupted

REFUSED, FAILED = 2, 1
PRINTS = ("-h", "--h", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")  # options that print and run nothing

Job = Callable[[RunSettings, dict[str, Any], list[str]], str]


def call_with_settings(program: str, job: Job, overrides: Sequence[str] = ()) -> list[str]:
    """Call `job(settings, the same as plain data, the command line's overrides)` for every run of the command line.

    `job` imports what is heavy itself, so that a bad setting is answered before. Settings that cannot be composed, and
    an interruption, leave the program with a line and an exit code (2; 130 or 143).

    Args:
        program: what lines on stderr begin with.
        job: returns how it ended; a `UserError` of its own becomes a line on stderr and the ending `refused`.
        overrides: Hydra's, of the program itself, such as what `--help` says.

    Returns:
        How each run ended, in order.
    """
    take_any_letter()
    if "--version" in sys.argv:  # else Hydra says its own
        print(f"{program} {version('flexlora')}")
        sys.exit()
    register_schemas()
    OmegaConf.register_new_resolver("choices", list_choices, replace=True)
    logging.getLogger("flexlora").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, raise_interrupted)
    show_tracebacks = bool(os.environ.get("HYDRA_FULL_ERROR"))
    # Hydra then hands its errors on instead of printing them its own way and leaving.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Wherever they were typed: Hydra takes its overrides in one row.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda item: item not in {"-m", "--multirun"})
    _insert(overrides)
    endings: list[str] = []

    def run(config: DictConfig) -> None:
        try:
            require_task(config)
            settings, plain = resolve(config)
            endings.append(job(settings, plain, list(HydraConfig.get().overrides.task)))
        except UserError as error:
            if show_tracebacks:
                raise
            say(program, error)
            endings.append("refused")

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(run)()
    except BrokenPipeError:  # `--help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except (HydraException, OmegaConfBaseException, YAMLError, OSError) as error:
        if show_tracebacks:
            raise
        say(program, explain(error))
        sys.exit(REFUSED)
    except ValueError as error:
        if show_tracebacks or not str(error).startswith("Config group override"):
            raise
        say(program, "task, method, model, scale and experiment take the name of a choice, not null or a number")
        sys.exit(REFUSED)
    except KeyboardInterrupt as error:
        say(program, "interrupted")
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    if not endings and not any(item.startswith(PRINTS) for item in sys.argv[1:]):
        say(program, "nothing to run: a list of the sweep is empty (globs know no task/…: write the tasks out)")
        sys.exit(REFUSED)
    return endings


def _insert(overrides: Sequence[str]) -> None:
    """Put the program's own overrides before the user's: argparse takes them in one row only, options around it."""
    place = next((i for i, item in enumerate(sys.argv) if i and "=" in item and item[0] != "-"), len(sys.argv))
    sys.argv[place:place] = overrides


def say(program: str, what: object) -> None:
    """A line on stderr, by the main process alone."""
    if is_main_process():
        print(f"{program}: {what}", file=sys.stderr)
