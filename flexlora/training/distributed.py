"""Several processes of one run: they leave together, and none waits for ever for one that failed alone.

They talk over gloo here, whatever the devices talk over: hosts exchange words, and no device has to wait.
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

# Seconds that a process which failed waits for the others to come to an end of their own.
PATIENCE = 20.0
# And one that was told to stop: a launcher gives all of them 30 to leave.
PATIENCE_WHEN_TOLD = 5.0
# Of a process that has nothing left to do, until the main one has said how it went.
PATIENCE_AT_EXIT = 10.0
# One that is done waits as long as the main process writes; a launcher ends it where that one is gone.
UNTIL_THE_MAIN_PROCESS_IS_DONE = 24 * 3600.0

# Variables in which launchers say how many processes they started.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

_groups: dict[str, Any] = {}


def launched_alone() -> bool:
    """Whether no launcher started other processes of this run; known before torch is imported."""
    return all(os.environ.get(name, "1") == "1" for name in WORLD_SIZES)


def several() -> bool:
    """Whether this process is one of several."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def begin_together(cpu: bool) -> None:
    """Let the processes that a launcher started find each other, once however often this is called."""
    from accelerate import PartialState

    PartialState(cpu=cpu)
    if several() and not _groups:
        import torch.distributed as dist

        # Made while all are well, for making one takes all. Two, so that an ending never meets another exchange.
        _groups.update({use: dist.new_group(backend="gloo") for use in ("words", "ends")})
        if dist.get_rank() > 0:
            atexit.register(_leave_after_the_main_process)


def largest(number: int) -> int:
    """The largest of all processes' numbers; every process must ask."""
    if not several():
        return number
    import torch
    import torch.distributed as dist

    found = torch.tensor(number)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=_groups["words"])
    return int(found)


@contextlib.contextmanager
def shared_failure() -> Iterator[None]:
    """What fails in this block on one process, such as a write of the main one, is raised on all; all must enter."""
    if not several():
        yield
        return
    import torch.distributed as dist

    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    # Of a class that every process can make again from its arguments.
    told = mine if mine is None or type(mine) is UserError or isinstance(mine, OSError) else RuntimeError(_name(mine))
    errors: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, told, group=_groups["words"])
    first = mine or next((error for error in errors if error is not None), None)
    if first is not None:
        raise first


def ends_together(job: Callable[P, E]) -> Callable[P, E]:
    """Make a `job`, which returns its status or what has one, end on all processes or on none.

    Where one fails and the others do too, each gets its own failure and a sweep goes on. Where they are still at work
    after `PATIENCE` it failed alone: they wait for it, inside an exchange that cannot be called off, and in a sweep it
    would meet them there with the next run's. So it says why in a line and leaves its whole process, with 2 for a
    `UserError` and else 1, and the launcher (torchrun, `accelerate launch`) ends the others.
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
    """Wait until all processes are here; False where they are not within so many `seconds`."""
    if not _groups:
        return True
    import torch.distributed as dist

    end = time.monotonic() + seconds
    # Not monitored_barrier: on a process that is not the main one its timeout does not hold.
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
    """A launcher kills all that are left when one leaves with a code that is not 0, and the main one is to speak."""
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by the launcher, in its turn: nothing to tell of
    if dist.is_initialized():
        _all_end(PATIENCE_AT_EXIT)  # the main one never comes: it is gone, which ends the wait


def _leave(code: int, why: str) -> None:
    import torch.distributed as dist

    print(f"flexlora-run: process {dist.get_rank()} of {dist.get_world_size()} failed: {why}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: on its way out the interpreter would wait for the exchange that the others are in.
    os._exit(code)


def _name(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
