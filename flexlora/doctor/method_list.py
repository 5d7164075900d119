"""Every method in one list: where it comes from, which backbones it adapts, whether it merges, what it trains."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from flexlora.architectures import CAUSAL_LM, ENCODERS, IMAGE_CLASSIFIER, Architecture
from flexlora.errors import UserError
from flexlora.methods import RunContext
from flexlora.methods.parameter_budget import count_on_shapes
from flexlora.methods.peft import WINDOWS, tuner_classes
from flexlora.models import Backbone, load_backbone, on_hub, outline
from flexlora.models.random_init import random_init
from flexlora.settings import MethodSettings, RunSettings

STEPS = 1000
# One layer of each of the paper's backbones: linears and head, PEFT's task type.
BACKBONES: dict[str, tuple[str, Architecture, str | None]] = {
    "text": ("deberta_v3_base", ENCODERS["deberta-v2"], "SEQ_CLS"),
    "LLM": ("llama3_8b", CAUSAL_LM, "CAUSAL_LM"),
    "vision": ("vit_b16", IMAGE_CLASSIFIER, None),
}


@dataclass(frozen=True)
class Described:
    """One method of the list."""

    name: str
    title: str
    """The first sentence of its YAML's comment: its name, its paper, what it does."""
    source: str
    """`PEFT`, `ours` (a tuner that PEFT lacks), or `weights` (it chooses among the model's own)."""
    backbones: dict[str, bool]
    merges: bool | None
    """Into the backbone's weights; None where there is nothing beside them."""
    parameters: int | None
    """Active adapter parameters on the current model; None where it cannot adapt it."""


def current_backbone(settings: RunSettings) -> Backbone:
    """The model of a command line: a hub's by its shapes alone.

    Raises:
        UserError: it cannot be loaded, or its shapes are not known.
    """
    if on_hub(settings.model):
        return outline(settings.model, settings.task.num_labels)[0]
    return load_backbone(settings.model, settings.task.num_labels)


def describe(
    methods: Mapping[str, MethodSettings], files: Mapping[str, Path], model: nn.Module, context: RunContext
) -> list[Described]:
    """Each method by its settings and its YAML; `context` and `model` are the current backbone's."""
    small = {kind: random_init(name, layers=1, device="meta") for kind, (name, *_) in BACKBONES.items()}
    context = replace(context, held_out=True)  # whatever they are asked to evaluate on
    contexts = {
        kind: replace(
            context, target_modules=at.target_modules, head_modules=list(at.head_modules), task_type=task_type
        )
        for kind, (_, at, task_type) in BACKBONES.items()
    }
    return [
        Described(
            name,
            _title(files[name]),
            _source(method.fields),
            {kind: _count(method, contexts[kind], small[kind]) is not None for kind in BACKBONES},
            _merges(method.fields),
            _count(method, context, model),
        )
        for name, method in methods.items()
    ]


def _count(method: MethodSettings, context: RunContext, model: nn.Module) -> int | None:
    missing = {name: 1 if name == "deltaT" else 0 for name in WINDOWS if method.fields.get(name) == "???"}
    try:
        return count_on_shapes(method.with_fields(**missing), context, model)["adapter_active"]
    except (UserError, NotImplementedError):
        return None


def _title(file: Path) -> str:
    """The comment's first sentence, or the part of it before a colon."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    comment = " ".join(line.removeprefix("#").strip() for line in lines)
    return re.split(r"(?<=\S)[:.](?=\s|$)", comment.strip(), maxsplit=1)[0]


def _source(fields: Mapping[str, Any]) -> str:
    if "peft_type" not in fields:
        return "weights"
    config_class, _ = tuner_classes(fields)
    return "PEFT" if config_class.__module__.startswith("peft.") else "ours"


def _merges(fields: Mapping[str, Any]) -> bool | None:
    if "peft_type" not in fields:
        return None
    _, tuner = tuner_classes(fields)
    return issubclass(tuner, BaseTuner) and getattr(tuner, "not_mergeable", None) is None
