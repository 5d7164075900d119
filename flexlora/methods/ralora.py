"""RaLoRA and RaLoRA-Pro: blocks from the effective ranks of gradients (ICLR 2026, OpenReview kObvnQ6pUx).

    n_l = 2 ^ clip(⌊log₂(erank(G_l) / r_l)⌋, 0, log₂ max_blocks)

G_l is the mean gradient of a weight over the first `batches` batches. Its effective rank is exp(H), where H is the
entropy of its singular values divided by their sum (Roy and Vetterli, 2007). A linear gets n_l blocks
(flexlora/baselines/ralora.py), which bring its rank n_l r_l near to the gradient's. RaLoRA has r_l = r. RaLoRA-Pro
(`allocate=true`) first gives each linear a rank by its importance, as GoRA does, with m + n as the cost of a unit.

From descriptions and the authors' code (hhnqqq/MyTransformers 4037d4d, ralora.py). Our choices: `max_blocks` is not
published; the code fails if n_l does not divide a side of the weight, here n_l is halved until it does; the code rounds
ranks down, here they are rounded, as in GoRA; the range of RaLoRA-Pro's ranks is GoRA's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flexlora.baselines.ralora import RaLoraConfig
from flexlora.errors import UserError
from flexlora.methods.base import Method, RunContext
from flexlora.methods.chosen_ranks import Choice, ChosenRanksMethod, RankFields, allocate_ranks, importance
from flexlora.methods.fields import take
from flexlora.methods.peft import peft_config
from flexlora.tuner.base_config import setting
from flexlora.tuner.checks import whole


@dataclass
class RaLoraFields(RankFields):
    """The fields that `RaLoraConfig` does not have."""

    max_blocks: int = setting(32, "The largest number of blocks.", whole)
    allocate: bool = setting(False, "Whether ranks follow the importance of the linears (RaLoRA-Pro).")


class RaLoraMethod(ChosenRanksMethod):
    """Block-diagonal LoRA whose numbers of blocks come from gradients, and with `allocate` its ranks too."""

    title = "ralora"
    patterns: Mapping[str, str] = {"rank": "rank_pattern", "blocks": "block_pattern"}
    config: RaLoraConfig

    def __init__(self, config: RaLoraConfig, schedule: dict[str, Any] | None, fields: RaLoraFields) -> None:
        super().__init__(config, schedule)
        self.fields = fields
        self.counts_before = not fields.allocate  # blocks do not change the number of parameters

    @property
    def batches(self) -> int:
        return self.fields.batches

    def measure(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> Choice:
        found = {"erank": effective_rank(gradient)}
        return found | ({"importance": importance(weight, gradient)} if self.fields.allocate else {})

    def choose(self, measured: dict[str, Choice], shapes: Mapping[str, tuple[int, int]]) -> None:
        if self.fields.allocate:
            allocate_ranks(measured, shapes, self.config.r, self.fields)
        for name, found in measured.items():
            found.setdefault("rank", self.config.r)
            found["blocks"] = block_count(found["erank"], found["rank"], self.fields.max_blocks, shapes[name])


def effective_rank(gradient: torch.Tensor) -> float:
    """Return exp(H) of a matrix, where H is the entropy of its singular values divided by their sum.

    The singular values are roots of the eigenvalues of the smaller Gram matrix, in float64: a complete decomposition of
    a large gradient would take many times longer.
    """
    wide = gradient.double() if len(gradient) <= gradient.shape[1] else gradient.double().T
    values = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt()
    if not values.any():
        return 1.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def block_count(erank: float, rank: int, highest: int, shape: tuple[int, int]) -> int:
    """Return the number of blocks, a power of 2 that divides both sides of the weight."""
    power = min(max(math.floor(math.log2(erank / rank)), 0), int(math.log2(highest)))
    return math.gcd(2**power, *shape)


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build RaLoRA from its tuner's fields and its own.

    Raises:
        UserError: the type does not have a field, or a value is invalid.
    """
    fields = dict(fields)
    own = take(RaLoraFields, fields)
    config, schedule = peft_config(fields, context)
    if not isinstance(config, RaLoraConfig):
        raise UserError(f"method.peft_type: {type(config).__name__} has no blocks: take RALORA")
    return RaLoraMethod(config, schedule, own)
