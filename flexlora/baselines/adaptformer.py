"""AdaptFormer (Chen et al., NeurIPS 2022, arXiv 2205.13535, Eq. 2 and 3).

A scaled bottleneck parallel to every MLP, on the same input: x_l = MLP(LN(x')) + s · (W_u ReLU(W_d LN(x') + b_d) + b_u)
+ x'. With a bottleneck of 8 it has 156,768 parameters on ViT-B/16: the "0.16" of the paper's Table 16.

Details that the description does not specify:

- The paper's branch reads LN(x'), the MLP's input. Its code reads x', before the norm. This class follows the paper.
- s = 0.1 (the default of paper and code; the VTAB tables search it over 0.01 to 10 for each task), W_d Kaiming-uniform
  (a = √5), W_u and biases 0, dropout 0.1 on the activations, as in their code. The initial output is the backbone's.
- The branch is not linear, so it cannot be merged.
- BERT-like encoders have no module for the whole MLP. There the branch is added to the residual input of the MLP's
  second half: LN(W h + b + (x + s · …)), which is the same sum. This is He et al.'s parallel adapter (arXiv
  2110.04366).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from flexlora import architectures
from flexlora.tuner.checks import nonzero

from .base import BaselineModel, setting
from .bottleneck import BottleneckConfig, BottleneckLayer, bottleneck_names


@dataclass
class AdaptFormerConfig(BottleneckConfig):
    """Configuration of an [`AdaptFormerModel`]."""

    default_targets: ClassVar[str] = architectures.MLP

    bottleneck: int = setting(8, "Width of the bottleneck.")
    dropout: float = setting(0.1, "Dropout on the bottleneck's activations.")
    scale: float = setting(0.1, "s, the scale of the branch's output.", nonzero)


class AdaptFormerLayer(BottleneckLayer):
    """An MLP with parallel branches."""

    title = "AdaptFormer"
    adapter_layer_names = bottleneck_names("adaptformer")

    def width(self) -> int:
        return int(_last_linear(self.get_base_layer()).out_features)

    def fill_down(self, weight: torch.Tensor, config: Any) -> None:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def fill_up(self, weight: torch.Tensor, config: Any) -> None:
        nn.init.zeros_(weight)

    def adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args:  # BERT-like: the MLP's hidden units, and its input for the residual sum
            residual, *others = args
            return self.base_layer(x, self._with_branches(adapters, residual, residual), *others, **kwargs)
        return self._with_branches(adapters, self.base_layer(x, **kwargs), x)

    def _with_branches(self, adapters: list[str], result: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for adapter_name in adapters:
            branch = self.settings[adapter_name].scale * self.bottleneck(adapter_name, x)
            result = result + branch.to(result.dtype)
        return result


class AdaptFormerModel(BaselineModel, name="adaptformer", config=AdaptFormerConfig, layer=AdaptFormerLayer):
    """A branch parallel to every MLP, by `peft.get_peft_model(model, AdaptFormerConfig(...))`."""

    made_for = "the MLPs of a transformer"
    not_mergeable = "its branch is not linear"

    def check_target(self, target: nn.Module, name: str) -> None:
        if isinstance(target, nn.Linear) or not any(isinstance(module, nn.Linear) for module in target.modules()):
            raise ValueError(
                f"{name} is a {type(target).__name__}: AdaptFormer adapts MLPs only. Narrow target_modules."
            )


def _last_linear(mlp: nn.Module) -> nn.Linear:
    *_, last = (module for module in mlp.modules() if isinstance(module, nn.Linear))
    return last
