"""VPT, visual prompt tuning (Jia et al., ECCV 2022, arXiv 2203.12119, Eq. 4 to 6).

Prompts are learned tokens between the class token and the patches. VPT-Shallow adds them before the first block, and
they pass through all blocks: p · d parameters. VPT-Deep adds new prompts before every block, which replace those of the
block before: L · p · d parameters. On ViT-B/16 with p = 50 that is 38,400 and 460,800. The paper searches p over 1 to
200 for each task. The "0.06" and "0.53" of the FlexLoRA paper's Table 16 are means over the tasks.

Details that the description does not specify follow their code:

- Prompts start as U(±√(6 / (3 · patch² + d))), Xavier for the patch embedding, and have no dropout by default. The
  initial output is far from the backbone's, because every token attends to the prompts.
- The prompts are removed after the last block. This has no effect on models that read the class token. Models that
  average the patches do not average the prompts.
- The model must be timm's `VisionTransformer`, with any number of prefix tokens (class, distillation, register), which
  the prompts follow. For text models PEFT has its own prompt tuning.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from flexlora import architectures
from flexlora.tuner.checks import probability, whole

from .base import BaselineConfig, BaselineLayer, BaselineModel, setting


@dataclass
class VptConfig(BaselineConfig):
    """Configuration of a [`VptModel`]."""

    default_targets: ClassVar[str] = architectures.BLOCKS

    num_tokens: int = setting(50, "Number of prompts (p), before the first block or before every block.", whole)
    deep: bool = setting(True, "True: new prompts before every block. False: before the first block only.")
    dropout: float = setting(0.0, "Dropout on the prompts.", probability)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_all_blocks()


class VptLayer(BaselineLayer):
    """A block of a ViT with `vpt_prompt` (p × d) before it, or without own prompts if they come from earlier blocks."""

    title = "VPT"
    adapter_layer_names = ("vpt_prompt",)
    vpt_prompt: nn.ParameterDict
    prefix_tokens: int
    is_first: bool
    is_last: bool

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        self.prefix_tokens, self.is_first, self.is_last = place["prefix_tokens"], place["is_first"], place["is_last"]
        if config.deep or self.is_first:
            bound = math.sqrt(6 / (3 * place["patch_pixels"] + place["width"]))
            shape = (config.num_tokens, place["width"])
            self.new_parameter("vpt_prompt", adapter_name, shape, lambda prompt: prompt.uniform_(-bound, bound))

    def _get_available_adapters(self) -> set[str]:
        return set(self.settings)  # also adapters whose prompts only pass through

    def holds(self, adapter_name: str) -> bool:
        return adapter_name in self.settings

    def adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map (batch, prefix + prompts + patches, d) to the same; first input and last output have no prompts."""
        if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
            raise ValueError(
                "VPT adds tokens to the sequence, so an attention mask does not fit: call the model without one."
            )
        prompts = []
        for adapter_name in adapters:
            own = None
            settings = self.settings[adapter_name]
            if adapter_name in self.vpt_prompt:
                own = self.vpt_prompt[adapter_name].expand(len(x), -1, -1)
                own = functional.dropout(own, settings.dropout, self.training)
            prompts.append((0 if self.is_first else settings.num_tokens, own))
        x, count = replace_prompts(x, self.prefix_tokens, prompts)
        x = self.base_layer(x, *args, **kwargs)
        return without_prompts(x, self.prefix_tokens, count) if self.is_last else x


def replace_prompts(
    x: torch.Tensor, start: int, prompts: Sequence[tuple[int, torch.Tensor | None]]
) -> tuple[torch.Tensor, int]:
    """Replace each adapter's prompts in the sequence by new ones (batch, p, d).

    Args:
        x: (batch, tokens, d), with the prompts from token `start` on, in the adapters' order.
        prompts: for each adapter the number of its prompts in the sequence, and its new prompts; None keeps the old.

    Returns:
        The sequence, and the number of prompts in it.
    """
    parts, position, count = [x[:, :start]], start, 0
    for before, own in prompts:
        parts.append(x[:, position : position + before] if own is None else own.to(x.dtype))
        position += before
        count += parts[-1].shape[1]
    return torch.cat([*parts, x[:, position:]], dim=1), count


def without_prompts(x: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Remove the `count` prompts that begin at token `start` from the sequence."""
    return torch.cat([x[:, :start], x[:, start + count :]], dim=1)


class VptModel(BaselineModel, name="vpt", config=VptConfig, layer=VptLayer):
    """Prompts before the first or every block of a ViT, by `peft.get_peft_model(model, VptConfig(...))`.

    Raises:
        ValueError: the model is not timm's `VisionTransformer`.
    """

    made_for = "timm's VisionTransformer"
    not_mergeable = "its prompts are tokens, not weights"

    def look_at(self, model: nn.Module, config: Any) -> None:
        vision_transformer(model, self.title)

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        vit = vision_transformer(self.model, self.title)
        index = int(name.rpartition(".")[2])
        return {
            "prefix_tokens": vit.num_prefix_tokens,
            "width": vit.embed_dim,
            "patch_pixels": math.prod(vit.patch_embed.patch_size),
            "is_first": index == 0,
            "is_last": index == len(vit.blocks) - 1,
        }


def vision_transformer(model: nn.Module, title: str) -> Any:
    """Find timm's `VisionTransformer` in `model`, which may be a wrapper. `title` names the method in the message.

    Raises:
        ValueError: the model contains no `VisionTransformer`, or more than one.
    """
    timm = sys.modules.get("timm.models.vision_transformer")  # a timm model exists only if this module is imported
    found = [module for module in model.modules() if timm is not None and isinstance(module, timm.VisionTransformer)]
    if len(found) != 1:
        raise ValueError(
            f"{title} needs a model with one timm VisionTransformer, but {type(model).__name__} has {len(found)}."
        )
    return found[0]
