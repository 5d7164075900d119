"""Handle Ctrl-C while a command is still importing: print one line and exit with 130, instead of a traceback."""

import os
import signal
import sys
from types import FrameType

COMMANDS = ("flexlora-run", "flexlora-doctor", "flexlora-report")


def leave_while_importing() -> None:
    """Make SIGINT end the process at once, if this process is one of the commands.

    An exception is not enough, because some libraries catch it in their imports and continue.
    """
    if program() is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_from_here() -> None:
    """Make SIGINT raise `KeyboardInterrupt` again. The caller of this function catches it."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def program() -> str | None:
    """Return the name of the command that this process runs, or None for any other program."""
    name = sys.argv[0].rpartition(os.sep)[2] if sys.argv else ""
    if name == "-m":  # python -m flexlora.cli.run: accelerate launch starts the command this way
        name = "flexlora-run"
    return name if name in COMMANDS else None


def _leave(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":  # with several processes only the first one prints the line
        os.write(2, f"{program()}: interrupted\n".encode())
    os._exit(128 + number)
