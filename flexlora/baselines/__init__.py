"""The tuners that PEFT lacks, one file each: torch and peft, and what `flexlora.tuner` tells of PEFT's registry.

Importing this registers them with PEFT, as importing `flexlora` does as soon as PEFT is imported.
"""

from .adapter_fusion import AdapterFusionConfig, AdapterFusionModel
from .adaptformer import AdaptFormerConfig, AdaptFormerModel
from .fact import FactConfig, FactModel
from .houlsby import HoulsbyConfig, HoulsbyModel
from .pfeiffer import PfeifferConfig, PfeifferModel
from .ssf import SsfConfig, SsfModel
from .vpt import VptConfig, VptModel

__all__ = [
    "AdaptFormerConfig",
    "AdaptFormerModel",
    "AdapterFusionConfig",
    "AdapterFusionModel",
    "FactConfig",
    "FactModel",
    "HoulsbyConfig",
    "HoulsbyModel",
    "PfeifferConfig",
    "PfeifferModel",
    "SsfConfig",
    "SsfModel",
    "VptConfig",
    "VptModel",
]
