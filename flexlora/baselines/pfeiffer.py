"""Pfeiffer's adapter (Pfeiffer et al., EACL 2021, arXiv 2005.00247, section 3 and appendix A).

Each layer has one bottleneck, after the MLP's output projection: h ← h + W_u ReLU(W_d h + b_d) + b_u. With m = 64 it
has 1,189,632 parameters on DeBERTaV3-base: the "1.2M" of the FlexLoRA paper's Table 1. With m = 8 it is the "Adapter"
of the VTAB tables (NOAH, arXiv 2206.04673, section 4), 156,768 parameters on ViT-B/16: the "0.16" of Table 16.

Details that the description does not specify:

- Their search over positions selects one adapter after the feed-forward layer, with the layer norm before and after it:
  LN(h + adapter(LN(h + x))). That needs the residual, which a projection does not have, and a norm as in BERT, which
  LLaMA and ViT lack. Here the adapter reads h, before the residual sum and the norm, as in Houlsby's adapter and in the
  VTAB tables.
- They give no initialisation for BERT. This class uses Houlsby's, near the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flexlora import architectures

from .bottleneck import SerialBottleneckConfig, SerialBottleneckLayer, SerialBottleneckModel, bottleneck_names


@dataclass
class PfeifferConfig(SerialBottleneckConfig):
    """Configuration of a [`PfeifferModel`]."""

    default_targets: ClassVar[str] = architectures.AFTER_MLP


class PfeifferLayer(SerialBottleneckLayer):
    """An output projection followed by adapters."""

    title = "Pfeiffer's adapter"
    adapter_layer_names = bottleneck_names("pfeiffer")


class PfeifferModel(SerialBottleneckModel, name="pfeiffer", config=PfeifferConfig, layer=PfeifferLayer):
    """An adapter after every MLP, by `peft.get_peft_model(model, PfeifferConfig(...))`."""

    made_for = "the output projection of the MLP"
