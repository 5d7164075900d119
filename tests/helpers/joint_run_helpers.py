"""Runs in two processes: how they are started, disturbed and compared with one process."""

import errno
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from compose_helpers import composed
from process_helpers import start_processes
from safetensors.torch import load_file

from flexlora.errors import UserError
from flexlora.settings import resolve
from flexlora.training import distributed, job
from flexlora.training.checkpoint import Checkpoints
from flexlora.training.evaluation import Evaluator
from flexlora.training.loop import Loop

PROCESSES = 2


CLOCKS = {"train_seconds", "eval_seconds"}


def run(arguments: list[str]) -> str:
    """What the command does with a configuration; how it ended, or what it said."""
    settings, plain = resolve(composed(*arguments))
    try:
        ending = job.run_job(settings, plain, arguments)
        return getattr(ending, "status", ending)
    except UserError as error:
        return f"refused: {error}"
    except KeyboardInterrupt as error:
        return f"interrupted: {error}"


def folder_of(root: Path, method: str) -> Path:
    return root / "local" / "glue" / "cola" / "bert" / method / "test" / "seed0"


def rows_of(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]


def told_once(rank: int, here: int, where: str, number: int) -> Callable[[], None]:
    """From now on process `here`, and it alone, gets SIGTERM in the `number`th call of the loop's `where`."""
    owner = Loop if hasattr(Loop, where) else Evaluator
    original, calls = getattr(owner, where), 0

    def calling(self: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if rank == here and calls == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *rest)

    setattr(owner, where, calling)
    return lambda: setattr(owner, where, original)


def disk_full(rank: int, here: int, step: int) -> Callable[[], None]:
    """From now on the disk of process `here` is full at the checkpoint of `step`."""
    original = Checkpoints.save

    def saving(self: Checkpoints, at: int, *rest: Any) -> None:
        if rank == here and at == step:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, at, *rest)

    Checkpoints.save = saving  # type: ignore[method-assign]
    return lambda: setattr(Checkpoints, "save", original)


def broken_forward(rank: int, here: int, number: int) -> Callable[[], None]:
    """From now on the `number`th backward pass of process `here` fails."""
    original, calls = Loop._backward, 0

    def backward(self: Loop, *rest: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if rank == here and calls == number:
            raise RuntimeError("out of memory, as it were")
        return original(self, *rest)

    Loop._backward = backward  # type: ignore[method-assign]
    return lambda: setattr(Loop, "_backward", original)


def watch_shards(rank: int, file: str) -> Callable[[], None]:
    """From now on `file` gets the share of the base that the main process holds of each model it trains."""
    original = Loop._train

    def training(self: Loop) -> None:
        from torch.distributed.tensor import DTensor

        frozen = [p for p in self.adapted.parameters() if not p.requires_grad]
        held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen)
        if rank == 0:
            Path(file).write_text(str(held / sum(p.numel() for p in frozen)), encoding="utf-8")
        original(self)

    Loop._train = training  # type: ignore[method-assign]
    return lambda: setattr(Loop, "_train", original)


FAULTS: dict[str, Callable[..., Callable[[], None]]] = {
    "told": told_once,
    "disk": disk_full,
    "broken": broken_forward,
    "watched": watch_shards,
}


def process(rank: int, port: int, folder: str, runs: list[tuple[list[str], list[Any] | None]]) -> None:
    """One of the processes, as a launcher starts it: all `runs`, each with the fault that strikes it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    logging.getLogger("flexlora").setLevel(logging.INFO)
    distributed.PATIENCE = 2.0
    endings = []
    for arguments, fault in runs:
        undo = FAULTS[fault[0]](rank, *fault[1:]) if fault else lambda: None
        endings.append(run(arguments))
        undo()
        Path(folder, f"endings{rank}.json").write_text(json.dumps(endings), encoding="utf-8")
    dist.destroy_process_group()


def start(folder: Path, runs: list[tuple[list[str], list[Any] | None]], deadline: float) -> mp.ProcessContext:
    """Both processes, ended or killed by the deadline."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = start_processes(process, (port, str(folder), runs), PROCESSES, join=False)
    assert context is not None
    end = time.monotonic() + deadline
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > end:
                pytest.fail(f"the processes were still there after {deadline:.0f} s")
    finally:
        for one in context.processes:
            one.kill()
    return context


def assert_equal_to_one_process(joint: Path, single: Path, events: int) -> None:
    """Events with their ranks, and losses and scores to 1e-5."""
    ours, theirs = rows_of(joint / "metrics.jsonl"), rows_of(single / "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in ours] == [(row["kind"], row["step"]) for row in theirs]
    assert sum(row["kind"] == "train" for row in ours) >= 12
    for row, other in zip(ours, theirs, strict=True):
        if row["kind"] == "train":
            assert row["loss"] == pytest.approx(other["loss"], abs=1e-5), row["step"]
            assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4), row["step"]
        else:
            assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
            assert row["eval_loss"]["validation"] == pytest.approx(other["eval_loss"]["validation"], abs=1e-5)
            assert row["matthews_correlation"] == other["matthews_correlation"]
            assert row["ranks"] == other["ranks"]
    found, expected = rows_of(joint / "ranks.jsonl"), rows_of(single / "ranks.jsonl")
    keys = ("step", "pruned", "grown", "ranks")
    assert [[event[key] for key in keys] for event in found] == [[event[key] for key in keys] for event in expected]
    assert sum(bool(event["pruned"]) for event in found) >= events


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit."""
    assert rows_of(first / "metrics.jsonl") == rows_of(second / "metrics.jsonl")
    assert rows_of(first / "ranks.jsonl") == rows_of(second / "ranks.jsonl")
    before, after = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) for key in before)
