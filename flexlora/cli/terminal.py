"""What all commands ask of the terminal."""

import io
import sys


def take_any_letter() -> None:
    """Print a letter that the terminal's encoding lacks (· → ✓ in ASCII) as its number, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
