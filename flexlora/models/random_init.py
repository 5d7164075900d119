"""The paper's backbones in their exact shapes with random weights, built offline.

They serve to count parameters (on the meta device), to run benchmarks, and to try the real shapes without the hub. The
configurations are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    LlamaConfig,
    RobertaConfig,
)

from flexlora.models.split_image_classifier import split_attention

# microsoft/deberta-v3-base
DEBERTA_V3_BASE: dict[str, Any] = {
    "vocab_size": 128100,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-7,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "pooler_hidden_size": 768,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pad_token_id": 0,
}
# FacebookAI/roberta-base
ROBERTA_BASE: dict[str, Any] = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# meta-llama/Meta-Llama-3-8B
LLAMA3_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "tie_word_embeddings": False,
}
# meta-llama/Llama-3.1-8B: the same shapes, for longer texts
LLAMA3_1_8B: dict[str, Any] = LLAMA3_8B | {
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
LLAMAS = {"llama3_8b": LLAMA3_8B, "llama3_1_8b": LLAMA3_1_8B}
VITS = {
    "vit_b16": "vit_base_patch16_224.augreg_in21k",
    "clip_vit_b16": "vit_base_patch16_clip_224.openai",
}
"""Maps `model.name` to timm's architecture."""


def random_init(
    name: str, *, num_labels: int = 2, layers: int | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Build a backbone in its exact shapes with random weights.

    Args:
        name: deberta_v3_base, roberta_base, llama3_8b, llama3_1_8b, vit_b16 or clip_vit_b16 (with its attention split).
        num_labels: the number of classes of the head; ignored for a causal LM.
        layers: the number of transformer layers, if it differs from the real model.
        device: 'meta' allocates no memory, which is enough to count parameters.

    Raises:
        ValueError: `name` is not one of these.
    """
    with torch.device(device):
        if name == "deberta_v3_base":
            config = DebertaV2Config(**_shorter(DEBERTA_V3_BASE | {"num_labels": num_labels}, layers))
            return AutoModelForSequenceClassification.from_config(config)
        if name == "roberta_base":
            roberta = RobertaConfig(**_shorter(ROBERTA_BASE | {"num_labels": num_labels}, layers))
            return AutoModelForSequenceClassification.from_config(roberta)
        if name in LLAMAS:
            return AutoModelForCausalLM.from_config(LlamaConfig(**_shorter(LLAMAS[name], layers)))
        if name in VITS:
            depth: dict[str, Any] = {} if layers is None else {"depth": layers}
            vit: nn.Module = timm.create_model(VITS[name], pretrained=False, num_classes=num_labels, **depth)
            if name == "clip_vit_b16":
                split_attention(vit)
            return vit
    known = ", ".join(["deberta_v3_base", "roberta_base", *LLAMAS, *VITS])
    raise ValueError(f"the exact shapes of '{name}' are not known. Known are: {known}.")


def _shorter(config: dict[str, Any], layers: int | None) -> Any:
    return config if layers is None else config | {"num_hidden_layers": layers}
