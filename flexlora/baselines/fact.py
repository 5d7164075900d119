"""FacT, factor-tuning (Jie and Deng, AAAI 2023, arXiv 2212.03145, Eq. 4 to 9).

The updates of all linears of a ViT, cut into d × d pieces and stacked, form one tensor, which is factored as a whole:

- FacT-TT (tensor train): piece l is s · U Σ_l V, where all pieces share U (d × r) and V (r × d).
- FacT-TK (Tucker): Σ_l is a mixture of r matrices, Σ_l = Σ_c core[:, :, c] P[c, l], with a shared core (r × r × r).

A layer of ViT-B/16 has 12 pieces: three of qkv, one of proj, four each of fc1 and fc2. TT with r = 16 trains 61,440
parameters (768 · 16 · 2 + 144 · 16²), TK with r = 32 trains 86,528 (768 · 32 · 2 + 32³ + 144 · 32). Table 16 of the
FlexLoRA paper has FacT-TK with rank 16 or 32 for each task, 68,985 parameters on average: its "0.07". The update is
linear, so it merges.

Details that the description does not specify follow their code:

- V starts at 0, so the initial output is the backbone's. U and the Σ_l start like an `nn.Linear` (U(±1/√inputs)), core
  and P Xavier-uniform. Dropout 0.1 is between Σ_l and V. They search s over 0.01 to 100 for each task; here it is 1.
- A wide linear's pieces follow one another. (Their TK code interleaves those of fc1 and fc2 by a reshape, which is not
  the paper's equation but allows the same updates in general.)
- d is the width of the residual stream. Text models work if both sides of every adapted linear are multiples of d:
  BERT, RoBERTa, DeBERTa, and the attention of a LLaMA without grouped queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from torch import nn
from torch.nn import functional

from flexlora import architectures
from flexlora.tuner.checks import choice, nonzero, probability, whole

from .base import BaselineConfig, BaselineLayer, BaselineModel, setting


@dataclass
class FactConfig(BaselineConfig):
    """Configuration of a [`FactModel`]."""

    default_targets: ClassVar[str] = architectures.ALL_LINEARS

    r: int = setting(16, "Rank of the shared factors.", whole)
    factorization: str = setting("tt", "'tt' (tensor train) or 'tk' (Tucker).", choice, options=("tt", "tk"))
    scale: float = setting(1.0, "s, the scale of every update.", nonzero)
    dropout: float = setting(0.1, "Dropout between Σ and V.", probability)
    width: int | None = setting(
        None, "d, the side of a piece; by default the width of the residual stream.", whole, or_none=True
    )


class FactLayer(BaselineLayer):
    """A linear of n input pieces and m output pieces. The first linear of a model also holds the shared factors.

    Not shared: `fact_sigma` (n·r × m·r) for TT, or `fact_P` (r × n·m) for TK, with columns ordered by (in, out).
    Shared: `fact_U` (d × r), `fact_V` (r × d), and `fact_core` (r × r × r) of TK.
    """

    title = "FacT"
    adapter_layer_names = ("fact_U", "fact_V", "fact_core", "fact_sigma", "fact_P")
    kept = (*BaselineLayer.kept, "holder", "pieces")
    fact_U: nn.ParameterDict
    fact_V: nn.ParameterDict
    fact_core: nn.ParameterDict
    fact_sigma: nn.ParameterDict
    fact_P: nn.ParameterDict
    holder: dict[str, FactLayer]
    """The layer with the shared factors. It is in a dict, so that torch does not treat it as a submodule."""
    pieces: dict[str, tuple[int, int]]
    """(n, m)."""

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        r, width = config.r, place["width"]
        base: Any = self.get_base_layer()
        n, m = base.in_features // width, base.out_features // width
        self.holder[adapter_name] = place["holder"] or self
        self.pieces[adapter_name] = (n, m)
        if place["holder"] is None:
            self.new_parameter("fact_U", adapter_name, (width, r), lambda factor: uniform(factor, width**-0.5))
            self.new_parameter("fact_V", adapter_name, (r, width))
            if config.factorization == "tk":
                self.new_parameter("fact_core", adapter_name, (r, r, r), nn.init.xavier_uniform_)
        if config.factorization == "tt":
            self.new_parameter("fact_sigma", adapter_name, (n * r, m * r), lambda s: uniform(s, (n * r) ** -0.5))
        else:
            bound = math.sqrt(6 / (r + place["all_pieces"]))  # Xavier's for the P of all linears, r × all pieces
            self.new_parameter("fact_P", adapter_name, (r, n * m), lambda mixture: uniform(mixture, bound))

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return U (d × r), the Σ of every piece (n, r, m, r), and V (r × d)."""
        holder, (n, m) = self.holder[adapter_name], self.pieces[adapter_name]
        if adapter_name in self.fact_sigma:
            sigma = self.fact_sigma[adapter_name]
        else:
            sigma = torch.einsum("abc,ck->kab", holder.fact_core[adapter_name], self.fact_P[adapter_name])
            sigma = sigma.unflatten(0, (n, m)).permute(0, 2, 1, 3)
        r = self.settings[adapter_name].r
        return holder.fact_U[adapter_name], sigma.reshape(n, r, m, r), holder.fact_V[adapter_name]

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        config, (n, m) = self.settings[adapter_name], self.pieces[adapter_name]
        u, sigma, v = self.factors(adapter_name)
        inside = self.branch_input(x, u.dtype).unflatten(-1, (n, -1)) @ u  # (..., n, r)
        hidden = inside.flatten(-2) @ sigma.flatten(0, 1).flatten(1)  # (..., m·r)
        hidden = functional.dropout(hidden, config.dropout, self.training).unflatten(-1, (m, -1))
        return result + (config.scale * (hidden @ v).flatten(-2)).to(result.dtype)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """Compute ΔW (out × in), in the adapter's dtype: piece (j, i) is s · (U Σ_ij V)ᵀ."""
        u, sigma, v = self.factors(adapter_name)
        delta = torch.einsum("da,iajb,be->jeid", u, sigma, v).flatten(0, 1).flatten(1)
        return self.settings[adapter_name].scale * delta

    def merged_parameters(self, adapter_name: str) -> dict[str, torch.Tensor]:
        weight: Any = self.get_base_layer().weight
        return {"weight": weight + self.get_delta_weight(adapter_name).to(weight.device)}


