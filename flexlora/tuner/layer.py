"""The adapted linear, with a fixed capacity and a changing mask.

P (out × C), λ (C), Q (C × in), where C is the module's capacity, and a boolean mask of active directions:
ΔW = s · P diag(λ ∘ active) Q. Pruning clears a bit of the mask, growing sets one. No shape changes during training, so
optimizers, DDP, gradient checkpointing and torch.compile are not affected. Inactive slots hold zeros and get exactly
zero gradient.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from .config import FlexLoraConfig
from .delta import DeltaLayer
from .history import History
from .optimizer_state import start_again


class FlexLoraLayer(DeltaLayer):
    """The adapters of one linear, by name: PEFT's tuner-layer contract plus the operations of a rank event."""

    title = "FlexLoRA"
    adapter_layer_names = ("flexlora_P", "flexlora_lambda", "flexlora_Q")
    buffer_names = ("flexlora_active",)
    dropouts = "flexlora_dropout"
    kept = (*DeltaLayer.kept, "history")

    flexlora_P: nn.ParameterDict
    flexlora_lambda: nn.ParameterDict
    flexlora_Q: nn.ParameterDict
    flexlora_active: BufferDict
    history: dict[str, History]

    def create(self, adapter_name: str, config: FlexLoraConfig, **place: Any) -> None:
        """Create the adapter `adapter_name` with `r` active directions, in the first `r` slots.

        If ranks change (`init_b` > 0), a matrix starts with at most min(in, out) directions.

        Raises:
            ValueError: `r` is above the module's capacity.
        """
        r: int = place["r"]
        if r < 1:
            raise ValueError(f"the rank of a module must be at least 1, not {r}.")
        max_rank = config.resolved_max_rank()
        if r > max_rank:
            raise ValueError(f"a module's starting rank ({r}) is above max_rank ({max_rank}): raise max_rank.")
        # No matrix has more than min(in, out) singular values, so the limit is at most that. A fixed rank may be larger
        # if the user asks for it. A changing rank may not: its capacity could not be inferred from the saved rank.
        if config.init_b > 0:
            r = min(r, self.in_features, self.out_features)
        capacity = max(r, min(max_rank, self.in_features, self.out_features))
        config.fan_in_fan_out |= self.fan_in_fan_out  # stored for an export to LoRA; the layer itself checks its base
        self.history[adapter_name] = History()
        self.start(adapter_name, r, place["lora_alpha"], place["lora_alpha"] / config.r, config.lora_dropout)
        self.new_parameter("flexlora_P", adapter_name, (self.out_features, capacity))
        self.new_parameter("flexlora_lambda", adapter_name, (capacity,))
        self.new_parameter("flexlora_Q", adapter_name, (capacity, self.in_features))
        active = torch.zeros(capacity, dtype=torch.bool)
        active[:r] = True
        self.flexlora_active[adapter_name] = active
        self._initialise(adapter_name, r, config)

    def _initialise(self, adapter_name: str, r: int, config: FlexLoraConfig) -> None:
        """Draw the vectors from torch's global generator, as every PEFT tuner does, and set λ = 0, so that ΔW = 0."""
        p, values, q = self.factors(adapter_name)
        if p.device.type == "meta":
            return
        with torch.no_grad():
            left = torch.empty(self.out_features, r, dtype=p.dtype).normal_(std=config.init_std)
            right = torch.empty(self.in_features, r, dtype=q.dtype).normal_(std=config.init_std)
            if config.vector_init == "orthonormal":
                left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
            p[:, : left.shape[1]] = left
            q[: right.shape[1]] = right.T
            if not config.init_weights:
                values[:r].normal_(std=config.init_std)

    # --- reading -------------------------------------------------------------------------------------------------

    def factors(self, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """P (out × C), λ (C) and Q (C × in), at full capacity."""
        return (
            self.flexlora_P[adapter_name],
            self.flexlora_lambda[adapter_name],
            self.flexlora_Q[adapter_name],
        )

    def capacity(self, adapter_name: str) -> int:
        """The module's rank limit C."""
        return int(self.flexlora_lambda[adapter_name].numel())

    def rank(self, adapter_name: str) -> int:
        """The number of active directions (one device-to-host copy), or the initial rank on the meta device."""
        active = self.flexlora_active[adapter_name]
        return self.r[adapter_name] if active.device.type == "meta" else int(active.sum())

    def inactive_parameters(self, adapter_name: str) -> int:
        return (self.capacity(adapter_name) - self.rank(adapter_name)) * (self.in_features + self.out_features + 1)

    def slots(self, adapter_name: str) -> torch.Tensor:
        """The indices of the active directions, ascending: int64 (rank), on the CPU."""
        return self.flexlora_active[adapter_name].cpu().nonzero().flatten()

    def packed_factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The active directions only: P (out × rank), λ (rank), Q (rank × in), detached copies."""
        p, values, q = (tensor.detach() for tensor in self.factors(adapter_name))
        index = self.slots(adapter_name).to(p.device)
        return p[:, index], values[index], q[index]

    def product(self, adapter_name: str, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        p, values, q = self.factors(adapter_name)
        gain = values * self.flexlora_active[adapter_name] * self.scaling[adapter_name]
        # diag(gain) multiplies Q and not the activations: Q is smaller, and the backward pass keeps one tensor less.
        return p, gain.unsqueeze(1) * q

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        p, values, q = self.factors(adapter)
        gain = values * self.flexlora_active[adapter] * self.scaling[adapter]
        delta = (p * gain) @ q
        return delta.T if self.fan_in_fan_out else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    # --- operations of a rank event -----------------------------------------------------------------------------------

    @torch.no_grad()
    def prune(self, adapter_name: str, slot: int) -> None:
        """Remove the direction in `slot`: clear its bit and its values."""
        p, values, q = self.factors(adapter_name)
        self.flexlora_active[adapter_name][slot] = False
        p[:, slot] = 0.0
        values[slot] = 0.0
        q[slot] = 0.0

    @torch.no_grad()
    def grow(
        self,
        adapter_name: str,
        slot: int,
        slots: torch.Tensor,
        config: FlexLoraConfig,
        step: int,
        module_index: int,
    ) -> None:
        """Add a direction in the free `slot` to those in `slots`, initialised by `config.growth_init`.

        The vectors come from a CPU generator seeded by (config.seed, step, module index), so that every process and
        every resumed run draws the same vectors.
        """
        p, values, q = self.factors(adapter_name)
        generator = seeded_generator(config.seed, step, module_index)
        std = config.init_std if config.growth_std is None else config.growth_std
        left = torch.empty(self.out_features, dtype=p.dtype).normal_(std=std, generator=generator).to(p.device)
        right = torch.empty(self.in_features, dtype=q.dtype).normal_(std=std, generator=generator).to(q.device)
        if config.growth_init in ("small", "orthogonal"):
            slots = slots.to(p.device)
            left = _orthogonal_unit(left, p[:, slots])
            right = _orthogonal_unit(right, q[slots].T)
        elif config.growth_init == "zero":
            left, right = torch.zeros_like(left), torch.zeros_like(right)
        p[:, slot] = left
        q[slot] = right
        values[slot] = config.growth_lambda if config.growth_init == "small" else 0.0
        self.flexlora_active[adapter_name][slot] = True

    @torch.no_grad()
    def reset_optimizer_state(
        self, adapter_name: str, slot: int, optimizer: torch.optim.Optimizer, second_moment: bool
    ) -> set[str]:
        """Start the optimizer's state of `slot` again, or give it the mean second moments of the other directions.

        Returns:
            What was left alone, in words (see [`flexlora.tuner.optimizer_state.start_again`]).
        """
        survivors = None
        if second_moment:
            survivors = self.flexlora_active[adapter_name].clone()
            survivors[slot] = False
        left: set[str] = set()
        for parameter, dim in zip(self.factors(adapter_name), (1, 0, 0), strict=True):
            left |= start_again(optimizer, parameter, (dim, slot), survivors)
        return left

    def unpack(
        self, adapter_name: str, p: torch.Tensor, values: torch.Tensor, q: torch.Tensor, slots: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Put packed directions back into their slots at full capacity: {"P": …, "lambda": …, "Q": …, "active": …}.

        Raises:
            ValueError: a slot is beyond the module's capacity, or the shapes do not match this linear.
        """
        capacity = self.capacity(adapter_name)
        rank = int(slots.numel())
        expected = ((self.out_features, rank), (rank,), (rank, self.in_features))
        found = (tuple(p.shape), tuple(values.shape), tuple(q.shape))
        if found != expected:
            raise ValueError(f"the saved directions have shapes {found}, but this linear needs {expected}.")
        if rank and int(slots.max()) >= capacity:
            raise ValueError(
                f"a saved direction is in slot {int(slots.max())}, but the capacity (max_rank) here is {capacity}: "
                f"load with the max_rank of the saved adapter."
            )
        if rank and (int(slots.min()) < 0 or slots.unique().numel() != rank):
            raise ValueError(
                f"the slots of the saved directions must be different whole numbers from 0, not {slots.tolist()}."
            )
        index = slots.long().to(p.device)
        full_p = p.new_zeros(self.out_features, capacity)
        full_values = values.new_zeros(capacity)
        full_q = q.new_zeros(capacity, self.in_features)
        active = torch.zeros(capacity, dtype=torch.bool, device=p.device)
        full_p[:, index] = p
        full_values[index] = values
        full_q[index] = q
        active[index] = True
        return {"P": full_p, "lambda": full_values, "Q": full_q, "active": active}


def seeded_generator(*key: int) -> torch.Generator:
    """Make a CPU generator seeded by all numbers of `key`, the same on every machine."""
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _orthogonal_unit(vector: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Make a unit vector from `vector` (n) by Gram-Schmidt against `columns` (n × k), which need not be orthonormal.

    If the columns already span the space, the vector is only normalised.
    """
    basis = torch.linalg.qr(columns).Q
    residual = vector
    for _ in range(2):  # two passes suffice (Giraud et al. 2005); one leaves an error of the order of the rounding
        residual = residual - basis @ (basis.T @ residual)
    if residual.norm() <= 1e-4 * vector.norm():
        residual = vector
    return residual / residual.norm()
