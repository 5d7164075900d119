"""Encoders for `AutoModelForSequenceClassification`, from the hub or from a folder."""

import logging
import sys
from typing import Any

from flexlora.architectures import ENCODERS
from flexlora.errors import UserError, one_line
from flexlora.hub import trouble_with
from flexlora.models import Backbone
from flexlora.models.pretrained import pretrained
from flexlora.settings import ModelSettings

log = logging.getLogger("flexlora")

LOCAL_HINT = "model=local model.path=DIR takes an encoder from a folder"


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
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    # transformers would print a long report about the expected fresh head. Unexpected problems are checked below.
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    config = AutoConfig.from_pretrained(source, num_labels=num_labels, **where)
    architecture = ENCODERS.get(config.model_type)
    if architecture is None:
        known = ", ".join(sorted(ENCODERS))
        raise UserError(f"model.path: architecture '{config.model_type}' is not supported. Supported are: {known}")
    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # Without tokenizer files transformers makes an empty tokenizer, which maps every word to [UNK].
        raise UserError(f"model.path: {settings.path} has no tokenizer: save it beside the model")
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
    random = [name for name in report["missing_keys"] if set(head).isdisjoint(name.split("."))]
    if random:
        raise UserError(
            f"model.path: {settings.path} lacks {len(random)} of the encoder's weights, such as {random[0]}"
        )
    layers = [name for name in report["unexpected_keys"] if not {"layer", "layers"}.isdisjoint(name.split("."))]
    if layers:
        raise UserError(
            f"model.path: {settings.path} contradicts its config.json: the weights have {layers[0]}, "
            "but config.json describes no such layer"
        )
    for name, theirs, ours in report["mismatched_keys"]:
        if set(head).isdisjoint(name.split(".")):
            raise UserError(
                f"model.path: {settings.path} contradicts its config.json: {name} has shape {list(theirs)}, "
                f"but config.json gives {list(ours)}"
            )
        log.info("model.path: %s has another shape in the checkpoint and is initialised again", name)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model.path: the tokenizer of {settings.path} has {len(tokenizer)} words, "
            f"but the model has {config.vocab_size}: they do not belong together"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions(model))
    return Backbone(
        model=model,
        processor=tokenizer,
        target_modules=architecture.target_modules,
        head_modules=head,
        task_type="SEQ_CLS",
        revision=getattr(config, "_commit_hash", None),
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
    """The number of tokens in an encoder's table of absolute positions; `sys.maxsize` if it has no such table."""
    from torch import nn

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from the padding id plus one.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return sys.maxsize
