"""Houlsby's adapters (Houlsby et al., ICML 2019, arXiv 1902.00751, section 2.1 and Figure 2).

Two bottlenecks a layer, one on the attention's output projection and one on the MLP's, each before the residual sum
and the layer norm: h ← h + W_u σ(W_d h + b_d) + b_u. With m = 32 that is 2md + m + d = 49,952 parameters a bottleneck
and 1,198,848 on DeBERTaV3-base (d = 768, 12 layers): the "1.2M" of the paper's Table 1.

Where the description leaves room:

- W_d and W_u start as N(0, init_std²) cut off at two standard deviations, biases at 0: near the identity, not at it.
  The paper says 10⁻² and that anything below does as well; its code has 10⁻³, which is the default here. The output
  at the start differs from the backbone's by that much and no more (a test bounds it).
- σ is GELU as in their code, the exact one, which BERT's code approximates by a tanh.
- Their adapter comes after the dropout behind the projection, this one before it: it belongs to the projection, so that
  a backbone without such a module is adapted in the same way. Without dropout, in evaluations too, the two are equal.
- They also train the layer norms. The parameter counts of the tables (and AdaLoRA's, which they continue) leave them
  out, and so does this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from flexlora.tuner.peft_type import register_tuner

from . import places
from .base import hint
from .bottleneck import SerialBottleneckConfig, SerialBottleneckLayer, SerialBottleneckModel


@dataclass
class HoulsbyConfig(SerialBottleneckConfig):
    """Configuration of a [`HoulsbyModel`]."""

    method: ClassVar[str] = "houlsby"
    default_targets: ClassVar[str] = places.BEFORE_RESIDUAL

    bottleneck: int = field(default=32, metadata=hint("Width of the bottleneck, m."))
    non_linearity: str = field(default="gelu", metadata=hint("σ: 'relu' or 'gelu' (the exact one)."))


class HoulsbyLayer(SerialBottleneckLayer):
    """An output projection with adapters behind it."""

    adapter_layer_names = ("houlsby_down", "houlsby_down_bias", "houlsby_up", "houlsby_up_bias")


class HoulsbyModel(SerialBottleneckModel):
    """Adapters behind the attention and behind the MLP, by `peft.get_peft_model(model, HoulsbyConfig(...))`."""

    prefix = "houlsby_"
    tuner_layer_cls = HoulsbyLayer
    title = "Houlsby's adapter"
    made_for = "the output projections of attention and MLP"


register_tuner("HOULSBY", HoulsbyConfig, HoulsbyModel)
