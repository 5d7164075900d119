"""The sharing plan of a model: intervals, ranks, entropies and similarities of every module type."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from random import Random
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from .gradients import GradientStatistics, Loss, gradient_statistics
from .options import SharingOptions
from .partition import PARTITION, shuffled, thresholds
from .ranks import allocate, random_ranks, rank_entropies
from .similarity import proxy_entropy, similarity_matrix

LINEARS = (nn.Linear, Conv1D)
Linear = nn.Linear | Conv1D


@dataclass(frozen=True)
class Interval:
    """Neighbouring layers of one module type that share an adapter."""

    modules: tuple[str, ...]
    """The names of the modules, in the model's order."""
    rank: int


@dataclass(frozen=True)
class TypePlan:
    """The plan of one module type, such as all query projections."""

    name: str
    """The modules' name without the number of the layer: `encoder.layer.*.attention.self.query`."""
    in_features: int
    out_features: int
    intervals: tuple[Interval, ...]
    entropies: tuple[float, ...]
    """The proxy entropy H of each layer."""
    similarities: tuple[tuple[float, ...], ...]
    """The similarity of each pair of layers. Empty if layers do not share."""
    thresholds: tuple[float, ...]
    """τ of each layer: its mean similarity to the others. Empty if layers do not share."""


@dataclass(frozen=True)
class SharingPlan:
    """Which modules share an adapter, with which rank, and the figures that decided it."""

    r: int
    batches: int
    """The number of batches behind the gradients, over all processes."""
    options: SharingOptions
    types: tuple[TypePlan, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module."""
        return {
            module: interval.rank for kind in self.types for interval in kind.intervals for module in interval.modules
        }

    def parameters(self, one_a: bool = False) -> int:
        """Count the parameters of the adapters: A and B of each interval.

        Args:
            one_a: count one A per module type instead, with as many rows as the largest rank (E²ShareLoRA).
        """
        total = 0
        for kind in self.types:
            ranks = [interval.rank for interval in kind.intervals]
            total += kind.in_features * (max(ranks) if one_a else sum(ranks)) + kind.out_features * sum(ranks)
        return total

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SharingPlan:
        """Make a plan from what `as_dict` returned.

        Raises:
            ValueError: a key is missing or unknown, a value has the wrong type, or a module is in two intervals.
        """
        try:
            types = tuple(
                TypePlan(
                    **{
                        **kind,
                        "intervals": tuple(
                            Interval(tuple(map(str, interval["modules"])), int(interval["rank"]))
                            for interval in kind["intervals"]
                        ),
                        "entropies": tuple(map(float, kind["entropies"])),
                        "similarities": tuple(tuple(map(float, row)) for row in kind["similarities"]),
                        "thresholds": tuple(map(float, kind["thresholds"])),
                    }
                )
                for kind in values["types"]
            )
            plan = cls(**{**values, "options": SharingOptions(**values["options"]), "types": types})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is not a sharing plan: {error}") from error
        modules = [module for kind in types for interval in kind.intervals for module in interval.modules]
        if len(modules) != len(set(modules)) or any(rank < 1 for rank in plan.ranks.values()):
            raise ValueError("this is not a sharing plan: a module is in two intervals, or a rank is below 1.")
        return plan

    def __str__(self) -> str:
        parts = [kind.name.split(".") for kind in self.types]
        heads = zip(*(name[:-1] for name in parts), strict=False)
        same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, heads))
        names = [".".join(name[same:]) for name in parts]
        width = max(map(len, names), default=0)
        lines = [f"r {self.r}, batches {self.batches}, parameters as E²LoRA {self.parameters():,}"]
        for name, kind in zip(names, self.types, strict=True):
            shares = " ".join(f"{len(interval.modules)}×r{interval.rank}" for interval in kind.intervals)
            low, high = min(kind.entropies), max(kind.entropies)
            lines.append(f"{name:{width}}  H {low:.2f} … {high:.2f}  layers × rank: {shares}")
        return "\n".join(lines)


def sharing_plan(
    model: nn.Module,
    batches: Iterable[Any],
    target_modules: str | Sequence[str] = "all-linear",
    r: int = 8,
    *,
    loss: Loss | None = None,
    passes: int = 1,
    **options: Any,
) -> SharingPlan:
    """Make the sharing plan of a model from the gradients of its frozen weights.

    Args:
        model: without an adapter. Its weights, training mode and gradients are as before afterwards.
        batches: a few batches on the model's device. One batch is too few for a stable plan; the default of the runner
            is 8.
        target_modules: as in PEFT: suffixes of module names, a regular expression, or `all-linear`.
        r: the rank that an adapter of one layer would have.
        loss: takes the model and a batch and returns the scalar loss. The default is `model(**batch).loss`.
        passes: splits the weights into groups to save memory, see `gradient_statistics`.
        options: the fields of `SharingOptions`.

    Raises:
        ValueError: no module matches, a gradient is missing or not finite, or the options do not fit the gradients.
        FieldError: an option has an invalid value.
        TypeError: there is no such option.
    """
    chosen = SharingOptions(**options)
    targets = find_targets(model, target_modules)
    weights = {name: module.weight for name, module in targets.items()}
    held = list(batches)
    found = gradient_statistics(
        model, weights, held, loss or _own_loss, passes=passes, keep=chosen.similarity == "cosine"
    )
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    shapes = {name: linear_shape(module) for name, module in targets.items()}
    return plan_of(found, shapes, r, chosen, batches=len(held) * processes)


def plan_of(
    statistics: Mapping[str, GradientStatistics],
    shapes: Mapping[str, tuple[int, int]],
    r: int,
    options: SharingOptions,
    batches: int,
) -> SharingPlan:
    """Make a plan from the statistics and the shapes (in, out) of the modules, both in the model's order.

    Raises:
        ValueError: the options do not fit the gradients. The message names the module or module type.
    """
    grouped: dict[tuple[str, int, int], list[str]] = {}
    for name in statistics:
        grouped.setdefault((module_type(name), *shapes[name]), []).append(name)
    layers = {kind: [statistics[name] for name in names] for kind, names in grouped.items()}
    matrices = {kind: similarity_matrix(of_kind, options.similarity) for kind, of_kind in layers.items() if options.lss}
    partitions = {
        kind: PARTITION[options.partition](matrices[kind]) if options.lss else [(i, i + 1) for i in range(len(names))]
        for kind, names in grouped.items()
    }
    random = Random(options.random_seed)
    if options.random_intervals:
        partitions = {kind: shuffled(intervals, random) for kind, intervals in partitions.items()}
    pools = [[kind] for kind in grouped] if options.rank_pool == "type" else [list(grouped)]
    ranks: dict[tuple[str, int, int], list[int]] = {}
    for pool in pools:
        ranks |= _ranks_of_pool(pool, grouped, partitions, statistics, r, options, random)
    types = []
    for kind, names in grouped.items():
        matrix = matrices.get(kind, [])
        intervals = [
            Interval(tuple(names[start:stop]), min(rank, *kind[1:]))  # never above the smaller side of the weight
            for (start, stop), rank in zip(partitions[kind], ranks[kind], strict=True)
        ]
        types.append(
            TypePlan(
                *kind,
                intervals=tuple(intervals),
                entropies=tuple(proxy_entropy(layer.sigma) for layer in layers[kind]),
                similarities=tuple(map(tuple, matrix)),
                thresholds=tuple(thresholds(matrix)),
            )
        )
    return SharingPlan(r, batches, options, tuple(types))


def unshared_plan(model: nn.Module, target_modules: str | Sequence[str], r: int) -> SharingPlan:
    """Return the plan in which each layer has its own adapter of rank r. It needs no gradients, and says so.

    Raises:
        ValueError: no module matches.
    """
    shapes = {name: linear_shape(module) for name, module in find_targets(model, target_modules).items()}
    unknown = {name: GradientStatistics(name, 1, 0.0, 0.0) for name in shapes}
    return plan_of(unknown, shapes, r, SharingOptions(lss=False, hra=False), batches=0)


def module_type(name: str) -> str:
    """Return the name of a module with `*` for the first number in it, which is the layer's."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return name if at is None else ".".join([*parts[:at], "*", *parts[at + 1 :]])


def find_targets(model: nn.Module, target_modules: str | Sequence[str]) -> dict[str, Linear]:
    """Return the linears that PEFT would adapt with these `target_modules`, by name.

    Raises:
        ValueError: no linear matches.
    """
    chosen = target_modules if isinstance(target_modules, str) else list(target_modules)
    return adapted_linears(model, LoraConfig(target_modules=chosen))


def adapted_linears(model: nn.Module, config: Any) -> dict[str, Linear]:
    """Return the linears that PEFT would adapt with this configuration, by name.

    Raises:
        ValueError: no linear matches.
    """
    full = _maybe_include_all_linear_layers(copy.copy(config), model)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LINEARS) and check_target_module_exists(full, name)
    }
    if not found:
        raise ValueError(f"no linear of the model matches target_modules={_shown(config.target_modules)}.")
    return found


