"""Any tuner of PEFT's registry, from `method.peft_type` and its config class's own fields."""

import dataclasses
import logging
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME
from safetensors import SafetensorError
from torch import nn

from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.methods.base import Method, RunContext
from flexlora.settings import Schedule

log = logging.getLogger("flexlora")

# Names of AdaLoRA's, and so of every tuner whose ranks move on a timetable of optimizer steps.
WINDOWS = ("tinit", "tfinal", "deltaT")


class PeftMethod(Method):
    """A model wrapped by `get_peft_model` with one PEFT config."""

    def __init__(self, config: PeftConfig, schedule: dict[str, Any] | None) -> None:
        self.config = config
        self.schedule = schedule

    def wrap(self, model: nn.Module) -> nn.Module:
        _refuse_strangers(getattr(self.config, "modules_to_save", None) or (), model)
        try:
            wrapped = get_peft_model(model, self.config)
        except NotImplementedError:  # on the meta device: the caller's matter
            raise
        except Exception as error:  # PEFT looks at many fields only here, and at some not at all before it uses them
            if "targeted for adaptation" in str(error) or "not found in the base model" in str(error):
                wanted = getattr(self.config, "target_modules", None)
                raise UserError(
                    f"method: the model has no {wanted}: name its linears by method.target_modules"
                ) from error
            raise UserError(f"method: {one_line(error)}") from error
        if not any(parameter.requires_grad for parameter in wrapped.parameters()):
            raise UserError("method: nothing would train with these settings")
        return wrapped

    def load(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, PeftModel)
        if not (folder / CONFIG_NAME).is_file():
            raise UserError(f"adapter: {folder} is no adapter that PEFT saved (it has no {CONFIG_NAME})")
        try:
            theirs, ours = PeftConfig.from_pretrained(str(folder)).peft_type, self.config.peft_type
            if theirs != ours:
                raise UserError(f"adapter: {folder} holds a {theirs.value} adapter, this method is {ours.value}")
            weights = load_peft_weights(str(folder), device="cpu")
            held = get_peft_model_state_dict(model, save_embedding_layers=False)
            strange = sorted(weights.keys() ^ held.keys())
            if strange:
                raise UserError(f"adapter: {folder} is of another model or other modules: {strange[0]}")
            for name in weights:
                in_head = not set(self.config.modules_to_save or ()).isdisjoint(name.split("."))
                if in_head and weights[name].shape != held[name].shape:
                    log.info("adapter: %s has another shape there and starts anew", name)
                    weights[name] = held[name]
            set_peft_model_state_dict(model, weights)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"adapter: cannot load {folder}: {one_line(error)}") from error

    def save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, PeftModel)
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """A PEFT method from the settings' fields."""
    return PeftMethod(*peft_config(fields, context))


def peft_config(fields: dict[str, Any], context: RunContext) -> tuple[PeftConfig, dict[str, Any] | None]:
    """The PEFT config of `fields`, and how its windows were scaled (None where it has none).

    Raises:
        UserError: PEFT has no such type, or the type no such field, or a value is of another type or refused.
    """
    fields = dict(fields)
    config_class = _config_class(fields.pop("peft_type"))
    hints = typing.get_type_hints(config_class)
    known = {field.name for field in dataclasses.fields(config_class) if field.init}
    for name, value in fields.items():
        if name not in known:
            near = did_you_mean(f"method.{name}", {f"method.{field}" for field in known})
            raise UserError(f"there is no setting 'method.{name}': {config_class.__name__} has no such field.{near}")
        if not _fits(value, hints[name]):
            raise UserError(f"method.{name}: {value!r} is not {_spell(hints[name])}")
    task_type = fields.get("task_type")
    _check_values(fields, known)
    if None not in (task_type, context.task_type) and task_type != context.task_type:
        raise UserError(f"method.task_type is {context.task_type}, as the model is, not {task_type}: leave it out")
    schedule = scale_windows(fields, context)
    by_run = {"total_step": context.total_steps, "seed": context.seed, "task_type": context.task_type}
    fields |= {name: value for name, value in by_run.items() if name in known and fields.get(name) is None}
    # A method that is made for places of its own knows them itself (flexlora.baselines).
    by_model = "target_modules" in known and not hasattr(config_class, "default_targets")
    if by_model and fields.get("target_modules") is None:
        if context.target_modules is None:
            raise UserError(
                "method.target_modules: which linears of this architecture to adapt is not known: name them"
            )
        fields["target_modules"] = context.target_modules
    if "modules_to_save" in known and fields.get("modules_to_save") is None:
        fields["modules_to_save"] = list(context.head_modules)
    try:
        return config_class(**fields), schedule
    except Exception as error:  # as in `wrap`
        raise UserError(f"method: {one_line(error)}") from error


