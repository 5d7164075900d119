"""The terminal settings of all commands."""

import io
import sys


def take_any_letter() -> None:
    """Print letters that the terminal's encoding lacks (· → ✓ in ASCII) as their numbers instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
