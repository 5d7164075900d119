"""LoRA-GA: gradient approximation (Wang et al., NeurIPS 2024, arXiv 2407.05000).

PEFT implements it as `init_lora_weights="lora_ga"`. Before the first step, A and B are set to singular vectors of the
backbone's gradient on some batches, and W ← W - s B A.
PEFT computes the gradients before the model is wrapped (`preprocess_loraga`). Here the loop calls `prepare` after
wrapping, so the gradients go through the wrapped model. They equal the backbone's gradients because B = 0. PEFT's
layers then initialise themselves again.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.config import LoraGAConfig
from torch import distributed, nn

from flexlora.errors import UserError
from flexlora.methods.base import Batch, Method, RunContext
from flexlora.methods.fields import by_user_names, take
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
            UserError: the model's linears are quantised.
        """
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        model.requires_grad_(False)
        weights = [layer.get_base_layer().weight for layer in self._layers.values()]
        if not all(weight.is_floating_point() for weight in weights):
            raise UserError("method=lora_ga needs gradients of the backbone: set model.quantization=null")
        for weight in weights:
            weight.requires_grad_(True)
        was_training, count = model.training, 0
        model.eval()  # the gradient must not contain dropout's noise
        for batch in itertools.islice(batches, self.batches):
            loss(model, batch).backward()
            count += 1
        model.train(was_training)
        for layer, weight in zip(self._layers.values(), weights, strict=True):
            gradient = weight.grad / max(1, count)
            if distributed.is_initialized():
                distributed.all_reduce(gradient)
                gradient /= distributed.get_world_size()
            weight.grad = None
            layer.get_base_layer()._peft_loraga_grad = gradient
            layer.lora_ga_init(ADAPTER, self.config.lora_ga_config)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
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
