"""Measures how much memory a training needs: it takes two steps with tensors that have shapes and no data.

The adapted model, its optimizer and the largest batch are made under torch's FakeTensorMode: every operation of
forward, backward and optimizer computes shapes only. `_Alive` counts the bytes of all storages that are alive after
each operation. There is no formula for layers or heads: all tensors that the architecture, the method and the precision
save for the backward pass are counted. Memory that an operation allocates and frees inside itself is not counted.

The result was compared with real steps (tests/training/test_memory.py, docs/reference/flexlora-doctor.md). It is within
3 % of the resident memory if malloc returns memory at once. By default glibc keeps fragments, and a run on a CPU then
holds up to about twice the bytes that are alive.
"""

import contextlib
import logging
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flexlora.methods import Method
from flexlora.settings import Precision, TrainingSettings

# The largest measured ratio of resident bytes to bytes alive on a CPU, with glibc's malloc.
CPU_FRAGMENTS = 2.0
AUTOCAST = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class StepMemory:
    """The memory of a training in bytes on the device. The parts are not all alive at the same time."""

    frozen: int
    """The parameters that do not train, and the buffers."""
    trained: int
    """The parameters that train, inactive directions included."""
    gradients: int
    optimizer: int
    activations: int
    """The tensors that the forward pass of the largest batch keeps for its backward pass."""
    peak: int
    """The largest number of bytes alive at the same time, in a training step or in a batch of an evaluation."""
    evaluation_decides: bool
    """Whether the peak is in an evaluation and not in a training step."""


class _Alive(TorchDispatchMode):
    """Counts the bytes of all storages from the operation that returns them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.bytes = 0
        self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.bytes += self._sizes[key]
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


def step_memory(
    model: nn.Module,
    logits: Callable[[nn.Module, Batch], torch.Tensor],
    method: Method,
    training: TrainingSettings,
    train_batch: Batch,
    eval_batch: Batch,
    device: str = "cpu",
) -> StepMemory:
    """Measure the memory of training `model`, which `method` has wrapped on the meta device.

    `model` cannot be used afterwards.

    Args:
        model: the backbone's adapted model.
        logits: computes the logits of `model` for a batch (`Backbone.logits`).
        method: makes the parameter groups and the optimizer.
        training: has the precision, the learning rate and the weight decay.
        train_batch: the largest batch of a training step; labels in it are ignored.
        eval_batch: the largest batch of an evaluation.
        device: the type of the device to train on (cpu, cuda), on which the choice of kernels depends.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _quiet():
        model.to_empty(device=device)
        model.train()
        optimizer = method.optimizer(
            method.parameter_groups(model, training.learning_rate), training.learning_rate, training.weight_decay
        )
        inputs, eval_inputs = (
            {name: torch.empty_like(value, device=device) for name, value in batch.items() if name != "labels"}
            for batch in (train_batch, eval_batch)
        )
        trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
        frozen = sum(_bytes(t) for t in (*model.parameters(), *model.buffers())) - trained
        precision = AUTOCAST.get(training.precision)

        def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            with torch.autocast(device, dtype=precision) if precision else contextlib.nullcontext():
                return logits(model, batch).float().square().mean()

        with _Alive() as alive:
            for tensor in (*model.parameters(), *model.buffers()):
                alive.add(tensor)
            activations = gradients = state = 0
            for _ in range(2):  # the optimizer's state exists from the second step on
                before = alive.bytes
                loss = forward(inputs)
                activations = alive.bytes - before
                loss.backward()
                gradients = sum(_bytes(p.grad) for p in model.parameters() if p.grad is not None)
                optimizer.step()
                del loss
                optimizer.zero_grad(set_to_none=True)
            state = alive.bytes - frozen - trained
            train_peak = alive.peak
            model.eval()
            alive.peak = alive.bytes
            with torch.no_grad():
                forward(eval_inputs)
            return StepMemory(
                frozen=frozen,
                trained=trained,
                gradients=gradients,
                optimizer=max(0, state),
                activations=activations,
                peak=max(train_peak, alive.peak),
                evaluation_decides=alive.peak > train_peak,
            )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings about a forward pass whose masks cannot be read, and about steps that no schedule counts."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def free_memory(device: str) -> tuple[int, int] | None:
    """Return the free and the total memory of the device in bytes; None if the system does not report them.

    For a CPU they are those of the machine, or of the container's share of it.
    """
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        free, total = kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # there is no control group, or its limit is "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines()).get("inactive_file", 0)
        free, total = min(free, limit - used + int(cached)), min(total, limit)
    return max(0, free), total
