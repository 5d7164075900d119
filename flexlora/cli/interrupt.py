"""Ctrl-C while a command is still importing: one line and exit code 130, instead of the imports' traceback."""

import os
import signal
import sys
from types import FrameType

COMMANDS = ("flexlora-run", "flexlora-doctor", "flexlora-report")


def leave_while_importing() -> None:
    """Let SIGINT end the process at once, if this process is one of the commands.

    An exception would run through the imports of libraries, some of which catch it and go on.
    """
    if _program() is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_from_here() -> None:
    """Let SIGINT raise `KeyboardInterrupt` again: whoever calls this catches it."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _program() -> str | None:
    """The name of the command that this process is; None for any other program that imports a command."""
    name = sys.argv[0].rpartition(os.sep)[2] if sys.argv else ""
    if name == "-m":  # python -m flexlora.cli.run, as accelerate launch starts it
        name = "flexlora-run"
    return name if name in COMMANDS else None


def _leave(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one says it
        os.write(2, f"{_program()}: interrupted\n".encode())
    os._exit(128 + number)
