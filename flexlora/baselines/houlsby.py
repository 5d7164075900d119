"""Houlsby's adapters (Houlsby et al., ICML 2019, arXiv 1902.00751, section 2.1 and Figure 2).

Each layer has two bottlenecks, after the attention's output projection and after the MLP's, each before the residual
sum and the layer norm: h ← h + W_u σ(W_d h + b_d) + b_u. With m = 32 that is 2md + m + d = 49,952 parameters per
bottleneck and 1,198,848 on DeBERTaV3-base (d = 768, 12 layers): the "1.2M" of the paper's Table 1.

Details that the description does not specify:

- W_d and W_u start as N(0, init_std²) truncated at two standard deviations, and biases at 0: near the identity. The
  paper recommends 10⁻² or less; its code has 10⁻³, which is the default here. The initial output differs from the
  backbone's by at most that order (a test bounds it).
- σ is GELU as in their code, the exact one, which BERT's code approximates by a tanh.
- Their adapter follows the dropout after the projection; this one precedes the dropout. It belongs to the projection,
  so that backbones without a dropout module work in the same way. Without dropout, as in evaluation, both are equal.
- They also train the layer norms. The parameter counts of the tables (and of AdaLoRA's tables) exclude them, and so
  does this class.
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
    """An output projection followed by adapters."""

    title = "Houlsby's adapter"
    adapter_layer_names = bottleneck_names("houlsby")


class HoulsbyModel(SerialBottleneckModel, name="houlsby", config=HoulsbyConfig, layer=HoulsbyLayer):
    """Adapters after the attention and after the MLP, by `peft.get_peft_model(model, HoulsbyConfig(...))`."""

    made_for = "the output projections of attention and MLP"
