"""Assigns examples to batches. The order depends only on (seed, epoch), so a resumed run sees the same order."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

# Examples are sorted by length within stretches of this many batches for each process. This needs little padding, and
# the order is still random.
BATCHES_PER_STRETCH = 50


def batches_per_epoch(examples: int, batch_size: int, processes: int = 1) -> int:
    """Return the number of batches of an epoch on all processes together.

    It is a multiple of `processes`, so that no process waits for another.
    """
    return processes * math.ceil(examples / (processes * batch_size))


def steps_per_epoch(examples: int, batch_size: int, accumulation: int = 1, processes: int = 1) -> int:
    """Return the number of optimizer steps of an epoch; the last one may accumulate fewer batches."""
    return math.ceil(batches_per_epoch(examples, batch_size, processes) / (processes * accumulation))


def epoch_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, processes: int = 1
) -> list[list[int]]:
    """Return the batches of one epoch in training order, as lists of indices into `lengths`.

    Every example is in exactly one batch. A batch holds at most `batch_size` examples of similar length. The sizes of
    the batches differ by at most one: the few examples of a short last batch would have a larger weight. Process p of
    `processes` takes every batch whose number is p modulo `processes`. Batches of the same step have similar lengths.

    Raises:
        ValueError: there are fewer examples than processes, so that a process would have none.
    """
    count = batches_per_epoch(len(lengths), batch_size, processes)
    if len(lengths) < count:
        raise ValueError(f"{len(lengths)} examples are too few for {processes} processes: each needs one a step")
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    ends = [len(lengths) * number // count for number in range(count + 1)]
    stretch = processes * BATCHES_PER_STRETCH  # one joint batch of all processes counts as one batch
    by_length = np.asarray(lengths)
    for first in range(0, count, stretch):
        part = slice(ends[first], ends[min(first + stretch, count)])
        # The sort is stable: examples of equal length keep their shuffled order.
        order[part] = order[part][np.argsort(by_length[order[part]], kind="stable")]
    batches = [order[start:end].tolist() for start, end in itertools.pairwise(ends)]
    turns = generator.permutation(count // processes)
    return [batch for turn in turns for batch in batches[turn * processes : (turn + 1) * processes]]


def optimizer_steps(batches: list[list[int]], accumulation: int, processes: int = 1) -> list[list[list[int]]]:
    """Group the batches of an epoch by optimizer step: `accumulation` × `processes` each; the last may have fewer."""
    size = accumulation * processes
    return [batches[first : first + size] for first in range(0, len(batches), size)]


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return the batches of an evaluation by decreasing length, which needs the least padding.

    The largest batch comes first, so that an evaluation that does not fit in memory fails at its start.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[first : first + batch_size].tolist() for first in range(0, len(lengths), batch_size)]
