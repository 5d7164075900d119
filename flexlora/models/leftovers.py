"""Removes what an earlier task left in a checkpoint's config.json and tokenizer files: this run's task decides.

A checkpoint may have been fine-tuned before. Its files then also hold settings of that task: its loss, what a forward
pass returns, the dropout of its head, how its texts were cut and padded.
"""

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from flexlora.errors import UserError
from flexlora.settings import ModelSettings

log = logging.getLogger("flexlora")

# The form of a model's output. The loop reads its fields by their names.
OUTPUT = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
# An encoder's loss and mask: a decoder's mask would hide all later tokens from each token.
ENCODER = {"problem_type": None, "is_decoder": False, "add_cross_attention": False}
TASK = ("id2label", "label2id", "num_labels", "problem_type")
HEAD_DROPOUT = ("classifier_dropout", "cls_dropout", "pooler_dropout", "seq_classif_dropout", "summary_last_dropout")


def without_task(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json's content without the classes and the loss of its task, which may contradict this task's."""
    return {name: value for name, value in written.items() if name not in TASK}


def reset_config(config: Any, written: Mapping[str, Any], settings: ModelSettings) -> dict[str, float]:
    """Give the settings of an earlier task in `config` the values that a run needs; one line says which.

    The dropout of the layers belongs to the pretrained model and stays. One line says where it differs from the
    architecture's own.

    Args:
        config: the configuration of the model to make, changed in place.
        written: the content of config.json for an encoder; empty for a language model, which keeps its own head.
        settings: `model.*`.

    Returns:
        The dropout of the layers, by its names.

    Raises:
        UserError: a dropout is not a probability below 1.
    """
    own, path = type(config)(), settings.path
    wanted: dict[str, Any] = dict(OUTPUT)
    if written:
        wanted |= ENCODER | {name: getattr(own, name, None) for name in HEAD_DROPOUT}
    left = {}
    for name, value in wanted.items():
        found = written.get(name, getattr(config, name, value))
        if found != value and not (found is None and name in OUTPUT):
            left[name] = found
        if getattr(config, name, value) != value:
            setattr(config, name, value)
    say_unused(left, path)
    of_layers = {name: value for name, value in vars(config).items() if name not in wanted}
    return layer_dropout(of_layers, vars(own), config.model_type, settings)


def say_unused(left: Mapping[str, Any], path: str | None) -> None:
    """Log in one line which settings of an earlier task config.json has; log nothing if it has none."""
    if left:
        log.info("model.path: config.json of %s has %s of an earlier task: not used", path, _spelled(left))


def layer_dropout(
    found: Mapping[str, Any], usual: Mapping[str, Any], architecture: str, settings: ModelSettings
) -> dict[str, float]:
    """Return the dropouts in `found` by their names; one line names those that are not `usual`.

    Raises:
        UserError: a dropout is not a probability below 1.
    """
    dropout = {}
    for name, value in sorted(found.items()):
        if "drop" not in name or value is None:
            continue
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(
                f"model.path: config.json of {settings.path} has {name}={value}, which is not a probability below 1"
            )
        dropout[name] = float(value)
    changed = {name: value for name, value in dropout.items() if value != usual.get(name, value)}
    if changed and settings.scale != "tiny":  # our own small encoders have no dropout
        log.warning(
            "model.path: config.json of %s has %s (usual for %s: %s): this run trains with it",
            settings.path,
            _spelled(changed),
            architecture,
            _spelled({name: usual[name] for name in changed}),
        )
    return dropout


def reset_tokenizer(tokenizer: Any, path: str | None, limit: int, padding_side: str, pad: int | None) -> None:
    """Give a tokenizer the settings that a run needs; one line says what was changed.

    Args:
        tokenizer: the tokenizer, changed in place.
        path: `model.path`, for the line.
        limit: the number of tokens that the model can take.
        padding_side: the side that this kind of model pads.
        pad: the token to pad with if the tokenizer has none. A masked token has no effect.
    """
    found: dict[str, Any] = {}
    for name, value in (("truncation_side", "right"), ("padding_side", padding_side)):
        if getattr(tokenizer, name) != value:
            found[name] = getattr(tokenizer, name)
            setattr(tokenizer, name, value)
    if tokenizer.model_max_length < limit:
        found["model_max_length"] = tokenizer.model_max_length
    tokenizer.model_max_length = limit
    if padding_side == "left":
        found.pop("padding_side", None)  # a language model's tokenizer pads on the right for other uses
    if found:
        log.info("model.path: the tokenizer of %s has %s: not used, the task decides", path, _spelled(found))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = pad or 0


def match_segments(tokenizer: Any, model: Any) -> None:
    """Let the tokenizer number the two texts of a pair (`token_type_ids`) if and only if the model uses these.

    A model without segments does not take the argument, or has one segment only. A model with two segments would
    otherwise read both texts as the first one.
    """
    names = tokenizer.model_input_names
    size = getattr(model.config, "type_vocab_size", None)
    takes = "token_type_ids" in inspect.signature(model.forward).parameters and size != 1
    if not takes:
        tokenizer.model_input_names = [name for name in names if name != "token_type_ids"]
    elif size and "token_type_ids" not in names:
        tokenizer.model_input_names = [*names, "token_type_ids"]


def _spelled(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
