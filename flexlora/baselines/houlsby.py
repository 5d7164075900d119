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

from dataclasses import dataclass
from typing import ClassVar

from flexlora import architectures

from .base import setting
from .bottleneck import SerialBottleneckConfig, SerialBottleneckLayer, SerialBottleneckModel, bottleneck_names


@dataclass
class HoulsbyConfig(SerialBottleneckConfig):
    """Configuration of a [`HoulsbyModel`]."""

    default_targets: ClassVar[str] = architectures.BEFORE_RESIDUAL

    bottleneck: int = setting(32, "Width of the bottleneck, m.")
    non_linearity: str = setting("gelu", "σ: 'relu' or 'gelu' (the exact one).")


class HoulsbyLayer(SerialBottleneckLayer):
    """An output projection with adapters behind it."""

    title = "Houlsby's adapter"
    adapter_layer_names = bottleneck_names("houlsby")


class HoulsbyModel(SerialBottleneckModel, name="houlsby", config=HoulsbyConfig, layer=HoulsbyLayer):
    """Adapters behind the attention and behind the MLP, by `peft.get_peft_model(model, HoulsbyConfig(...))`."""

    made_for = "the output projections of attention and MLP"
