"""Small encoders of every architecture, with the tiny BERT's tokenizer."""

import shutil
from pathlib import Path

import torch
from method_helpers import SIZES
from transformers import AutoConfig, AutoModel

from flexlora.architectures import ENCODERS
from flexlora.models import Backbone, load_backbone
from flexlora.settings import Dtype, ModelSettings


def settings(folder: Path) -> ModelSettings:
    return ModelSettings(
        name=None, kind="sequence_classifier", scale="local", path=str(folder), revision=None, use_safetensors=True,
        dtype=Dtype.float32, quantization=None,
    )  # fmt: skip


def loaded(folder: Path, num_labels: int) -> Backbone:
    torch.manual_seed(0)
    return load_backbone(settings(folder), num_labels)


def write_encoders(root: Path, tiny_bert: Path) -> dict[str, Path]:
    """One encoder of each architecture, with random weights."""
    sizes = SIZES | {"vocab_size": 28, "max_position_embeddings": 64}
    folders = {}
    for architecture in ENCODERS:
        folders[architecture] = folder = root / architecture
        shutil.copytree(tiny_bert, folder)
        own = {"roberta": {"type_vocab_size": 1, "pad_token_id": 0}, "distilbert": {"dim": 32, "n_layers": 2}}
        names = {key: value for key, value in sizes.items() if key != "num_labels"}
        if architecture == "distilbert":
            names = {"vocab_size": 28, "max_position_embeddings": 64, "n_heads": 2, "hidden_dim": 64}
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **names, **own.get(architecture, {}))
        AutoModel.from_config(config).save_pretrained(folder)
    return folders
