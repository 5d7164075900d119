"""VPT, visual prompt tuning (Jia et al., ECCV 2022, arXiv 2203.12119, Eq. 4 to 6).

Learned tokens between the class token and the patches. Shallow: before the first block, and they go through all of
them, p · d parameters. Deep: before every block, in place of those that come out of the block before, L · p · d
parameters. On ViT-B/16 with p = 50 that is 38,400 and 460,800; the paper searches p over 1 to 200 a task, and the
"0.06" and "0.53" of the FlexLoRA paper's Table 16 are means over the tasks.

Where the description leaves room, as in their code:

- Prompts start as U(±√(6 / (3 · patch² + d))), Xavier's of the patch embedding, and have no dropout unless it is set.
  The output at the start is not the backbone's, nor near it: every token attends to the prompts.
- The prompts leave the sequence behind the last block. Where the class token is read that changes nothing; where
  patches are averaged the prompts are not among them.
- timm's `VisionTransformer`, with any number of prefix tokens (class, distillation, register): prompts come after them.
  Text models have PEFT's own prompt tuning.
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

    num_tokens: int = setting(50, "Prompts (p), before the first block or before every one.", whole)
    deep: bool = setting(True, "New prompts before every block, or before the first one only.")
    dropout: float = setting(0.0, "Dropout on the prompts.", probability)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_all_blocks()


class VptLayer(BaselineLayer):
    """A block of a ViT with `vpt_prompt` (p × d) before it; it has none of its own where prompts come from below."""

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
        return set(self.settings)  # also of those whose prompts only pass through

    def holds(self, adapter_name: str) -> bool:
        return adapter_name in self.settings

    def adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(batch, prefix + prompts + patches, d) in and out; no prompts into the first block and out of the last."""
        if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
            raise ValueError("VPT lengthens the sequence: an attention mask does not fit it.")
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
    """Put each adapter's prompts (batch, p, d) in place of those that it has in the sequence.

    Args:
        x: (batch, tokens, d), the prompts from token `start` on, in the adapters' order.
        prompts: of each adapter how many it has there, and its new ones; None leaves them.

    Returns:
        The sequence, and how many prompts are in it.
    """
    parts, position, count = [x[:, :start]], start, 0
    for before, own in prompts:
        parts.append(x[:, position : position + before] if own is None else own.to(x.dtype))
        position += before
        count += parts[-1].shape[1]
    return torch.cat([*parts, x[:, position:]], dim=1), count


def without_prompts(x: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """The sequence without its `count` prompts, which begin at token `start`."""
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
    """The one in `model`, which may be a wrapper of it.

    Raises:
        ValueError: there is none, or more than one; `title` is the method that needs it.
    """
    timm = sys.modules.get("timm.models.vision_transformer")  # a model of timm's is there only if this is
    found = [module for module in model.modules() if timm is not None and isinstance(module, timm.VisionTransformer)]
    if len(found) != 1:
        raise ValueError(
            f"{title} works on timm's VisionTransformer; {type(model).__name__} holds {len(found)} of them."
        )
    return found[0]
