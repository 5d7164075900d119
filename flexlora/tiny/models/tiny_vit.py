"""`scale=tiny`: a small relative of the paper's ViT, of timm's own class, pretrained once and cached."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flexlora.models import image_classifier
from flexlora.models.image_classifier import CONFIG, WEIGHTS, ImageBackbone
from flexlora.settings import ModelSettings
from flexlora.tiny.model_cache import check_relative, hash_of, small_relative, source_hash
from flexlora.tiny.pretrain_vit import Pretraining

SIDE = 16
ARCHITECTURE = "vit_base_patch16_224"
# The small shape: 16 patches, four blocks of width 64.
SHAPE: dict[str, Any] = {
    "img_size": SIDE,
    "patch_size": 4,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 2.0,
}
# The image preprocessing, in timm's format.
INPUT: dict[str, Any] = {
    "input_size": [3, SIDE, SIDE],
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "classifier": "head",
    "num_classes": 0,
}
RELATIVES = ("vit_b16", "clip_vit_b16")
"""The values of `model.name` that have a small relative."""


def load(settings: ModelSettings, num_labels: int | None) -> ImageBackbone:
    """Load the small relative of `model.name` with a fresh head. It is pretrained first if it is not in the cache.

    Raises:
        UserError: `model.path` is set, `model.name` has no small relative, or the task has no classes.
    """
    check_relative(settings, RELATIVES, "of models for images")
    pretraining = Pretraining()
    return small_relative(
        settings,
        content_hash(pretraining),
        lambda folder: make(folder, pretraining),
        lambda small: image_classifier.load(small, num_labels),
    )


def content_hash(pretraining: Pretraining) -> str:
    """Hash everything that determines the model: settings, source of the pretraining, library versions."""
    import PIL
    import timm
    import torch

    from flexlora.tiny import pretrain_vit

    facts = {
        "architecture": ARCHITECTURE,
        "shape": SHAPE,
        "input": INPUT,
        "pretraining": asdict(pretraining),
        "source": source_hash(pretrain_vit, make),
    }
    return hash_of(facts, torch, timm, PIL)


def make(folder: Path, pretraining: Pretraining) -> None:
    """Pretrain a small ViT and save it in the existing `folder`, in timm's layout.

    The process's random state is restored afterwards: a run does not depend on which process pretrained.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    from flexlora.tiny.pretrain_vit import pretrain

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pretraining.seed)
        model = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, **SHAPE)
        pretrain(model, pretraining)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    config = {"architecture": ARCHITECTURE, "num_classes": 0, "pretrained_cfg": INPUT, "model_args": SHAPE}
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
