"""Measure Adam's first updates of a newborn direction and their effect on the loss, for each `growth_state`.

At every rank event of a real training the run is copied with its optimizer, once for each way to initialise the
optimizer state of newborn directions. The copies train on the same batches for `--window` steps. Another copy prunes
and does not grow. It shows the effect of pruning alone on the loss.

    python scripts/newborn.py                                  # scikit-learn's digits, a small MLP: about a minute
    python scripts/newborn.py --encoder DIR --glue DIR ...     # CoLA on a local encoder: minutes

The output is Markdown. docs/explanation/newborn-directions.md shows the results.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from newborn_tasks import Batch, Cola, Digits, Task
from peft import get_peft_model
from torch import nn

from flexlora import FlexLoraConfig
from flexlora.tuner import FlexLoraLayer, RankAllocator, parameter_groups

STATES = ("zeros", "surviving_second_moment")
NO_GROWTH = "no growth"
PARTS = ("lambda", "P", "Q")
AGES = (1, 2, 3, 5, 10, 20, 30, 50)  # the numbers of steps after birth that the tables show


class Training:
    """A training that runs step by step and can be copied to try a growth state."""

    def __init__(self, task: Task, seed: int, settings: argparse.Namespace, **config: Any) -> None:
        self.task, self.seed, self.settings = task, seed, settings
        self.taken = 0
        base = task.model(seed)
        torch.manual_seed(seed)
        self.model: Any = get_peft_model(
            base,
            FlexLoraConfig(
                r=settings.rank,
                lora_alpha=2 * settings.rank,
                target_modules=list(task.targets),
                modules_to_save=list(task.heads),
                total_step=settings.steps,
                tinit=settings.period,
                tfinal=settings.window,
                deltaT=settings.period,
                init_b=settings.budget,
                orth_reg_weight=settings.orth_weight,
                seed=seed,
                **config,
            ),
        )
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, settings.lr), weight_decay=0.0)

    def copy(self, **config: Any) -> Training:
        """Return a copy of the training with a changed configuration. The two share no state that training changes."""
        other = copy.copy(self)
        other.model, other.optimizer = copy.deepcopy((self.model, self.optimizer))
        for name, value in config.items():
            setattr(other.model.peft_config["default"], name, value)
        return other

    def allocator(self) -> RankAllocator:
        return RankAllocator(self.model, self.model.peft_config["default"])

    def learning_rate(self) -> float:
        warmup, left = 0.1 * self.settings.steps, self.settings.steps - self.taken
        return self.settings.lr * min((self.taken + 1) / warmup, left / (self.settings.steps - warmup))

    def step(self, batch: Batch, allocator: RankAllocator) -> float:
        """Run one step without an event. Return its learning rate."""
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(1_000_003 * self.seed + self.taken)  # the same dropout in every copy
        self.model.train()
        self.optimizer.zero_grad()
        self.task.loss(self.model, batch).backward()
        nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        allocator.regularise()
        self.optimizer.step()
        self.taken += 1
        return rate

    @torch.no_grad()
    def held_out_loss(self, batches: list[Batch]) -> float:
        self.model.eval()
        return statistics.fmean(self.task.loss(self.model, batch).item() for batch in batches)


Newborn = tuple[Any, int]  # the layer and the slot


def directions(model: nn.Module) -> set[Newborn]:
    layers = [module for module in model.modules() if isinstance(module, FlexLoraLayer)]
    return {(layer, slot) for layer in layers for slot in layer.slots("default").tolist()}


def parts_of(layer: Any, slot: int) -> dict[str, torch.Tensor]:
    p, values, q = layer.factors("default")
    return {
        name: tensor.detach().clone()
        for name, tensor in (("P", p[:, slot]), ("lambda", values[slot].view(1)), ("Q", q[slot]))
    }


def term(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return λ p qᵀ without the scale: the term that one direction adds to ΔW."""
    return parts["lambda"] * torch.outer(parts["P"], parts["Q"])


class Measures:
    """The measurements after birth: lists over newborns, seeds and events, by (state, part, step)."""

    def __init__(self) -> None:
        self.mean: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        self.peak: dict[tuple[str, str], tuple[float, int]] = {}
        self.share: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.older: dict[str, list[float]] = defaultdict(list)
        self.loss: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.newborns = 0

    def note(self, state: str, part: str, age: int, size: torch.Tensor) -> None:
        self.mean[state, part, age].append(size.mean().item())
        highest = size.max().item()
        if highest > self.peak.get((state, part), (0.0, 0))[0]:
            self.peak[state, part] = (highest, age)


def follow(training: Training, state: str, batches: list[Batch], held_out: list[Batch], found: Measures) -> None:
    """Run the rank event of this step in `training`, and then measure the steps on `batches`."""
    allocator = training.allocator()
    old = directions(training.model)
    allocator.hold_event(training.taken, training.optimizer)
    newborns = directions(training.model) - old
    found.newborns += len(newborns) * (state == STATES[0])
    found.loss[state, 0].append(training.held_out_loss(held_out))
    layers = {layer for layer, _ in newborns}
    elders = [(layer, slot) for layer, slot in directions(training.model) - newborns if layer in layers]
    for age, batch in enumerate(batches, start=1):
        before = {key: parts_of(*key) for key in newborns}
        elders_before = {key: parts_of(*key) for key in elders}
        weight_before = {layer: layer.get_delta_weight("default").detach() for layer in layers}
        rate = training.step(batch, allocator)
        for key in newborns:
            after = parts_of(*key)
            for part in PARTS:
                found.note(state, part, age, (after[part] - before[key][part]).abs() / rate)
            layer = key[0]
            moved = (layer.get_delta_weight("default").detach() - weight_before[layer]).norm()
            own = (term(after) - term(before[key])).norm() * layer.scaling["default"]
            found.share[state, age].append((own / moved).item())
        for key in elders:
            after = parts_of(*key)
            for part in PARTS:
                found.older[part].append(((after[part] - elders_before[key][part]).abs() / rate).mean().item())
        if age in AGES:
            found.loss[state, age].append(training.held_out_loss(held_out))


