"""A task's batches on the device of one process, in the order of `batching`."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from flexlora.settings import TrainingSettings
from flexlora.tasks import Split, Task
from flexlora.training import batching

Batch = dict[str, torch.Tensor]


class TaskLoader:
    """Makes the batches of one process; `data_seed` decides their order and the augmentation."""

    def __init__(self, task: Task, settings: TrainingSettings, accelerator: Accelerator, data_seed: int) -> None:
        self._task = task
        self._settings = settings
        self._device = accelerator.device
        self._process, self._processes = accelerator.process_index, accelerator.num_processes
        self._data_seed = data_seed

    @cached_property
    def epoch_size(self) -> int:
        """The number of optimizer steps of an epoch."""
        settings = self._settings
        rows = len(self._task.train)
        return batching.steps_per_epoch(rows, settings.batch_size, settings.gradient_accumulation, self._processes)

    def epoch_steps(self, epoch: int, done: int = 0) -> Iterator[tuple[list[list[int]], list[Batch]]]:
        """Yield for each optimizer step the indices of its batches on all processes, and this process's batches.

        The first `done` steps of the epoch are skipped, and their batches are not made.
        """
        accumulation, processes = self._settings.gradient_accumulation, self._processes
        batches = batching.epoch_batches(
            self._task.train.lengths,
            self._settings.batch_size,
            seed=self._data_seed,
            epoch=epoch,
            processes=processes,
        )
        batches = batches[done * accumulation * processes :]
        examples = self._task.train_examples(self._data_seed, epoch)
        loader = iter(self._load(examples, batches[self._process :: processes]))
        for indices in batching.optimizer_steps(batches, accumulation, processes):
            yield indices, [next(loader) for _ in range(len(indices) // processes)]

    def first_batches(self) -> Iterator[Batch]:
        """Yield the first epoch's batches on the device, for a method that prepares itself on them."""
        for _, batches in self.epoch_steps(0):
            yield from (self.to_device(batch) for batch in batches)

    def evaluation_batches(self, split: Split) -> tuple[list[list[int]], Iterator[Batch]]:
        """Return the indices of this process's batches of `split`, and an iterator over the batches to run.

        Every process runs the same number of forward passes, as FSDP requires. A process with fewer batches gets the
        split's first batch again and has to discard the result.
        """
        batches = batching.evaluation_batches(split.lengths, self._settings.eval_batch_size)
        mine = batches[self._process :: self._processes]
        rounds = -(-len(batches) // self._processes)
        return mine, iter(self._load(split.examples, [*mine, *[batches[0]] * (rounds - len(mine))]))

    def to_device(self, batch: Batch) -> Batch:
        return {key: value.to(self._device, non_blocking=True) for key, value in batch.items()}

    def _load(self, examples: Sequence[dict[str, Any]], batches: list[list[int]]) -> DataLoader[Any]:
        return DataLoader(
            examples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self._task.collate,
            pin_memory=self._device.type == "cuda",
            # The loader has its own generator. Without one, the start of an epoch draws from the generator of dropout.
            generator=torch.Generator(),
        )
