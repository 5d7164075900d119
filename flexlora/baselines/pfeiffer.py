"""Pfeiffer's adapter (Pfeiffer et al., EACL 2021, arXiv 2005.00247, section 3 and appendix A).

One bottleneck a layer, on the MLP's output projection: h ← h + W_u ReLU(W_d h + b_d) + b_u. With m = 64 that is
1,189,632 parameters on DeBERTaV3-base: the "1.2M" of the FlexLoRA paper's Table 1. With m = 8 it is the "Adapter" of
the VTAB tables (NOAH, arXiv 2206.04673, section 4), 156,768 parameters on ViT-B/16: the "0.16" of Table 16.

Where the description leaves room:

- Their search over places ends with one adapter behind the feed-forward layer, and with the layer norm run before it
  as well as after: LN(h + adapter(LN(h + x))). That needs the residual, which a projection does not see, and a norm of
  BERT's kind, which LLaMA and ViT have not. Here the adapter reads h, before the residual sum and the norm, as in
  Houlsby's; so do the VTAB tables.
- They give no initialisation for BERT; this one is Houlsby's, near the identity.
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
    """An output projection with adapters behind it."""

    title = "Pfeiffer's adapter"
    adapter_layer_names = bottleneck_names("pfeiffer")


class PfeifferModel(SerialBottleneckModel, name="pfeiffer", config=PfeifferConfig, layer=PfeifferLayer):
    """An adapter behind every MLP, by `peft.get_peft_model(model, PfeifferConfig(...))`."""

    made_for = "the output projection of the MLP"
