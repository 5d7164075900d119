"""timm image classifiers whose query, key and value are three linears, as in CLIP. timm's ViT has one linear for all.

A method that treats types of linears apart, such as E²LoRA, then sees six linears in each block, and so do counts of
parameters. The model computes the same.
"""

from typing import Any

import torch
from timm.layers import Attention
from torch import nn

from flexlora.models import image_classifier
from flexlora.models.image_classifier import ImageBackbone
from flexlora.settings import ModelSettings

LINEARS = ("q_proj", "k_proj", "v_proj")


class SplitAttention(Attention):
    """timm's attention with three linears. Its `forward` calls `qkv` as before."""

    @property
    def qkv(self) -> Any:  # type: ignore[override]
        """The function that computes queries, keys and values, one after the other."""
        return self._projected

    def _projected(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([getattr(self, name)(hidden) for name in LINEARS], dim=-1)


def load(settings: ModelSettings, num_labels: int | None) -> ImageBackbone:
    """Load a timm model with a fresh head of `num_labels` classes, and split its attention.

    Raises:
        UserError: `image_classifier.load` raises it.
    """
    return split(image_classifier.load(settings, num_labels))


def outline(settings: ModelSettings, num_labels: int | None) -> tuple[ImageBackbone, str]:
    """Make a hub model on the meta device, with its attention split. Also returns the source of its shapes.

    Raises:
        UserError: the hub cannot be reached and the shapes are not known here.
    """
    backbone, source = image_classifier.outline(settings, num_labels)
    return split(backbone), source


def split(backbone: ImageBackbone) -> ImageBackbone:
    """Split the attention of a backbone's model, in place, and return the backbone."""
    split_attention(backbone.model)
    return backbone


def split_attention(model: nn.Module) -> None:
    """Replace the `qkv` of every attention of timm's ViT by three linears with the same weights, in place."""
    for module in model.modules():
        if type(module) is Attention:
            _split(module)


def _split(attention: Any) -> None:
    joined = attention.qkv
    biases: Any = joined.bias.chunk(3) if joined.bias is not None else (None, None, None)
    del attention.qkv
    attention.__class__ = SplitAttention
    for name, weight, bias in zip(LINEARS, joined.weight.chunk(3), biases, strict=True):
        with torch.device("meta"):
            linear = nn.Linear(joined.in_features, len(weight), bias=bias is not None)
        linear.weight = nn.Parameter(weight.detach().clone())
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone())
        setattr(attention, name, linear)
