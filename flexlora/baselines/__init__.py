"""The tuners that PEFT lacks, one file each: torch and peft, and what `flexlora.tuner` tells of PEFT's registry.

Importing this registers them with PEFT, as importing `flexlora` does as soon as PEFT is imported.
"""

from .adapter_fusion import AdapterFusionConfig, AdapterFusionModel
from .adaptformer import AdaptFormerConfig, AdaptFormerModel
from .dynamic_dora import DynamicDoraConfig, DynamicDoraModel
from .fact import FactConfig, FactModel
from .flora import FLoraConfig, FLoraModel
from .houlsby import HoulsbyConfig, HoulsbyModel
from .liera import LieRAConfig, LieRAModel
from .lora_dash import LoraDashConfig, LoraDashModel
from .lori import LoriConfig, LoriModel
from .low_rank import LowRankConfig, LowRankLayer, LowRankModel
from .milora import MiLoraConfig, MiLoraModel
from .mlae import MLAEConfig, MLAEModel
from .moslora import MoSLoraConfig, MoSLoraModel
from .noah import NoahConfig, NoahModel
from .nora_plus import NoRAPlusConfig, NoRAPlusModel
from .pfeiffer import PfeifferConfig, PfeifferModel
from .sharelora import ShareLoraConfig, ShareLoraModel
from .sora import SoRAConfig, SoRAModel
from .ssf import SsfConfig, SsfModel
from .vpt import VptConfig, VptModel

__all__ = [
    "AdaptFormerConfig",
    "AdaptFormerModel",
    "AdapterFusionConfig",
    "AdapterFusionModel",
    "DynamicDoraConfig",
    "DynamicDoraModel",
    "FLoraConfig",
    "FLoraModel",
    "FactConfig",
    "FactModel",
    "HoulsbyConfig",
    "HoulsbyModel",
    "LieRAConfig",
    "LieRAModel",
    "LoraDashConfig",
    "LoraDashModel",
    "LoriConfig",
    "LoriModel",
    "LowRankConfig",
    "LowRankLayer",
    "LowRankModel",
    "MLAEConfig",
    "MLAEModel",
    "MiLoraConfig",
    "MiLoraModel",
    "MoSLoraConfig",
    "MoSLoraModel",
    "NoRAPlusConfig",
    "NoRAPlusModel",
    "NoahConfig",
    "NoahModel",
    "PfeifferConfig",
    "PfeifferModel",
    "ShareLoraConfig",
    "ShareLoraModel",
    "SoRAConfig",
    "SoRAModel",
    "SsfConfig",
    "SsfModel",
    "VptConfig",
    "VptModel",
]
