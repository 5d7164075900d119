"""The shapes of a hub model that is not here: from its config where the hub answers, else from those we know."""

from typing import Any

from huggingface_hub import try_to_load_from_cache

from flexlora.errors import UserError, one_line
from flexlora.hub import hub_is_offline
from flexlora.models import Backbone
from flexlora.models.architectures import ARCHITECTURES
from flexlora.settings import SequenceClassifier

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def is_cached(settings: SequenceClassifier) -> bool:
    """Whether config and weights of the pinned revision are in the hub's local cache."""

    def here(name: str) -> bool:
        return isinstance(try_to_load_from_cache(settings.path or "", name, revision=settings.revision), str)

    return here("config.json") and any(here(name) for name in WEIGHTS)


def outline(settings: SequenceClassifier, num_labels: int) -> tuple[Backbone, str]:
    """The model on the meta device, without a tokenizer, and where its shapes are from.

    Raises:
        UserError: neither the hub answers, nor are its shapes known here; or its architecture is not described.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from flexlora.models.random_init import random_init

    assert settings.path is not None
    model: Any
    if hub_is_offline():
        try:
            model = random_init(settings.name or "", num_labels=num_labels, device="meta")
        except ValueError as error:
            raise UserError(f"the shapes of {settings.path} are not known without the hub") from error
        source = "exact shapes, hub not asked"
    else:
        try:
            config = AutoConfig.from_pretrained(
                settings.path, revision=settings.revision, num_labels=num_labels, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the config of {settings.path} from the hub: {one_line(error)}") from error
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                config, dtype=getattr(torch, settings.dtype.value), trust_remote_code=False
            )
        source = "by the hub's config"
    architecture = ARCHITECTURES.get(model.config.model_type)
    if architecture is None:
        raise UserError(f"model.path: architecture '{model.config.model_type}' is not described")
    model.to(getattr(torch, settings.dtype.value))
    backbone = Backbone(
        model=model,
        processor=None,
        target_modules=architecture.target_modules,
        head_modules=list(architecture.head_modules),
        task_type="SEQ_CLS",
        revision=settings.revision,
    )
    return backbone, source
