"""How many examples the fuzz tests try: 200 a file in `make test`, 2,000 in `make test-slow`, the same ones every time.

`FLEXLORA_FUZZ_EXAMPLES=20000` asks for more examples, `FLEXLORA_FUZZ_SEED=7` for others (docs/how-to/run-the-tests.md).
"""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

MANY = 2000
FEW = 200
EXAMPLES = int(os.environ.get("FLEXLORA_FUZZ_EXAMPLES", FEW))
SEED = os.environ.get("FLEXLORA_FUZZ_SEED")
# Of one example. Far more than any takes, and far less than a loop over 2**31 steps.
SECONDS = 60
# Of address space beyond what the process has: a setting that asks for more memory than any test should is an error.
BYTES = 4 * 2**30


def fuzz(count: int) -> Callable[[Callable[[int], None]], Callable[[], None]]:
    """Run the test with its share of the examples: with `count` numbers of 2,000, the same at every run.

    All that an example tries is drawn from its number: of strategies that draw many times hypothesis repeats parts in
    three examples of four, in search of duplicates that matter nothing here.
    """

    def decorate(test: Callable[[int], None]) -> Callable[[], None]:
        bounds = settings(
            max_examples=max(1, count * EXAMPLES // MANY),
            deadline=None,
            database=None,
            derandomize=SEED is None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        drawn = bounds(given(st.integers(0, 2**64 - 1))(test))
        return drawn if SEED is None else seed(int(SEED))(drawn)

    return decorate


class TooLong(BaseException):
    """An example took more than `SECONDS`. No `except` of a reader takes it for an error of the file's."""


@contextmanager
def bounded() -> Iterator[None]:
    """An example that hangs, or takes the machine's memory, is a failure and not the end of the machine."""

    def too_long(*_: object) -> None:
        raise TooLong(f"an example took more than {SECONDS} s")

    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115, PTH123
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
