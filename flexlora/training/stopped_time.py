"""Time without the time in which the process was stopped by SIGSTOP or Ctrl-Z."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

# Seconds between two looks at the clock. The error at each end of a stop is at most this.
PERIOD = 0.1
# Seconds. A shorter gap between two looks is a delay of a busy machine.
SHORTEST = 0.3
# A gap counts as a stop only if its SIGCONT comes within this many looks: a long operation can delay the signal.
KEPT_LOOKS = 600


class StoppedTime:
    """Adds up the time in which this process was stopped.

    A thread looks at the clock in short periods. A stop is a gap between two looks after which the process got SIGCONT,
    the signal that ends every stop.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._gap = 0.0
        self._looks = 0
        self._last = time.perf_counter()
        self._lock = threading.RLock()

    def look(self) -> None:
        """Note a gap since the last look."""
        with self._lock:
            now = time.perf_counter()
            gap, self._last = now - self._last, now
            self._looks += 1
            if gap > SHORTEST:
                self._gap, self._looks = gap, 0
            elif self._looks > KEPT_LOOKS:
                self._gap = 0.0

    def continued(self, number: int = signal.SIGCONT, frame: FrameType | None = None) -> None:
        """Handle SIGCONT: the last gap was a stop."""
        with self._lock:
            self.look()
            self.seconds += self._gap
            self._gap = 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch for stops in this block. Other threads than the main one add no time: Python sends them no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        end = threading.Event()

        def watch() -> None:
            while not end.wait(PERIOD):
                self.look()

        self._last = time.perf_counter()
        before = signal.signal(signal.SIGCONT, self.continued)
        thread = threading.Thread(target=watch, name="stopped time", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            signal.signal(signal.SIGCONT, before)


stopped = StoppedTime()


def running_seconds() -> float:
    """Return a time in seconds that does not advance while the process is stopped. Only differences have a meaning."""
    return time.perf_counter() - stopped.seconds
