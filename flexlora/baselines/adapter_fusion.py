"""AdapterFusion (Pfeiffer et al., EACL 2021, arXiv 2005.00247, section 3.2).

AdapterFusion is a second stage. N Pfeiffer adapters, each trained on its own task, are frozen. An attention over them
after every MLP is trained: with z_n = W_u σ(W_d h + b_d) + b_u of the n-th adapter,

    h ← h + Σ_n Ψ_n V z_n,    Ψ = softmax_n((Q h + b_Q) · K z_n).

That is 3d² + d parameters per layer, 21,242,880 on DeBERTaV3-base for every N. The FlexLoRA paper's Table 1 gives
AdapterFusion 1.2M, which can only be the 1,189,632 of one Pfeiffer adapter: the fusion itself has 18 times more.

Details that the description does not specify follow AdapterHub's code:

- Q and K start as N(0, 0.02²), b_Q at 0, and V as the identity with 10⁻⁶ off the diagonal, without a bias. The initial
  output is the adapters' mixture by Ψ, close to their mean, and not the backbone's.
- Their K also has a bias. It adds the same value to every score, which the softmax cancels, so it is left out here.
- The skip goes around the fusion: keys and values are the adapters' updates z_n, not h + z_n.
- The penalty 0.01 ‖V − I‖² pulls V to the identity; `regularise` adds its gradient, once per optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from flexlora import architectures
from flexlora.saved_adapter import checked_record, read_config, read_weights
from flexlora.tuner.checks import number, require

from .base import BaselineConfig, BaselineLayer, BaselineModel, setting
from .bottleneck import ACTIVATIONS
from .pfeiffer import PfeifferConfig, PfeifferLayer

PARTS = dict(zip(("down", "down_bias", "up", "up_bias"), PfeifferLayer.adapter_layer_names, strict=True))


@dataclass
class AdapterFusionConfig(BaselineConfig):
    """Configuration of an [`AdapterFusionModel`]."""

    default_targets: ClassVar[str] = architectures.AFTER_MLP

    adapters: list[str] = setting(
        list, "Folders of saved Pfeiffer adapters of this backbone; they are saved with the fusion."
    )
    init_std: float = setting(0.02, "Initial standard deviation of Q and K.", number, at_least=0)
    value_weight: float = setting(0.01, "Weight of ‖V − I‖².", number, at_least=0)
    bottleneck: int | None = setting(None, "Largest width of the adapters; set when they are read.")
    non_linearity: str | None = setting(None, "σ of the adapters; set when they are read.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "adapters", len(self.adapters) >= 2, "the folders of at least two saved Pfeiffer adapters")


class AdapterFusionLayer(BaselineLayer):
    """A linear followed by N frozen adapters and an attention over them.

    Trained: Q, K, V (d × d), b_Q (d). In buffers: W_d (N × m × d), b_d (N × m), W_u (N × d × m), b_u (N × d).
    """

    title = "AdapterFusion"
    adapter_layer_names = ("fusion_query", "fusion_query_bias", "fusion_key", "fusion_value")
    buffer_names = tuple(f"fusion_{part}" for part in PARTS)
    fusion_query: nn.ParameterDict
    fusion_query_bias: nn.ParameterDict
    fusion_key: nn.ParameterDict
    fusion_value: nn.ParameterDict

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        width = int(self.get_base_layer().out_features)  # type: ignore[arg-type]
        for name in ("fusion_query", "fusion_key"):
            self.new_parameter(name, adapter_name, (width, width), lambda w: nn.init.normal_(w, std=config.init_std))
        self.new_parameter("fusion_query_bias", adapter_name, (width,))
        self.new_parameter("fusion_value", adapter_name, (width, width), near_identity)
        shapes = {
            "down": (config.bottleneck, width),
            "down_bias": (config.bottleneck,),
            "up": (width, config.bottleneck),
            "up_bias": (width,),
        }
        for part, shape in shapes.items():
            stacked = torch.zeros(len(config.adapters), *shape, dtype=self._adapter_dtype())
            for index, held in enumerate(place["adapters"]):
                own = held[part]  # narrower adapters are padded with zeros
                stacked[index][tuple(slice(size) for size in own.shape)] = own.to(stacked.dtype)
            getattr(self, f"fusion_{part}")[adapter_name] = stacked

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        return result + self._fused(adapter_name, result).to(result.dtype)

    def _fused(self, adapter_name: str, h: torch.Tensor) -> torch.Tensor:
        """Σ_n Ψ_n V z_n: (..., d) → (..., d), in the adapter's dtype."""
        down, down_bias, up, up_bias = (getattr(self, f"fusion_{part}")[adapter_name] for part in PARTS)
        activation = ACTIVATIONS[self.settings[adapter_name].non_linearity or ""]
        h = self.branch_input(h, down.dtype)
        hidden = activation(torch.einsum("...d,nmd->...nm", h, down) + down_bias)
        updates = torch.einsum("...nm,ndm->...nd", hidden, up) + up_bias
        query = functional.linear(h, self.fusion_query[adapter_name], self.fusion_query_bias[adapter_name])
        key = functional.linear(updates, self.fusion_key[adapter_name])
        weights = torch.softmax(torch.einsum("...d,...nd->...n", query, key), -1)
        mixed = torch.einsum("...n,...nd->...d", weights, updates.to(weights.dtype))
        return functional.linear(mixed, self.fusion_value[adapter_name])