def _shown(targets: Any) -> str:
    return repr(targets if isinstance(targets, str) else sorted(targets))


def _ranks_of_pool(
    pool: Sequence[tuple[str, int, int]],
    grouped: Mapping[tuple[str, int, int], Sequence[str]],
    partitions: Mapping[tuple[str, int, int], Sequence[tuple[int, int]]],
    statistics: Mapping[str, GradientStatistics],
    r: int,
    options: SharingOptions,
    random: Random,
) -> dict[tuple[str, int, int], list[int]]:
    """Return the ranks of the intervals of each type of one pool."""
    if not options.hra:
        return {kind: [r] * len(partitions[kind]) for kind in pool}
    names = [name for kind in pool for name in grouped[kind]]
    entropies = rank_entropies([statistics[name].sigma for name in names], options.rank_entropy)
    entropy_of = dict(zip(names, entropies, strict=True))
    intervals = [
        (kind, [entropy_of[name] for name in grouped[kind][start:stop]])
        for kind in pool
        for start, stop in partitions[kind]
    ]
    try:
        ranks = allocate([values for _, values in intervals], r, options)
    except ValueError as error:
        where = pool[0][0] if len(pool) == 1 else "all module types"
        raise ValueError(f"{where}: {error}") from error
    if options.random_ranks:
        ranks = random_ranks(ranks, random)
    found: dict[tuple[str, int, int], list[int]] = {kind: [] for kind in pool}
    for (kind, _), rank in zip(intervals, ranks, strict=True):
        found[kind].append(rank)
    return found


def linear_shape(linear: Linear) -> tuple[int, int]:
    """Return the number of inputs and of outputs."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    rows, columns = linear.weight.shape
    return rows, columns


def _own_loss(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    found: torch.Tensor = model(**batch).loss
    return found
