"""SIGINT and SIGTERM: a training finishes its step, writes a checkpoint and ends. A second signal ends it at once."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("flexlora")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was told to stop. `number` is the signal's number; a command exits with 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """Handle a signal outside of a training: stop at once."""
    raise Interrupted(number)


class StopRequest:
    """A context in which the first signal only sets `number`. The training loop reads it after every step.

    Outside of the main thread, where Python handles no signals, `number` is never set.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # A shell makes background processes ignore SIGINT: they continue to ignore it.
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._request) for number in heard}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Interrupted(number)
        self.number = number
        log.info("%s: finishing the step; once more to leave at once", signal.Signals(number).name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