class AdapterFusionModel(BaselineModel, name="adapter_fusion", config=AdapterFusionConfig, layer=AdapterFusionLayer):
    """An attention over frozen adapters, by `peft.get_peft_model(model, AdapterFusionConfig(adapters=[...]))`.

    Raises:
        ValueError: a folder has no Pfeiffer adapter, an adapter is of another backbone, or the adapters' σ differ.
    """

    prefix = "fusion_"
    made_for = "the output projection of the MLP"
    not_mergeable = "its attention is not linear"

    def look_at(self, model: nn.Module, config: Any) -> None:
        self.sources: list[dict[str, torch.Tensor]] = []
        if config.bottleneck is not None:
            return  # a saved fusion contains its adapters
        found = [_read(folder) for folder in config.adapters]
        functions = sorted({each.non_linearity for each, _ in found})
        if len(functions) > 1:
            raise ValueError(f"the adapters must have the same non_linearity, not {' and '.join(functions)}.")
        config.non_linearity = functions[0]
        config.bottleneck = max(each.bottleneck for each, _ in found)
        self.sources = [weights for _, weights in found]

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        keys = {part: f"base_model.model.{name}.{key}" for part, key in PARTS.items()}
        for folder, weights in zip(config.adapters, self.sources, strict=False):
            if not weights.keys() >= set(keys.values()):
                raise ValueError(f"{folder} has no adapter for {name}: it is of another backbone or has other targets.")
        return {"adapters": [{part: weights[key] for part, key in keys.items()} for weights in self.sources]}

    def check_target(self, target: nn.Module, name: str) -> None:
        if not hasattr(target, "out_features"):
            raise ValueError(
                f"{name} is a {type(target).__name__}: AdapterFusion adapts linears only. Narrow target_modules."
            )

    def regularise(self, step: int) -> None:
        """Add the gradient of `value_weight` · ‖V − I‖² to `.grad`."""
        for layer in self.model.modules():
            for name, value in layer.fusion_value.items() if isinstance(layer, AdapterFusionLayer) else ():
                weight = self.peft_config[name].value_weight
                if value.grad is not None:
                    value.grad.add_(value.detach() - torch.eye(len(value)).to(value), alpha=2 * weight)


def _read(folder: str) -> tuple[PfeifferConfig, dict[str, torch.Tensor]]:
    values = read_config(Path(folder))
    if values["peft_type"] != PfeifferConfig.type_name.value:
        raise ValueError(f"{folder} has a {values['peft_type']} adapter: AdapterFusion needs Pfeiffer adapters.")
    checked_record(Path(folder))
    known = {field.name for field in fields(PfeifferConfig) if field.init}
    return PfeifferConfig(**{k: v for k, v in values.items() if k in known}), read_weights(Path(folder))


def near_identity(value: torch.Tensor) -> None:
    """Set the diagonal to 1 and all other entries to 10⁻⁶."""
    value.fill_(1e-6).fill_diagonal_(1.0)
