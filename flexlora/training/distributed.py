"""Several processes of one run: they end together, and no process waits forever for one that failed alone.

These exchanges use gloo on the CPU whatever the device backend is, so no GPU has to synchronise.
"""

import atexit
import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from flexlora.errors import UserError, one_line

P = ParamSpec("P")
E = TypeVar("E")

# Seconds that a failed process waits for the others to end by themselves.
PATIENCE = 20.0
# Seconds that an interrupted process waits for the others: a launcher gives all of them 30 seconds to end.
PATIENCE_WHEN_TOLD = 5.0
# Seconds that a process waits at its exit until the main process has reported the result.
PATIENCE_AT_EXIT = 10.0
# Seconds that a finished process waits while the main process writes. If the main process is gone, a launcher ends it.
UNTIL_THE_MAIN_PROCESS_IS_DONE = 24 * 3600.0

# Environment variables in which launchers state how many processes they started.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

_groups: dict[str, Any] = {}


def launched_alone() -> bool:
    """Return whether no launcher started other processes of this run. This needs no import of torch."""
    return all(os.environ.get(name, "1") == "1" for name in WORLD_SIZES)


def several() -> bool:
    """Return whether this process is one of several."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def begin_together(cpu: bool) -> None:
    """Let the processes that a launcher started find each other. Further calls have no effect."""
    from accelerate import PartialState

    PartialState(cpu=cpu)
    if several() and not _groups:
        import torch.distributed as dist

        # All processes must take part in making a group, so the groups are made before any can fail. There are two, so
        # that the exchange at the end never meets another exchange.
        _groups.update({use: dist.new_group(backend="gloo") for use in ("words", "ends")})
        if dist.get_rank() > 0:
            atexit.register(_leave_after_the_main_process)


def largest(number: int) -> int:
    """Return the largest of all processes' numbers. Every process must call this."""
    if not several():
        return number
    import torch
    import torch.distributed as dist

    found = torch.tensor(number)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=_groups["words"])
    return int(found)


@contextlib.contextmanager
def shared_failure() -> Iterator[None]:
    """Raise an error of one process in this block, such as a failed write of the main process, on all processes.

    Every process must enter the block.
    """
    if not several():
        yield
        return
    import torch.distributed as dist

    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    # The class of the error is one that every process can make again from its arguments.
    told = mine if mine is None or type(mine) is UserError or isinstance(mine, OSError) else RuntimeError(_name(mine))
    errors: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, told, group=_groups["words"])
    first = mine or next((error for error in errors if error is not None), None)
    if first is not None:
        raise first


def ends_together(job: Callable[P, E]) -> Callable[P, E]:
    """Make `job` end on all processes or on none. `job` returns its status, or an object with a `status`.

    If one process fails and the others fail too, each raises its own error and a sweep continues. If the others are
    still at work after `PATIENCE`, the process failed alone. The others then wait for it inside an exchange that cannot
    be cancelled, and in a sweep the exchange of its next run would meet theirs. The failed process therefore prints the
    reason in one line and ends, with exit code 2 for a `UserError` and 1 for another error. The launcher (torchrun,
    `accelerate launch`) then ends the others.
    """

    @functools.wraps(job)
    def together(*args: P.args, **kwargs: P.kwargs) -> E:
        try:
            ending = job(*args, **kwargs)
        except KeyboardInterrupt:
            _all_end(PATIENCE_WHEN_TOLD)
            raise
        except Exception as error:
            if not _all_end(PATIENCE):
                _leave(2 if isinstance(error, UserError) else 1, _name(error))
            raise
        status = getattr(ending, "status", ending)
        if not _all_end(PATIENCE if status == "failed" else UNTIL_THE_MAIN_PROCESS_IS_DONE):
            _leave(1, "see its traceback" if status == "failed" else f"it is {status}, but another process is gone")
        return ending

    return together


def _all_end(seconds: float) -> bool:
    """Wait until all processes are here; return False if they are not here within `seconds`."""
    if not _groups:
        return True
    import torch.distributed as dist

    end = time.monotonic() + seconds
    # monitored_barrier is not used: its timeout only works on the main process.
    arrival = dist.barrier(group=_groups["ends"], async_op=True)
    while not arrival.is_completed():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    try:
        arrival.wait()
    except RuntimeError:  # another process is gone
        return False
    return True


def _leave_after_the_main_process() -> None:
    """Wait at exit until the main process has ended, so that it can report the result first.

    A launcher kills the remaining processes as soon as one ends with an exit code that is not 0.
    """
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a SIGTERM of the launcher now needs no message
    if dist.is_initialized():
        _all_end(PATIENCE_AT_EXIT)  # the main process never enters this barrier: its end ends the wait


def _leave(code: int, why: str) -> None:
    import torch.distributed as dist

    print(f"flexlora-run: process {dist.get_rank()} of {dist.get_world_size()} failed: {why}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # sys.exit is not used: at exit the interpreter would wait for the exchange that the other processes are in.
    os._exit(code)


def _name(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
