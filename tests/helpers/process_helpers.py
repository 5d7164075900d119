"""Starts several processes of one training."""

from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

from flexlora.testing.commands import server


def start_processes(target: Callable[..., None], arguments: tuple[Any, ...], count: int, join: bool = True) -> Any:
    """Run `target(rank, *arguments)` in `count` processes that are forked from the server, with all imports done.

    Without `join`, the context of the processes is returned while they run.
    """
    server()
    return mp.start_processes(target, args=arguments, nprocs=count, join=join, start_method="forkserver")
