"""The terminal settings of all commands."""

import io
import sys
import warnings

from flexlora.cli.interrupt import program
from flexlora.errors import printable


def take_any_letter() -> None:
    """Print letters that the terminal's encoding lacks (· → ✓ in ASCII) as their numbers instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def warn_in_one_line() -> None:
    """Print each warning of a library as one line without its source code, if this process is one of the commands."""
    name = program()
    if name is not None:
        warnings.formatwarning = lambda message, *_: f"{name}: warning: {printable(' '.join(str(message).split()))}\n"


def say(program: str, what: object) -> None:
    """Print a line on stderr. Only the main process prints it."""
    from flexlora.training.progress import is_main_process  # here: flexlora-report has no need of its imports

    if is_main_process():
        print(f"{program}: {what}", file=sys.stderr)
