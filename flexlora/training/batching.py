"""Which examples go into which batch: a pure function of (seed, epoch), so that a resumed run sees the same order."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

# Examples are sorted by length within stretches of this many batches a process: little padding, still shuffled.
BATCHES_PER_STRETCH = 50


def batches_per_epoch(examples: int, batch_size: int, processes: int = 1) -> int:
    """Batches of an epoch over all processes together: a multiple of `processes`, so that none waits for another."""
    return processes * math.ceil(examples / (processes * batch_size))


def steps_per_epoch(examples: int, batch_size: int, accumulation: int = 1, processes: int = 1) -> int:
    """Optimizer steps of an epoch; the last one may accumulate fewer batches."""
    return math.ceil(batches_per_epoch(examples, batch_size, processes) / (processes * accumulation))


def epoch_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, processes: int = 1
) -> list[list[int]]:
    """The batches of one epoch, as lists of indices into `lengths`, in training order.

    Every example is in exactly one batch. Batches hold examples of similar length, at most `batch_size` of them, and
    differ in size by one at most (no short last batch whose few examples would weigh more). Process p of `processes`
    takes every batch whose number is p modulo `processes`; batches that are taken together are of similar length.

    Raises:
        ValueError: fewer examples than processes: a process would go without.
    """
    count = batches_per_epoch(len(lengths), batch_size, processes)
    if len(lengths) < count:
        raise ValueError(f"{len(lengths)} examples are too few for {processes} processes: each needs one a step")
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    ends = [len(lengths) * number // count for number in range(count + 1)]
    stretch = processes * BATCHES_PER_STRETCH  # a joint batch of all processes is one of a single process
    by_length = np.asarray(lengths)
    for first in range(0, count, stretch):
        part = slice(ends[first], ends[min(first + stretch, count)])
        # Stable: equal lengths keep their shuffled order.
        order[part] = order[part][np.argsort(by_length[order[part]], kind="stable")]
    batches = [order[start:end].tolist() for start, end in itertools.pairwise(ends)]
    turns = generator.permutation(count // processes)
    return [batch for turn in turns for batch in batches[turn * processes : (turn + 1) * processes]]


def optimizer_steps(batches: list[list[int]], accumulation: int, processes: int = 1) -> list[list[list[int]]]:
    """The epoch's batches by optimizer step: `accumulation` × `processes` of them, the last may have fewer."""
    size = accumulation * processes
    return [batches[first : first + size] for first in range(0, len(batches), size)]


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches by falling length: the least padding, and the largest batch first, where memory would run out."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[first : first + batch_size].tolist() for first in range(0, len(lengths), batch_size)]
