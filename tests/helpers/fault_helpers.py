"""Faults that a test puts into a command's process before the command runs: `run_command(..., fault=partial(...))`."""

import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

PART = re.compile(r"\.(.*)\.[^.]+\.part")  # of a file that is moved into place when it is whole


def no_opening(name: str, error: int, number: int = 1) -> None:
    """From the `number`-th time on no file called `name` can be opened for writing: it fails with this errno.

    ENOSPC is what a file system says that has no room for one more file.
    """
    seen = 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event != "open" or isinstance(arguments[0], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = Path(os.fsdecode(arguments[0]))
        part = PART.fullmatch(path.name)
        if (part[1] if part else path.name) == name:
            seen += 1
            if seen >= number:
                raise OSError(error, os.strerror(error), str(path))

    sys.addaudithook(on_event)


def no_room_after(name: str, lines: int) -> None:
    """After so many lines the file called `name` is on a full disk: on /dev/full, so that the system itself says so."""
    from flexlora.results.files import JsonLines

    write, written = JsonLines.write, 0

    def write_or_not(self: JsonLines, row: dict[str, Any]) -> None:
        nonlocal written
        if Path(self._file.name).name == name:
            if written == lines:
                self._file = Path("/dev/full").open("wb")  # noqa: SIM115
            written += 1
        write(self, row)

    JsonLines.write = write_or_not


def strike(place: str, signals: Sequence[signal.Signals], number: int = 1) -> None:
    """The process gets `signals` as the function at `place`, "module:Class.function", is called for that time."""
    module, _, names = place.partition(":")
    *owners, name = names.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    call, calls = getattr(owner, name), 0

    def struck(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            for each in signals:
                os.kill(os.getpid(), each)
        return call(*arguments, **options)

    setattr(owner, name, struck)


def killed_while_it_keeps_tokens() -> None:
    """The process is killed when it has written half of the tokens' file."""
    write = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        if ".safetensors." not in path.name:
            return write(path, content)
        write(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    Path.write_bytes = half


def backward_clock(start: str) -> None:
    """The system's clock shows `start`, an ISO date, and at every look at it an hour less."""
    now = datetime.fromisoformat(start).replace(tzinfo=UTC)

    def look() -> datetime:
        nonlocal now
        now -= timedelta(hours=1)
        return now

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return look()

    for module in ("flexlora.results.folder", "flexlora.training.job"):
        importlib.import_module(module).datetime = Clock
    time.time = lambda: look().timestamp()
    time.time_ns = lambda: int(look().timestamp() * 1e9)
