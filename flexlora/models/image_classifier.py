"""timm image classifiers, from the hub or from a folder in timm's layout: config.json and model.safetensors."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.architectures import IMAGE_CLASSIFIER
from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.hub import trouble_with, what_failed
from flexlora.models import Backbone, on_hub
from flexlora.models.leftovers import layer_dropout, say_unused
from flexlora.models.pretrained import ADAPTER, refuse_second_adapter
from flexlora.models.saved_files import CONFIG, require_config
from flexlora.reading import TEXT, read_bytes, regular
from flexlora.settings import ModelSettings
from flexlora.text_files import decode

if TYPE_CHECKING:
    import torch

log = logging.getLogger("flexlora")

LOCAL_HINT = "model=local model.path=DIR takes a timm model from a folder"
WEIGHTS = "model.safetensors"
# Arguments of timm's constructor that are not an architecture's own: they say where weights come from (timm unpickles
# `checkpoint_path`), and what the model is made for.
NOT_OF_MODEL = {
    *("cache_dir", "checkpoint_path", "exportable", "features_only", "no_jit", "pretrained", "pretrained_cfg"),
    *("pretrained_cfg_overlay", "pretrained_strict", "scriptable"),
}
HEAD_DROPOUT = "drop_rate"


@dataclass(frozen=True)
class ImageInput:
    """The image settings of a backbone. Mean and deviation are for values in [0, 1], one for each of three channels."""

    size: tuple[int, int]
    """The height and the width, in pixels."""
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: "torch.dtype"


@dataclass
class ImageBackbone(Backbone):
    """A classifier whose model maps a batch of images, (rows, 3, height, width), to logits."""

    size: tuple[int, int]
    dtype: "torch.dtype"

    def logits(self, model: Any, batch: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        logits: torch.Tensor = model(batch["images"].to(self.dtype))
        return logits

    def made_batch(self, rows: int, length: int) -> "dict[str, torch.Tensor]":
        """Make a batch of `rows` images. `length` has no meaning for images."""
        import torch

        return {"images": torch.zeros(rows, 3, *self.size, dtype=torch.uint8)}

    def recompute_activations(self) -> None:
        try:
            self.model.set_grad_checkpointing(True)  # timm's checkpoints are not reentrant by default
        except (AttributeError, AssertionError) as error:
            name = type(self.model).__name__
            raise UserError(
                f"training.gradient_checkpointing: timm's {name} does not support it: "
                "set training.gradient_checkpointing=false"
            ) from error


@dataclass(frozen=True)
class _Description:
    """The content of a model's config.json: timm's architecture, its arguments, and the image settings."""

    architecture: str
    arguments: dict[str, Any]
    pretrained: dict[str, Any]
    """timm's own description of the architecture, updated by the file's values."""

    @property
    def head(self) -> list[str]:
        names = self.pretrained.get("classifier") or ()
        return [names] if isinstance(names, str) else list(names)


def load(settings: ModelSettings, num_labels: int | None) -> ImageBackbone:
    """Load a timm model with a fresh head of `num_labels` classes. Nothing is unpickled.

    Raises:
        UserError: `model.path` does not exist, the hub's model cannot be reached, timm does not know the architecture,
            weights are missing or have other shapes, or the task has no classes.
    """
    if settings.path is None:
        raise UserError("model.path is not set: model=local needs model.path=DIR, a folder with a timm model")
    if not settings.use_safetensors:
        raise UserError("model.use_safetensors=false: image classifiers are read from safetensors only")
    if settings.quantization is not None:
        raise UserError("model.quantization: image classifiers cannot be quantised: set model.quantization=null")
    config, weights, revision = _fetched(settings) if on_hub(settings) else (*_in_folder(settings.path), None)
    description = _read(config, settings.path)
    dropout = _reset(description, settings)
    model = _made(description, num_labels, settings.path)
    _fill(model, description.head, weights, settings.path)
    backbone = _backbone(model, description, settings, revision)
    backbone.dropout = dropout
    return backbone


def outline(settings: ModelSettings, num_labels: int | None) -> tuple[ImageBackbone, str]:
    """Make a hub model on the meta device. Also returns the source of its shapes.

    Raises:
        UserError: the hub cannot be reached and the shapes are not known here.
    """
    import torch

    from flexlora.models.random_init import VITS

    assert settings.path is not None
    if trouble_with(settings.path, "model", settings.revision) is None:
        description = _read(_from_hub(settings, CONFIG), settings.path)
        source = "by the hub's config"
    elif settings.name in VITS:
        description = _described({"architecture": VITS[settings.name]}, settings.path)
        source = "exact shapes, hub not asked"
    else:
        raise UserError(f"the shapes of {settings.path} are not known without the hub")
    with torch.device("meta"):
        model = _made(description, num_labels, settings.path)
    backbone = _backbone(model, description, settings, settings.revision)
    return dataclasses.replace(backbone, processor=None), source


def _in_folder(path: str) -> tuple[Path, Path]:
    folder = require_config(path, "timm")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"model.path: {path} has no {WEIGHTS}: weights in other files are not read")
    refuse_second_adapter(folder / ADAPTER, path)
    return folder / CONFIG, folder / WEIGHTS


def _fetched(settings: ModelSettings) -> tuple[Path, Path, str]:
    config, weights = _from_hub(settings, CONFIG), _from_hub(settings, WEIGHTS)
    return config, weights, weights.parent.name  # the cache names a snapshot's folder after its commit


def _from_hub(settings: ModelSettings, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    assert settings.path is not None
    trouble = trouble_with(settings.path, "model", settings.revision)
    if trouble is None and name == WEIGHTS:
        log.info("%s: fetching it from the hub unless it is in the local cache", settings.path)
    disable_progress_bars()
    try:
        return Path(
            hf_hub_download(settings.path, name, revision=settings.revision, local_files_only=trouble is not None)
        )
    except Exception as error:  # the cache and the network libraries raise many kinds of errors
        if trouble is not None:
            raise UserError(f"{settings.path} is not in the local cache and {trouble}; {LOCAL_HINT}") from error
        raise UserError(f"cannot load {settings.path} from the hub: {what_failed(error)}; {LOCAL_HINT}") from error


def _read(file: Path, path: str) -> _Description:
    try:
        values = json.loads(decode(read_bytes(file, TEXT), file))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"model.path: cannot read {CONFIG} of {path}: {one_line(error)}") from error
    return _described(values, path)


def _described(values: Any, path: str) -> _Description:
    """Interpret config.json's values: timm's own layout, or one with the keys of pretrained_cfg at the top level."""
    import timm
    from timm.models import PretrainedCfg

    architecture = values.get("architecture") if isinstance(values, dict) else None
    if not isinstance(architecture, str):
        raise UserError(f"model.path: {CONFIG} of {path} names no architecture: it is not a timm model")
    given, arguments = values.get("pretrained_cfg", values), values.get("model_args") or {}
    if not isinstance(given, dict) or not isinstance(arguments, dict):
        raise UserError(f"model.path: {CONFIG} of {path} is not in timm's format")
    strange = sorted(arguments.keys() & NOT_OF_MODEL)
    if strange:
        raise UserError(
            f"model.path: {CONFIG} of {path} has model_args.{strange[0]}, which is no argument of an architecture: "
            "remove it"
        )
    name = architecture.partition(".")[0]  # the part after the point names the training data
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise UserError(f"model.path: {path} has the architecture '{name}', which timm does not have.{near}")
    # The keys for downloading a checkpoint are left out: the weights are read from the local file.
    known = {field.name for field in dataclasses.fields(PretrainedCfg)} - {
        *("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"),
    }
    own = timm.get_pretrained_cfg(architecture) or timm.get_pretrained_cfg(name) or PretrainedCfg()
    pretrained = own.to_dict(remove_source=True) | {key: given[key] for key in known if given.get(key) is not None}
    return _Description(name, arguments, pretrained)


def _reset(description: _Description, settings: ModelSettings) -> dict[str, float]:
    """Remove the dropout of an earlier head from the arguments; return the dropout of the layers, which stays."""
    arguments = description.arguments
    head = arguments.pop(HEAD_DROPOUT, None)
    say_unused({HEAD_DROPOUT: head} if head else {}, settings.path)
    usual = dict.fromkeys(arguments, 0.0)
    return layer_dropout(arguments, usual, description.architecture, settings)


def _made(description: _Description, num_labels: int | None, path: str) -> Any:
    """Make the architecture with random weights and a fresh head of `num_labels` classes."""
    import timm

    if num_labels is None:
        raise UserError("this task has no classes: choose a model of another kind than image_classifier")
    try:
        model = timm.create_model(
            description.architecture,
            pretrained=False,
            pretrained_cfg=description.pretrained,
            **description.arguments | {"num_classes": num_labels},
        )
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise UserError(f"model.path: timm cannot make the model in {CONFIG} of {path}: {one_line(error)}") from error
    if not description.head or any(not hasattr(model.get_submodule(name), "weight") for name in description.head):
        raise UserError(f"model.path: timm's {description.architecture} is not a classifier: it has no head to train")
    return model


def _fill(model: Any, head: list[str], file: Path, path: str) -> None:
    """Load all weights of the model except its head's from `file`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        saved = load_file(regular(file))
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.path: cannot read {WEIGHTS} of {path}: {one_line(error)}") from error
    in_head = tuple(f"{name}." for name in head)
    held = {name: value for name, value in model.state_dict().items() if not name.startswith(in_head)}
    missing = [name for name in held if name not in saved]
    if missing:
        raise UserError(f"model.path: {path} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    for name, value in held.items():
        if saved[name].shape != value.shape:
            raise UserError(
                f"model.path: {path} contradicts its {CONFIG}: {name} has shape {list(saved[name].shape)}, "
                f"but {CONFIG} gives {list(value.shape)}"
            )
    strange = [name for name in saved if name not in held and not name.startswith(in_head)]
    if strange:
        log.warning(
            "model.path: %d tensors of %s are ignored because the model has no such weights: %s",
            len(strange),
            path,
            strange[0],
        )
    model.load_state_dict({name: saved[name] for name in held}, strict=False)


def _backbone(model: Any, description: _Description, settings: ModelSettings, revision: str | None) -> ImageBackbone:
    import torch
    from timm.data import resolve_data_config

    takes = resolve_data_config({}, pretrained_cfg=description.pretrained)
    channels, height, width = takes["input_size"]
    if channels != 3:
        raise UserError(f"model.path: {settings.path} takes images with {channels} channels: only 3 are supported")
    dtype = getattr(torch, settings.dtype.value)
    size = (height, width)
    return ImageBackbone(
        model=model.to(dtype),
        processor=ImageInput(size, takes["interpolation"], tuple(takes["mean"]), tuple(takes["std"]), dtype),
        target_modules=IMAGE_CLASSIFIER.target_modules,
        head_modules=_last_names(model, description.head),
        task_type=None,
        revision=revision,
        size=size,
        dtype=dtype,
    )


def _last_names(model: Any, head: list[str]) -> list[str]:
    """Return the last parts of the head modules' names, which methods match: `fc` for `head.fc`."""
    names = [name.rpartition(".")[2] for name in head]
    others = [name for name, _ in model.named_modules() if name not in head and name.rpartition(".")[2] in names]
    if others:
        raise UserError(
            f"model.path: {type(model).__name__} is not supported: its head has the same name as {others[0]}"
        )
    return names
