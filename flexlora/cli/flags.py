"""Check Hydra's own flags (`-m`, `-c job`, ...) before Hydra reads them, because Hydra refuses with tracebacks."""

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from flexlora.cli.suggestions import meant_flags
from flexlora.errors import UserError, did_you_mean

COMMANDS = {"run": "-r", "multirun": "-m", "cfg": "-c", "info": "-i", "shell_completion": "-sc"}
"""The flags that exclude each other: a command line has at most one of them."""
COMPLETIONS = ("install", "uninstall", "query")
SHELLS = ("bash", "fish", "zsh")


def check_flags(words: Sequence[str]) -> None:
    """Check the flags of a command line.

    Raises:
        UserError: there is no such flag, a value of a flag is missing or wrong, or two flags exclude each other.
    """
    if not any(word.startswith("-") for word in words):
        return
    options = _parsed(words)
    given = [flag for name, flag in COMMANDS.items() if getattr(options, name) not in (None, False)]
    if options.help or options.hydra_help:
        return
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: leave all but one out")
    if options.resolve and options.cfg is None:
        raise UserError("--resolve resolves what --help or -c prints: give one of them, as in '-c job --resolve'")
    if options.package is not None and options.cfg is None:
        raise UserError("-p names a part of what -c prints: add '-c job'")
    if options.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun would unpickle a file, which can run any code: repeat the command instead"
        )
    if options.shell_completion:
        _check_completion(options.overrides)


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        unknown = message.removeprefix("unrecognized arguments: ")
        meant = meant_flags(words, flags) if unknown != message else ""
        if meant:
            raise UserError(f"there is no flag {unknown.split()[0].partition('=')[0]}. Write settings as {meant}")
        near = did_you_mean(unknown, flags) if unknown != message else ""
        raise UserError(f"{message}.{near} --hydra-help lists the flags.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(list(words))


def _check_completion(words: Sequence[str]) -> None:
    asked = dict(word.partition("=")[::2] for word in words)
    commands = [name for name in COMPLETIONS if name in asked]
    if len(commands) != 1 or asked[commands[0]] not in SHELLS:
        raise UserError("-sc takes install=SHELL, uninstall=SHELL or query=SHELL; SHELL is bash, fish or zsh")
    if commands == ["query"] and "COMP_LINE" not in os.environ:
        raise UserError("-sc query=SHELL reads the line to complete from the variable COMP_LINE, which is not set")