def measure(task: Task, seed: int, settings: argparse.Namespace, found: Measures) -> None:
    """Run one training with the default growth state, and measure copies of it at each of its events."""
    batches = task.batches(seed)
    held_out = task.held_out()
    training = Training(task, seed, settings)
    allocator = training.allocator()
    ahead: list[Batch] = []
    while training.taken < settings.steps - settings.window:
        training.step(ahead.pop(0) if ahead else next(batches), allocator)
        if allocator.is_due(training.taken):
            ahead += [next(batches) for _ in range(settings.window - len(ahead))]
            for state in STATES:
                follow(training.copy(growth_state=state), state, ahead[: settings.window], held_out, found)
            follow(training.copy(direction="prune_only"), NO_GROWTH, ahead[: settings.window], held_out, found)
            allocator.advance(training.taken, training.optimizer)


def whole(task: Task, seed: int, settings: argparse.Namespace, state: str) -> float:
    """Return the held-out loss at the end of a whole training."""
    batches = task.batches(seed)
    training = Training(task, seed, settings, growth_state=state)
    allocator = training.allocator()
    while training.taken < settings.steps:
        training.step(next(batches), allocator)
        allocator.advance(training.taken, training.optimizer)
    return training.held_out_loss(task.held_out())


def table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def spread(values: list[float]) -> str:
    """Return `mean ± standard error` as text."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):+.4f} ± {error:.4f}"


def report_first_steps(found: Measures, settings: argparse.Namespace) -> None:
    ages = [age for age in AGES if age <= settings.window]
    print(f"Size of Adam's update, |Δ| / lr, mean over the entries of {found.newborns} newborn directions, by age\n")
    table(
        ["growth_state", "of", *map(str, ages), "largest mean (age)", "largest entry (age)"],
        [
            [
                f"`{state}`",
                part,
                *[f"{statistics.fmean(found.mean[state, part, age]):.2f}" for age in ages],
                _largest([statistics.fmean(found.mean[state, part, age]) for age in range(1, settings.window + 1)]),
                f"{found.peak[state, part][0]:.1f} ({found.peak[state, part][1]})",
            ]
            for state in STATES
            for part in PARTS
        ],
    )
    older = ", ".join(f"{part} {statistics.fmean(found.older[part]):.2f}" for part in PARTS)
    print(f"The older directions of the same matrices, over the same steps: {older}.\n")
    print("Share of a newborn in its matrix's step, ‖change of s·λpqᵀ‖ / ‖change of ΔW‖\n")
    table(
        ["growth_state", *map(str, ages)],
        [[f"`{state}`", *[f"{statistics.fmean(found.share[state, age]):.3f}" for age in ages]] for state in STATES],
    )
    print("Held-out loss after the event, less that at the event (mean ± standard error over events)\n")
    table(
        ["", *map(str, ages)],
        [
            [
                f"`{state}`" if state in STATES else state,
                *[
                    spread([a - b for a, b in zip(found.loss[state, age], found.loss[state, 0], strict=True)])
                    for age in ages
                ],
            ]
            for state in (*STATES, NO_GROWTH)
        ]
        + [
            [
                "second moment less zeros",
                *[
                    spread([a - b for a, b in zip(found.loss[STATES[1], g], found.loss[STATES[0], g], strict=True)])
                    for g in ages
                ],
            ]
        ],
    )


def report_whole(finals: dict[str, list[float]]) -> None:
    difference = [a - b for a, b in zip(finals[STATES[1]], finals[STATES[0]], strict=True)]
    ends = ", ".join(f"`{state}` {statistics.fmean(values):.4f}" for state, values in finals.items())
    print(f"Held-out loss at the end of whole trainings, {len(difference)} seeds: {ends}; ", end="")
    print(f"second moment less zeros {spread(difference)}.")


def _largest(by_age: list[float]) -> str:
    highest = max(by_age)
    return f"{highest:.2f} ({by_age.index(highest) + 1})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, help="folder of a BERT-like encoder; with --glue: CoLA, else digits")
    parser.add_argument("--glue", type=Path, help="folder of the classic GLUE download")
    parser.add_argument("--seeds", type=int, default=3, help="trainings with copies at every event")
    parser.add_argument(
        "--whole-seeds", type=int, default=None, help="whole trainings for each state (default: --seeds)"
    )
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of a training")
    parser.add_argument("--period", type=int, default=330, help="steps between events, and before the first")
    parser.add_argument("--window", type=int, default=50, help="steps followed after an event")
    parser.add_argument("--budget", type=int, default=2, help="b₀")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--orth-weight", type=float, default=0.1, help="orth_reg_weight")
    settings = parser.parse_args()
    if (settings.encoder is None) != (settings.glue is None):
        parser.error("--encoder and --glue belong together")
    started = time.monotonic()
    task: Task = Digits() if settings.encoder is None else Cola(settings.encoder, settings.glue)
    found = Measures()
    for seed in range(settings.seeds):
        measure(task, seed, settings, found)
    count = settings.seeds if settings.whole_seeds is None else settings.whole_seeds
    finals = {state: [whole(task, seed, settings, state) for seed in range(count)] for state in STATES}
    if settings.seeds:
        report_first_steps(found, settings)
    if count:
        report_whole(finals)
    print(f"\n{time.monotonic() - started:.0f} s on {torch.get_num_threads()} thread(s), torch {torch.__version__}")


if __name__ == "__main__":
    main()
