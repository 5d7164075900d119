"""The options of a sharing plan. The summary of the paper leaves several choices open; each is an option here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from flexlora.tuner.base_config import Checked, setting
from flexlora.tuner.checks import choice, whole

SIMILARITIES = ("rmi", "rmi_scale_free", "cosine", "l1", "l2", "kl")
RANK_ENTROPIES = ("literal", "information")
INTERVAL_ENTROPIES = ("max", "mean", "min")
RANK_POOLS = ("type", "all")
BUDGETS = ("intervals", "layer_weighted", "layers")
ROUNDINGS = ("paper", "largest_remainder")
PARTITIONS = ("greedy", "dynamic_programming")


def _one_of(options: tuple[str, ...], default: str, text: str) -> Any:
    return setting(default, f"{text} One of {', '.join(options)}.", partial(choice, options=options))


def _true_or_false(owner: Any, name: str) -> None:
    choice(owner, name, (True, False))


@dataclass(frozen=True)
class SharingOptions(Checked):
    """How a plan is made. The defaults are what the summary of the paper describes.

    Raises:
        FieldError: a value is not one of the options.
    """

    lss: bool = setting(True, "Whether neighbouring layers share an adapter. If not, each has its own.", _true_or_false)
    hra: bool = setting(True, "Whether ranks follow the entropies. If not, each interval has rank r.", _true_or_false)
    similarity: str = _one_of(SIMILARITIES, "rmi", "How similar the gradients of two layers are.")
    partition: str = _one_of(PARTITIONS, "greedy", "How the intervals are found.")
    rank_entropy: str = _one_of(RANK_ENTROPIES, "literal", "The entropy that ranks are proportional to.")
    interval_entropy: str = _one_of(INTERVAL_ENTROPIES, "max", "The entropy of an interval, of those of its layers.")
    rank_pool: str = _one_of(RANK_POOLS, "type", "The intervals that share a budget: those of one type, or all.")
    budget: str = _one_of(BUDGETS, "intervals", "What the sum of the ranks is r times of.")
    rounding: str = _one_of(ROUNDINGS, "paper", "How ranks become whole numbers.")
    random_intervals: bool = setting(
        False, "For comparison: intervals of the same sizes in a random order.", _true_or_false
    )
    random_ranks: bool = setting(False, "For comparison: random ranks with the same sum.", _true_or_false)
    random_seed: int = setting(0, "Seed of the random intervals and ranks.", whole, at_least=0)
