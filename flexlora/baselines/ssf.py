"""SSF, scaling and shifting features (Lian et al., NeurIPS 2022, arXiv 2210.08823, Eq. 1 and 2).

Every operation is followed by y = γ ⊙ x + β over the features: each linear and each norm of every layer, the last norm,
and the convolution that makes a ViT's patches. ViT-B/16 has 2 · (12 · (4 · 768 + 2304 + 3072) + 2 · 768) = 205,824
parameters; with VTAB's heads (50 classes on average) that is the "0.24" of the paper's Table 16. γ and β merge into the
preceding operation: γ ⊙ (W x + b) + β = (γ ⊙ W) x + (γ ⊙ b + β).

Details that the description does not specify:

- γ ~ N(1, 0.02²) and β ~ N(0, 0.02²), as in their code. The initial output therefore differs from the backbone's. The
  difference is proportional to `init_std`, and 0 for `init_std=0`.
- They describe image models. On text models we adapt the linears and norms of every layer, the embeddings' norm and the
  last norm. A LLaMA's operations have no bias for β, so β trains there but does not merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from flexlora import architectures
from flexlora.tuner.checks import number

from .base import BaselineConfig, BaselineLayer, BaselineModel, setting


@dataclass
class SsfConfig(BaselineConfig):
    """Configuration of an [`SsfModel`]."""

    default_targets: ClassVar[str] = architectures.EVERY_OPERATION

    init_std: float = setting(0.02, "Standard deviation of γ around 1 and of β around 0.", number, at_least=0)


class SsfLayer(BaselineLayer):
    """An operation followed by γ and β, one value of each per feature."""

    title = "SSF"
    adapter_layer_names = ("ssf_scale", "ssf_shift")
    ssf_scale: nn.ParameterDict
    ssf_shift: nn.ParameterDict

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        features = (len(self.get_base_layer().weight),)  # type: ignore[arg-type]
        self.new_parameter(
            "ssf_scale", adapter_name, features, lambda scale: nn.init.normal_(scale, mean=1.0, std=config.init_std)
        )
        self.new_parameter(
            "ssf_shift", adapter_name, features, lambda shift: nn.init.normal_(shift, std=config.init_std)
        )

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        # The features are the last dimension, except for a convolution: (batch, features, height, width).
        shape = (-1, 1, 1) if isinstance(self.get_base_layer(), nn.Conv2d) else (-1,)
        scale, shift = self.ssf_scale[adapter_name], self.ssf_shift[adapter_name]
        return (scale.view(shape) * result + shift.view(shape)).to(result.dtype)

    def merged_parameters(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """γ ⊙ W and γ ⊙ b + β, in the adapter's dtype."""
        base: Any = self.get_base_layer()
        scale, shift = self.ssf_scale[adapter_name], self.ssf_shift[adapter_name]
        rows = scale.view(-1, *[1] * (base.weight.dim() - 1))
        return {"weight": rows * base.weight, "bias": scale * base.bias + shift}


class SsfModel(BaselineModel, name="ssf", config=SsfConfig, layer=SsfLayer):
    """Features scaled and shifted after every operation, by `peft.get_peft_model(model, SsfConfig(...))`."""

    made_for = "the linears and norms of a transformer's layers"

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, target_name: str, *args: Any, **kwargs: Any
    ) -> None:
        if not isinstance(target, nn.Identity):  # timm uses it in place of a missing norm
            super()._create_and_replace(peft_config, adapter_name, target, target_name, *args, **kwargs)

    def check_target(self, target: nn.Module, name: str) -> None:
        weight = getattr(target, "weight", None)
        is_norm = weight is not None and weight.dim() == 1
        if not (is_norm or isinstance(target, nn.Linear | nn.Conv2d)):
            raise ValueError(
                f"{name} is a {type(target).__name__}: SSF adapts linears, 2-D convolutions and norms with a weight. "
                "Narrow target_modules."
            )

    def _check_merge_allowed(self) -> None:
        for name, layer in self.model.named_modules():
            if isinstance(layer, SsfLayer) and getattr(layer.get_base_layer(), "bias", None) is None:
                raise ValueError(f"SSF cannot be merged into the backbone: {name} has no bias for the shift β.")
        super()._check_merge_allowed()
