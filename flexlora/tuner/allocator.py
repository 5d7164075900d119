"""Rank events (Section 3.3, Algorithm 1).

`RankAllocator` reads the model (one device-to-host copy for each event), calls the pure function `decide`, applies its
decision and records the event.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import importance
from .config import FlexLoraConfig
from .events import RankEvent, json_number
from .layer import seeded_generator
from .names import plain_name, specific_first
from .orthogonality import add_orthogonality_gradient, orthogonality_error
from .packing import flexlora_layers
from .reallocation import Reallocation, above_energy_quantile, decide, decide_by_parameters
from .sensitivity import Sensitivity


@dataclass
class Snapshot:
    """The values that an event reads from the model, on the CPU, padded to the largest capacity: (M × C) in float64."""

    values: torch.Tensor
    active: torch.Tensor
    sensitivity: torch.Tensor | None
    orthogonality_error: float

    @property
    def ranks(self) -> list[int]:
        return self.active.sum(-1).tolist()

    @property
    def finite(self) -> bool:
        tensors = [self.values] if self.sensitivity is None else [self.values, self.sensitivity]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)


@dataclass
class RankAllocator:
    """Changes the ranks of one adapter at the steps of its configuration.

    Args:
        model: a module with the adapter: a PeftModel or a model with the adapter injected, wrapped or not.
        config: the adapter's configuration.
        adapter_name: the adapter's name.
        skips_zero_budget: there is no event where b(t) = 0, as in the released code. By default such an event moves
            nothing and is recorded.
    """

    model: nn.Module
    config: FlexLoraConfig
    adapter_name: str = "default"
    step: int = 0
    events: list[RankEvent] = field(default_factory=list)
    skips_zero_budget: bool = False

    def __post_init__(self) -> None:
        named = list(flexlora_layers(self.model, self.adapter_name))
        if not named:
            raise ValueError(f"the model has no FlexLoRA adapter named '{self.adapter_name}'.")
        self.names = [plain_name(name) for name, _ in named]
        self.layers = [layer for _, layer in named]
        self.limits = [layer.capacity(self.adapter_name) for layer in self.layers]
        self._home = self.layers[0].flexlora_lambda[self.adapter_name].device
        self._costs = [layer.out_features + layer.in_features + 1 for layer in self.layers]
        self._parameters_at_start = self._parameters([layer.rank(self.adapter_name) for layer in self.layers])
        self._widest = 0.0
        self._ever_pruned: set[str] = set()
        self._event_steps = self.config.event_steps()
        self.history = self.layers[0].history[self.adapter_name]
        self.sensitivity: Sensitivity | None = None
        if self.config.importance == "sensitivity":
            factors = [layer.factors(self.adapter_name) for layer in self.layers]
            self.sensitivity = Sensitivity(factors, self.config.beta1, self.config.beta2)

    # --- once a step ---------------------------------------------------------------------------------------------

    def regularise(self, scale: float | torch.Tensor = 1.0) -> None:
        """Add the gradient of `orth_reg_weight` · R(P, Q) to `.grad`: once per optimizer step, after clipping.

        Args:
            scale: the loss scale that is still in the gradients and that the optimizer will divide by.

        Raises:
            RuntimeError: the adapter is merged into the base.
        """
        self._refuse_merged()
        add_orthogonality_gradient(
            self._vectors(), weight=self.config.orth_reg_weight, power=self.config.orth_reg_power, scale=scale
        )

    def observe_gradients(self, scale: float | torch.Tensor = 1.0) -> None:
        """Update the smoothed sensitivity |w · ∇w| from the current gradients (only for importance='sensitivity')."""
        if self.sensitivity is not None and self.step < (self._event_steps.stop if self._event_steps else 0):
            self.sensitivity.update(scale)

    @property
    def has_events_left(self) -> bool:
        """Whether an event is planned after the current step."""
        return bool(self._event_steps) and self._event_steps[-1] > self.step

    def is_due(self, step: int) -> bool:
        """Whether an event is due at `step`."""
        return step in self._event_steps

    def advance(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> RankEvent | None:
        """Record that `step` optimizer steps are completed, and run the event of this step, if one is due.

        Nothing happens for a step that was already recorded, so two callers cannot change ranks twice.

        Raises:
            RuntimeError: the adapter is merged into the base.
        """
        if step <= self.step:
            return None
        self._refuse_merged()
        self.step = self.history.step = step
        if self._event_steps and step > (self.config.total_step or 0):
            self.history.tell(
                "schedule",
                f"optimizer step {step} is beyond total_step={self.config.total_step}: the schedule is over, and the "
                "ranks stay as they are. Set total_step to the number of optimizer steps of the whole training.",
            )
        return self.hold_event(step, optimizer) if self.is_due(step) else None

    def _refuse_merged(self) -> None:
        """Check that the adapter takes part in the training. An adapter that is only switched off gives a warning.

        Raises:
            RuntimeError: the adapter is merged into the base. Unmerging would subtract another ΔW than was added.
        """
        layer = self.layers[0]  # PEFT merges and switches all layers together
        if layer.merged:
            raise RuntimeError(
                "the FlexLoRA adapter is merged into the base, and a training step would make unmerging wrong: call "
                "model.unmerge_adapter() before the optimizer's step."
            )
        if layer.disable_adapters or self.adapter_name not in layer.active_adapters:
            self.history.tell(
                "inactive",
                f"the FlexLoRA adapter '{self.adapter_name}' is switched off, but its schedule goes on: enable it "
                "before the optimizer's step, or call remove() on the attachment.",
            )

    # --- an event ------------------------------------------------------------------------------------------------

    def hold_event(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> RankEvent | None:
        """Score the matrices, change ranks within b(t), reset the optimizer state of changed slots, record all.

        Returns:
            The event; None if b(t) = 0 and `skips_zero_budget`.
        """
        before = self.snapshot()
        # An SVD fails on non-finite values. P and Q enter one with spectrum='exact', and always enter the error.
        finite = before.finite and (self.config.spectrum == "lambda" or math.isfinite(before.orthogonality_error))
        scores: list[float | None] = self.scores(before, step) if finite else [None] * len(self.layers)
        budget = self._budget(step, scores)
        if budget == 0 and self.skips_zero_budget:
            return None
        moves = Reallocation()
        if finite:
            moves = self._decide(scores, before, budget)
            self._apply(moves, before, step, optimizer)
        event = self._record(step, budget, moves, before, scores, finite)
        self.events.append(event)
        self.config.rank_pattern = specific_first(event.ranks)
        return event

    def _budget(self, step: int, scores: list[float | None]) -> int:
        """b(t) of the schedule. With `budget_by="spread"` it is multiplied by spread / largest spread so far."""
        if self.config.budget_by == "schedule":
            return self.config.budget(step)
        spread = importance.spread([score for score in scores if score is not None])
        self._widest = max(self._widest, spread)
        return self.config.budget(step, spread / self._widest if self._widest > 0 else 0.0)

    def _decide(self, scores: list[float | None], before: Snapshot, budget: int) -> Reallocation:
        may_grow = None
        if self.config.growth_energy_quantile > 0:
            energies = importance.energy(before.values, before.active).tolist()
            may_grow = above_energy_quantile(energies, self.config.growth_energy_quantile)
        direction, selection = self.config.direction, self.config.selection
        situation = (scores, before.ranks, self.limits, budget)
        if self.config.budget_unit == "rank":
            return decide(*situation, direction=direction, selection=selection, may_grow=may_grow)
        return decide_by_parameters(
            *situation,
            costs=self._costs,
            spare=self._parameters_at_start - self._parameters(before.ranks),
            direction=direction,
            selection=selection,
            may_grow=may_grow,
        )

    def _parameters(self, ranks: list[int]) -> int:
        """The number of parameters of the active directions."""
        return sum(rank * cost for rank, cost in zip(ranks, self._costs, strict=True))

    def scores(self, snapshot: Snapshot, step: int) -> list[float | None]:
        """Importance of every matrix.

        None, or a score of NaN, excludes it from changes. +inf (rank_one/all_zero='grow') lets it grow first.
        """
        name = self.config.importance
        if name == "random":
            generator = seeded_generator(self.config.seed, step, -1)
            return importance.random_scores(len(self.layers), generator).tolist()
        if name == "sensitivity":
            assert snapshot.sensitivity is not None
            total = (snapshot.sensitivity * snapshot.active).sum(-1)
            return (total / snapshot.active.sum(-1).clamp(min=1)).tolist()
        metric = importance.METRICS[name]
        assert metric.score is not None
        found = metric.score(self._spectrum(snapshot), snapshot.active).tolist()
        scores: list[float | None] = [None if math.isnan(score) else score for score in found]
        if metric.is_entropy:
            zero = self._all_zero(snapshot)
            for i, rank in enumerate(snapshot.ranks):
                if zero[i]:
                    scores[i] = math.inf if self.config.all_zero == "grow" else None
                elif rank <= 1:
                    scores[i] = math.inf if self.config.rank_one == "grow" else None
        return scores

    def snapshot(self) -> Snapshot:
        """Read λ, masks, the orthogonality error and, if needed, sensitivities in one device-to-host copy."""
        width = max(self.limits)
        per_direction = None if self.sensitivity is None else self.sensitivity.per_direction()
        matrices = []
        for i, layer in enumerate(self.layers):
            values = layer.flexlora_lambda[self.adapter_name].detach()
            rows = [values, layer.flexlora_active[self.adapter_name].to(values.dtype)]
            if per_direction is not None:
                rows.append(per_direction[i])
            matrices.append(nn.functional.pad(torch.stack(rows), (0, width - values.numel())).to(self._home))
        table = torch.stack(matrices, dim=1)
        with torch.no_grad():
            error = orthogonality_error(self._vectors()).to(table)
        flat = torch.cat([table.flatten(), error.view(1)]).cpu().double()
        host = flat[:-1].view(table.shape)
        return Snapshot(
            values=host[0],
            active=host[1].bool(),
            sensitivity=None if per_direction is None else host[2],
            orthogonality_error=float(flat[-1]),
        )

    def _vectors(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        name = self.adapter_name
        return [(layer.flexlora_P[name], layer.flexlora_Q[name], layer.flexlora_active[name]) for layer in self.layers]

    def _spectrum(self, snapshot: Snapshot) -> torch.Tensor:
        if self.config.spectrum == "lambda":
            return snapshot.values
        width = snapshot.values.shape[-1]
        spectra = []
        for layer in self.layers:
            p, values, q = (factor.detach() for factor in layer.factors(self.adapter_name))
            found = importance.exact_spectrum(p, values, q, layer.flexlora_active[self.adapter_name])
            spectra.append(nn.functional.pad(found, (0, width - found.numel())).to(self._home))
        # The values are descending, so the first `rank` ones belong to the matrix. They are stored at the positions of
        # the mask, because a score depends only on the values and not on their positions.
        descending = torch.stack(spectra).cpu()
        exact = torch.zeros_like(snapshot.values)
        for i, rank in enumerate(snapshot.ranks):
            exact[i, snapshot.active[i]] = descending[i, :rank]
        return exact

    def _all_zero(self, snapshot: Snapshot) -> list[bool]:
        return (importance.energy(snapshot.values, snapshot.active) == 0).tolist()

    def _apply(self, moves: Reallocation, before: Snapshot, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        left: set[str] = set()
        active = before.active.clone()  # the masks on the host: reading the device's would synchronise
        for index in moves.pruned:
            slot = self._slot_to_prune(before, index)
            active[index, slot] = False
            self.layers[index].prune(self.adapter_name, slot)
            left |= self._reset(index, slot, optimizer, second_moment=False)
        for index in moves.grown:
            slots = active[index].nonzero().flatten()
            slot = int((~active[index]).nonzero()[0])
            self.layers[index].grow(self.adapter_name, slot, slots, self.config, step, index)
            second_moment = self.config.growth_state == "surviving_second_moment"
            left |= self._reset(index, slot, optimizer, second_moment)
        if left:
            self.history.tell(
                "optimizer",
                f"{type(optimizer).__name__} keeps {' and '.join(sorted(left))}: outputs stay exact at rank events, "
                "but the optimizer state of changed directions is not reset.",
            )

    def _reset(self, index: int, slot: int, optimizer: torch.optim.Optimizer | None, second_moment: bool) -> set[str]:
        if self.sensitivity is not None:
            self.sensitivity.reset(index, slot)
        if optimizer is None:
            return set()
        return self.layers[index].reset_optimizer_state(self.adapter_name, slot, optimizer, second_moment)

    def _slot_to_prune(self, before: Snapshot, index: int) -> int:
        """Choose the direction to prune: by `prune_by`, or the least sensitive one for importance='sensitivity'."""
        active = before.active[index]
        values = before.values[index]
        if before.sensitivity is not None:
            key = before.sensitivity[index]
        elif self.config.prune_by == "signed":
            key = values
        elif self.config.prune_by == "entropy_contribution":
            key = importance.entropy_contributions(values, active)
        else:
            key = values.abs()
        return int(torch.where(active, key, math.inf).argmin())

    def _record(
        self,
        step: int,
        budget: int,
        moves: Reallocation,
        before: Snapshot,
        scores: list[float | None],
        finite: bool,
    ) -> RankEvent:
        ranks = list(before.ranks)
        for index in moves.pruned:
            ranks[index] -= 1
        for index in moves.grown:
            ranks[index] += 1
        pruned = [self.names[i] for i in moves.pruned]
        grown = [self.names[i] for i in moves.grown]
        regrown = sum(name in self._ever_pruned for name in grown)
        self._ever_pruned.update(pruned)
        both = self.config.direction == "both"
        return RankEvent(
            step=step,
            budget=budget,
            pruned=pruned,
            grown=grown,
            ranks=dict(zip(self.names, ranks, strict=True)),
            scores=dict(zip(self.names, map(json_number, scores), strict=True)),
            energy=dict(
                zip(
                    self.names,
                    map(json_number, importance.energy(before.values, before.active).tolist()),
                    strict=True,
                )
            ),
            singular_values={
                name: [json_number(float(f"{value:.6g}")) for value in row[mask].abs().sort(descending=True).values]
                for name, row, mask in zip(self.names, before.values, before.active, strict=True)
            },
            active_parameters=self._parameters(ranks),
            total_rank=sum(ranks),
            orthogonality_error=json_number(before.orthogonality_error),
            rank_one=sum(rank == 1 for rank in before.ranks),
            all_zero=sum(self._all_zero(before)),
            at_limit=sum(rank >= limit for rank, limit in zip(ranks, self.limits, strict=True)),
            regrown=regrown,
            budget_conserved=self._is_conserved(before.ranks, ranks) if both else None,
            empty=not (pruned or grown),
            skipped=None if finite else f"{'P or Q' if before.finite else 'λ or its sensitivity'} is not finite",
        )

    def _is_conserved(self, before: list[int], after: list[int]) -> bool:
        if self.config.budget_unit == "parameters":
            return self._parameters(after) <= self._parameters_at_start
        return sum(after) == sum(before)

    # --- resuming ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state for resuming a run, beyond the adapter and the optimizer: tensors and plain values."""
        state: dict[str, Any] = {"step": self.step, "ever_pruned": sorted(self._ever_pruned)}
        if self.config.budget_unit == "parameters":
            state["parameters_at_start"] = self._parameters_at_start
        if self.config.budget_by == "spread":
            state["widest_spread"] = self._widest
        if self.sensitivity is not None:
            state["sensitivity"] = self.sensitivity.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` of an earlier run returned."""
        self.step = state["step"]
        self._ever_pruned = set(state["ever_pruned"])
        self._parameters_at_start = state.get("parameters_at_start", self._parameters_at_start)
        self._widest = state.get("widest_spread", self._widest)
        if self.sensitivity is not None and "sensitivity" in state:
            self.sensitivity.load_state_dict(state["sensitivity"])
