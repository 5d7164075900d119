"""The rank of each interval (E²LoRA's hierarchical rank allocation, HRA): r_k = round(F_k · N · r)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random

from .options import SharingOptions
from .similarity import GAUSSIAN, proxy_entropy

Combine = Callable[[Sequence[float]], float]
COMBINE: Mapping[str, Combine] = {"max": max, "min": min, "mean": lambda values: math.fsum(values) / len(values)}


def rank_entropies(sigmas: Sequence[float], kind: str) -> list[float]:
    """Return the entropies that ranks are proportional to, for the gradients of one pool of intervals.

    `literal` is the proxy entropy. With all entropies negative, its shares give *more* rank to smaller gradients.
    `information` is log(σ / σ_min) + ½ log 2π + ½ > 0: more information, more rank, as the text of the paper says.
    """
    if kind == "literal":
        return [proxy_entropy(sigma) for sigma in sigmas]
    smallest = min(sigmas)
    return [math.log(sigma / smallest) + GAUSSIAN for sigma in sigmas]


def allocate(entropies: Sequence[Sequence[float]], r: int, options: SharingOptions) -> list[int]:
    """Return the rank, at least 1, of each interval of one pool.

    Args:
        entropies: the entropies of the layers of each interval.
        r: the rank that an adapter of one layer would have.
        options: `interval_entropy`, `budget` and `rounding` count.

    The budget decides what F_k is a share of and what N is. `intervals`: F_k = H_k / Σ_k H_k and N is the number of
    intervals. `layers`: the same F_k, and N is the number of layers. `layer_weighted`: F_k = H_k / Σ_l H_k(l), over the
    layers l of each interval k, and N is the number of layers.

    Raises:
        ValueError: entropies have different signs, or are 0, so that shares would be negative or undefined.
    """
    combine = COMBINE[options.interval_entropy]
    of_interval = [combine(values) for values in entropies]
    if not (all(value > 0 for value in of_interval) or all(value < 0 for value in of_interval)):
        raise ValueError(
            f"the entropies of the intervals reach from {min(of_interval):.4f} to {max(of_interval):.4f}, and shares "
            "of different signs would be negative ranks: use rank_entropy=information."
        )
    sizes = [len(values) for values in entropies]
    weights = sizes if options.budget == "layer_weighted" else [1] * len(sizes)
    total = math.fsum(weight * value for weight, value in zip(weights, of_interval, strict=True))
    count = len(sizes) if options.budget == "intervals" else sum(sizes)
    exact = [value / total * count * r for value in of_interval]
    if options.rounding == "paper":
        return [max(1, round(value)) for value in exact]
    return largest_remainder(exact)


def random_ranks(ranks: Sequence[int], random: Random) -> list[int]:
    """Return random ranks of at least 1 with the same sum: each unit above 1 goes to an interval at random."""
    found = [1] * len(ranks)
    for _ in range(sum(ranks) - len(ranks)):
        found[random.randrange(len(ranks))] += 1
    return found


def largest_remainder(exact: Sequence[float]) -> list[int]:
    """Round non-negative numbers to whole numbers of at least 1 whose sum is the rounded sum of the numbers.

    The sum is larger only if there are more numbers than it has units. Of equal remainders the first rounds up.
    """
    ranks = [max(1, math.floor(value)) for value in exact]
    missing = round(math.fsum(exact)) - sum(ranks)
    by_remainder = sorted(range(len(exact)), key=lambda i: (ranks[i] - exact[i], i))
    for i in by_remainder[: max(0, missing)]:
        ranks[i] += 1
    while missing < 0:  # ranks that were raised to 1 are taken from those that lose least
        above = [i for i in range(len(ranks)) if ranks[i] > 1]
        if not above:
            break
        ranks[max(above, key=lambda i: (ranks[i] - exact[i], -i))] -= 1
        missing += 1
    return ranks