def _check_values(fields: dict[str, Any], known: set[str]) -> None:
    """Refuse what PEFT takes without a word, or refuses only once the model is loaded."""
    lowest = 0 if "oft_block_size" in known else 1  # OFT has 0 for no rank
    ranks = {"r": fields.get("r"), **_numbers("rank_pattern", fields)}
    for name, rank in ranks.items():
        if isinstance(rank, int) and rank < lowest:
            raise UserError(f"method.{name} must be at least {lowest}, not {rank}")
    alphas = {"lora_alpha": fields.get("lora_alpha"), **_numbers("alpha_pattern", fields)}
    for name, alpha in alphas.items():
        if alpha is not None and not alpha > 0:
            raise UserError(f"method.{name} must be above 0, not {alpha}")
    dropout = fields.get("lora_dropout")
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"method.lora_dropout must lie in [0, 1), not {dropout}")


def _numbers(pattern: str, fields: dict[str, Any]) -> dict[str, float]:
    """The values of a pattern, by the names that a message calls them."""
    values = {f"{pattern}.{name}": value for name, value in (fields.get(pattern) or {}).items()}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"method.{name}: {value!r} is no number")
    return values


def _config_class(peft_type: str) -> type[PeftConfig]:
    by_name = {str(kind.value): config_class for kind, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if peft_type not in by_name:
        near = did_you_mean(peft_type, by_name)
        raise UserError(f"there is no method.peft_type '{peft_type}'.{near} PEFT has: {', '.join(sorted(by_name))}.")
    return by_name[peft_type]


def scale_windows(fields: dict[str, Any], context: RunContext) -> dict[str, Any] | None:
    """Bring the windows in `fields` from the paper's steps to this run's; what was done, or None without windows.

    Raises:
        UserError: a window below what it may be.
    """
    before = {name: fields[name] for name in WINDOWS if fields.get(name) is not None}
    if not before:
        return None
    scaled = context.schedule is Schedule.scaled and context.paper_steps is not None
    for name, value in before.items():
        # Here, because a scaled window is rounded to one that is allowed.
        lowest = 1 if name == "deltaT" else 0
        if value < lowest:
            raise UserError(f"method.{name} must be at least {lowest}, not {value}")
    factor = context.total_steps / context.paper_steps if scaled and context.paper_steps else 1.0
    after = {name: round(value * factor) for name, value in before.items()}
    if "deltaT" in after:
        after["deltaT"] = max(1, after["deltaT"])
    fields |= after
    return {
        "mode": context.schedule.value,
        "paper_steps": context.paper_steps,
        "total_steps": context.total_steps,
        "factor": factor,
        "given": before,
        "used": after,
    }


def _refuse_strangers(wanted: Iterable[str], model: nn.Module) -> None:
    """Refuse `modules_to_save` that name no module: PEFT passes over them without a word."""
    names = [name for name, _ in model.named_modules() if name]
    for entry in wanted:
        if not any(name == entry or name.endswith(f".{entry}") for name in names):
            near = did_you_mean(entry, {name.rpartition(".")[2] for name in names})
            raise UserError(f"method.modules_to_save: no module of the model is called '{entry}'.{near}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML may be handed to a field annotated `hint`; anything unusual is left to PEFT."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    kind = origin or hint
    if kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        # YAML reads 16 as an integer and 16.0 as a float; PEFT divides by either.
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (kind is float or float(value).is_integer())
        )
    if kind is list and isinstance(value, list):
        return not arguments or all(_fits(item, arguments[0]) for item in value)
    if kind in (str, list, dict):
        return isinstance(value, kind)
    return True


def _spell(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else _spell(argument) for argument in arguments)
    return getattr(hint, "__name__", str(hint))