class FactModel(BaselineModel, name="fact", config=FactConfig, layer=FactLayer):
    """Updates that share their factors over a whole model, by `peft.get_peft_model(model, FactConfig(...))`.

    Raises:
        ValueError: a side of a linear is not a multiple of the residual stream's width, or that width is unknown.
    """

    made_for = "the linears of a transformer's layers"

    def look_at(self, model: nn.Module, config: Any) -> None:
        config = _maybe_include_all_linear_layers(config, model)
        config.width = config.width or stream_width(model)
        targets = self._targets(model, config)
        for name, linear in targets:
            sides = (getattr(linear, "in_features", None), getattr(linear, "out_features", None))
            if not isinstance(linear, nn.Linear):
                raise ValueError(f"{name} is a {type(linear).__name__}: FacT adapts linears. Narrow target_modules.")
            if any(side is None or side % config.width for side in sides):
                raise ValueError(
                    f"FacT cuts every update into pieces of {config.width} × {config.width}, the width of the residual "
                    f"stream, but {name} is {sides[1]} × {sides[0]}. Narrow target_modules, or set width."
                )
        self.all_pieces = sum(linear.in_features * linear.out_features for _, linear in targets) // config.width**2

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        layers = (layer for layer in self.model.modules() if isinstance(layer, FactLayer))
        return {
            "width": config.width,
            "holder": next((layer for layer in layers if adapter_name in layer.fact_U), None),
            "all_pieces": self.all_pieces,
        }

    def _targets(self, model: nn.Module, config: Any) -> list[tuple[str, Any]]:
        """List (name, linear) of all targets, whether they are already wrapped or not."""
        return [
            (name, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module)
            for name, module in model.named_modules()
            if name and self._check_target_module_exists(config, name)
        ]


def stream_width(model: nn.Module) -> int:
    """The width of a transformer's residual stream: `hidden_size` of a transformers model, `embed_dim` of a ViT.

    Raises:
        ValueError: the model has neither attribute.
    """
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    for module in model.modules() if width is None else ():
        if hasattr(module, "blocks") and isinstance(getattr(module, "embed_dim", None), int):
            width = module.embed_dim
    if not isinstance(width, int):
        raise ValueError(f"the width of {type(model).__name__}'s residual stream is unknown: set width.")
    return width


def uniform(weight: torch.Tensor, bound: float) -> None:
    """Draw from U(-bound, bound)."""
    weight.uniform_(-bound, bound)
