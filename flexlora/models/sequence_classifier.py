"""Encoders for `AutoModelForSequenceClassification`, from the hub or from a folder."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flexlora.architectures import ENCODERS
from flexlora.errors import UserError, one_line
from flexlora.hub import trouble_with
from flexlora.models import Backbone
from flexlora.models.heads import Head, class_names, match_classes, parts_of_head
from flexlora.models.leftovers import match_segments, reset_config, reset_tokenizer, without_task
from flexlora.models.pretrained import pretrained, refuse_misfits
from flexlora.settings import ModelSettings

LOCAL_HINT = "model=local model.path=DIR takes an encoder from a folder"


@dataclass
class Encoder(Backbone):
    """An encoder with a classifier, which may come from the checkpoint."""

    head: Head = field(default_factory=Head)
    classes: list[str] = field(default_factory=list)
    """The names of the checkpoint's classes, in the order of its outputs."""

    def match_classes(self, labels: Sequence[str]) -> str | None:
        match_classes(self.model, self.head, self.classes, labels)
        return str(self.head)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"head": {"kept": self.head.kept, "new": self.head.new, "classes": self.head.classes}}


def load(settings: ModelSettings, num_labels: int) -> Backbone:
    """Load model and tokenizer. Code from a checkpoint is never run.

    Raises:
        UserError: `model.path` does not exist, the hub's model cannot be reached, the architecture is not described,
            or the checkpoint lacks weights of the encoder.
    """
    with pretrained(settings, LOCAL_HINT) as (source, where):
        return _load(source, where, settings, num_labels)


def _load(source: str, where: dict[str, Any], settings: ModelSettings, num_labels: int) -> Backbone:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
    from transformers.utils import logging

    # transformers would print a long report about the expected fresh head. Unexpected problems are checked below.
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    written, _ = PretrainedConfig.get_config_dict(source, **where)
    architecture = ENCODERS.get(written.get("model_type", ""))
    if architecture is None:
        known = ", ".join(sorted(ENCODERS))
        raise UserError(
            f"model.path: architecture '{written.get('model_type')}' is not supported. Supported are: {known}"
        )
    config = CONFIG_MAPPING[written["model_type"]].from_dict(without_task(written))
    config.num_labels = num_labels
    tokenizer = AutoTokenizer.from_pretrained(source, config=config, **where)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # Without tokenizer files transformers makes an empty tokenizer, which maps every word to [UNK].
        raise UserError(f"model.path: {settings.path} has no tokenizer: save it beside the model")
    dropout = reset_config(config, written, settings)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        source,
        config=config,
        use_safetensors=settings.use_safetensors,
        dtype=getattr(torch, settings.dtype.value),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # allowed for a head of another task, refused below for all other weights
        **where,
    )
    head = list(architecture.head_modules)
    new = refuse_misfits(model, report, settings.path, head)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model.path: the tokenizer of {settings.path} has {len(tokenizer)} words, "
            f"but the model has {config.vocab_size}: they do not belong together"
        )
    reset_tokenizer(tokenizer, settings.path, positions(model), "right", config.pad_token_id)
    match_segments(tokenizer, model)
    return Encoder(
        model=model,
        processor=tokenizer,
        target_modules=architecture.target_modules,
        head_modules=head,
        task_type="SEQ_CLS",
        revision=getattr(config, "_commit_hash", None),
        dropout=dropout,
        head=parts_of_head(model, head, new),
        classes=class_names(written, num_labels),
    )


def outline(settings: ModelSettings, num_labels: int) -> tuple[Backbone, str]:
    """Make a hub model on the meta device, without its tokenizer. Also returns the source of its shapes.

    Raises:
        UserError: the hub cannot be reached and the shapes are not known here, or the architecture is not described.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from flexlora.models.random_init import random_init

    assert settings.path is not None
    model: Any
    if trouble_with(settings.path, "model", settings.revision) is not None:
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
    architecture = ENCODERS.get(model.config.model_type)
    if architecture is None:
        raise UserError(f"model.path: architecture '{model.config.model_type}' is not supported")
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


def positions(model: Any) -> int:
    """Return the number of tokens in an encoder's table of absolute positions; `sys.maxsize` without such a table."""
    from torch import nn

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from the padding id plus one.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return sys.maxsize
