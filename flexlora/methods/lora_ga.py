"""LoRA-GA: gradient approximation (Wang et al., NeurIPS 2024, arXiv 2407.05000).

PEFT implements it as `init_lora_weights="lora_ga"`. Before the first step, A and B are set to singular vectors of the
backbone's gradient on some batches, and W ← W - s B A.
PEFT computes the gradients before the model is wrapped (`preprocess_loraga`). Here the loop calls `prepare` after
wrapping, so the gradients go through the wrapped model. They equal the backbone's gradients because B = 0. PEFT's
layers then initialise themselves again.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.config import LoraGAConfig
from torch import nn

from flexlora.methods.base import Batch, Method, RunContext
from flexlora.methods.fields import by_user_names, take
from flexlora.methods.gradients import task_gradients
from flexlora.methods.peft import peft_config
from flexlora.methods.residual import ADAPTER, ResidualMethod
from flexlora.tuner.base_config import Checked, setting
from flexlora.tuner.checks import whole


@dataclass
class LoraGAFields(Checked):
    """The field that neither `LoraConfig` nor PEFT's `LoraGAConfig` has."""

    batches: int = setting(8, "Number of batches per process over which gradients are averaged.", whole)


class LoraGAMethod(ResidualMethod):
    """LoRA-GA. Each process averages the gradient over the first `batches` batches of the first epoch."""

    config: LoraConfig

    def __init__(self, config: LoraConfig, schedule: dict[str, Any] | None, batches: int) -> None:
        super().__init__(config, schedule)
        self.batches = batches

    def prepare(
        self, model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], torch.Tensor]
    ) -> None:
        """Initialise A and B from the gradient of `loss` on the first batches.

        Raises:
            UserError: the model's linears are quantised, or a gradient is missing or not finite.
        """
        weights = {name: layer.get_base_layer().weight for name, layer in self._layers.items()}
        for name, gradient in task_gradients("lora_ga", model, weights, batches, loss, self.batches):
            layer = self._layers[name]
            layer.get_base_layer()._peft_loraga_grad = gradient
            layer.lora_ga_init(ADAPTER, self.config.lora_ga_config)
        self._remember()


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build LoRA-GA from LoRA's fields and its own: `batches`, `direction`, `scale`, `stable_gamma`.

    Raises:
        UserError: PEFT does not have the type, the type does not have a field, or a value is invalid.
    """
    fields = dict(fields)
    own = take(LoraGAFields, fields)
    gradients = take(LoraGAConfig, fields)
    with by_user_names():
        whole(gradients, "stable_gamma")
    config, schedule = peft_config(fields, context)
    assert isinstance(config, LoraConfig)
    config.init_lora_weights = "lora_ga"  # PEFT accepts it, although the field's type does not list it
    config.lora_ga_config = gradients
    return LoraGAMethod(config, schedule, own.batches)
