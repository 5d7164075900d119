"""LoRA-GA: gradient approximation (Wang et al., NeurIPS 2024, arXiv 2407.05000), PEFT's `init_lora_weights="lora_ga"`.

Before the first step A and B become singular vectors of the backbone's gradient on some batches, and W ← W - s B A.
PEFT takes the gradients before the model is wrapped (`preprocess_loraga`); here the loop's `prepare` comes after, so
they are taken through the wrapped model, whose B = 0 makes them the backbone's, and PEFT's layers initialise themselves
again.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.config import LoraGAConfig
from torch import distributed, nn

from flexlora.errors import UserError
from flexlora.methods.base import Batch, Method, RunContext
from flexlora.methods.peft import peft_config
from flexlora.methods.residual import ADAPTER, ResidualMethod

OWN = ("direction", "scale", "stable_gamma")


class LoraGAMethod(ResidualMethod):
    """Averages the gradient over `batches` batches of the first epoch (of each process)."""

    config: LoraConfig
    batches = 8

    def prepare(
        self, model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], torch.Tensor]
    ) -> None:
        """
        Raises:
            UserError: the model's linears are quantised.
        """
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        model.requires_grad_(False)
        weights = [layer.get_base_layer().weight for layer in self._layers.values()]
        if not all(weight.is_floating_point() for weight in weights):
            raise UserError("method=lora_ga takes gradients of the backbone, which must not be quantised")
        for weight in weights:
            weight.requires_grad_(True)
        was_training, count = model.training, 0
        model.eval()  # the gradient of the backbone, without dropout's noise
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
    """LoRA-GA from LoRA's fields and its own: `batches`, `direction`, `scale`, `stable_gamma`.

    Raises:
        UserError: as `peft_config`, or a value of these that there is not.
    """
    fields = dict(fields)
    batches = fields.pop("batches", LoraGAMethod.batches)
    own = {name: fields.pop(name) for name in OWN if name in fields}
    if not isinstance(batches, int) or isinstance(batches, bool) or batches < 1:
        raise UserError(f"method.batches must be a whole number of at least 1, not {batches!r}")
    for name, known in (("direction", ("ArBr", "A2rBr", "ArB2r", "random")),
                        ("scale", ("stable", "weight_svd", "gd_scale", "unit"))):  # fmt: skip
        if own.get(name, known[0]) not in known:
            raise UserError(f"method.{name} must be one of {', '.join(known)}, not {own[name]!r}")
    if own.get("stable_gamma", 1) <= 0:
        raise UserError(f"method.stable_gamma must be positive, not {own['stable_gamma']}")
    config, schedule = peft_config(fields, context)
    assert isinstance(config, LoraConfig)
    config.init_lora_weights = "lora_ga"  # PEFT knows it, though its field's type does not list it
    config.lora_ga_config = LoraGAConfig(**own)
    method = LoraGAMethod(config, schedule)
    method.batches = batches
    return method
