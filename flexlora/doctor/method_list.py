"""The list of all methods: source, supported backbones, whether the adapter merges, and number of parameters."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from flexlora.architectures import CAUSAL_LM, ENCODERS, IMAGE_CLASSIFIER, Architecture
from flexlora.doctor.method_rows import Described
from flexlora.errors import UserError
from flexlora.methods import RunContext
from flexlora.methods.base import ConfiguredByData
from flexlora.methods.parameter_budget import count_on_shapes
from flexlora.methods.peft import WINDOWS, tuner_classes
from flexlora.models import Backbone, load_backbone, on_hub, outline
from flexlora.models.random_init import random_init
from flexlora.reading import read_text
from flexlora.settings import MethodSettings, RunSettings
from flexlora.training.plan import run_context

STEPS = 1000
# One layer of each of the paper's backbones: linears and head, PEFT's task type.
BACKBONES: dict[str, tuple[str, Architecture, str | None]] = {
    "text": ("deberta_v3_base", ENCODERS["deberta-v2"], "SEQ_CLS"),
    "LLM": ("llama3_8b", CAUSAL_LM, "CAUSAL_LM"),
    "vision": ("vit_b16", IMAGE_CLASSIFIER, None),
}


def current_backbone(settings: RunSettings) -> Backbone:
    """Load the model of the command line. A hub model is represented by its shapes only.

    Raises:
        UserError: the model cannot be loaded, or its shapes are not known.
    """
    if on_hub(settings.model):
        return outline(settings.model, settings.task.num_labels)[0]
    return load_backbone(settings.model, settings.task.num_labels)


def describe(
    settings: RunSettings, methods: Mapping[str, MethodSettings], files: Mapping[str, Path]
) -> list[Described]:
    """Describe each method from its settings and its YAML file, on the backbone of `settings`.

    Raises:
        UserError: the backbone cannot be loaded, or its shapes are not known.
    """
    backbone = current_backbone(settings)
    model, context = backbone.model, run_context(settings, backbone, STEPS)
    small = {kind: random_init(name, layers=1, device="meta") for kind, (name, *_) in BACKBONES.items()}
    context = replace(context, held_out=True)  # the list does not depend on the evaluation split
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
            {kind: _count(method, contexts[kind], small[kind])[0] for kind in BACKBONES},
            _merges(method.fields),
            _count(method, context, model)[1],
        )
        for name, method in methods.items()
    ]


def _count(method: MethodSettings, context: RunContext, model: nn.Module) -> tuple[bool, int | None]:
    """Return whether the method adapts the model, and its number of parameters if that is known before training."""
    missing = {name: 1 if name == "deltaT" else 0 for name in WINDOWS if method.fields.get(name) == "???"}
    try:
        return True, count_on_shapes(method.with_fields(**missing), context, model)["adapter_active"]
    except ConfiguredByData:
        return True, None
    except (UserError, NotImplementedError):
        return False, None


def _title(file: Path) -> str:
    """Read the first sentence of the file's comment, or its part before a colon."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), read_text(file).splitlines())
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
