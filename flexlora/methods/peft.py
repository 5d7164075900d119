"""Methods with any tuner of PEFT's registry. `method.peft_type` and the fields of its config class describe them."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.methods.base import Method, RunContext
from flexlora.methods.fields import by_user_names, refuse_misfits, refuse_unknown
from flexlora.methods.transplant import final_ranks
from flexlora.plugins import import_named
from flexlora.saved_adapter import log_kept_head, read_config, read_weights, refuse_other_update
from flexlora.settings import Schedule
from flexlora.settings.resolve import MAX_WIDTH
from flexlora.tuner.base import Tuner
from flexlora.tuner.budget import scaled_windows
from flexlora.tuner.checks import number, probability, whole
from flexlora.tuner.events import PlannedEvents
from flexlora.tuner.precision import train_in_float32

log = logging.getLogger("flexlora")

# The names of the windows, from AdaLoRA. Every tuner whose ranks change at planned steps uses them.
WINDOWS = ("tinit", "tfinal", "deltaT")


class PeftMethod(Method):
    """A method that wraps the model with `get_peft_model`. A tuner of this package receives the loop's hooks.

    This class counts the steps. Steps that a gradient scaler skipped do not count.
    """

    def __init__(self, config: PeftConfig, schedule: dict[str, Any] | None) -> None:
        self.config = config
        self.schedule = schedule
        self._tuner: Tuner | None = None
        self._step = 0
        self._events: list[dict[str, Any]] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        _refuse_strangers(getattr(self.config, "modules_to_save", None) or (), model)
        try:
            wrapped = get_peft_model(model, self.config)
        except NotImplementedError:  # raised on the meta device; the caller handles it
            raise
        except Exception as error:  # PEFT checks many fields only here, and some only when it uses them
            if "targeted for adaptation" in str(error) or "not found in the base model" in str(error):
                wanted = getattr(self.config, "target_modules", None)
                raise UserError(
                    f"method: the model has no {wanted}: name its linears in method.target_modules"
                ) from error
            raise UserError(f"method: {one_line(error)}") from error
        if not any(parameter.requires_grad for parameter in wrapped.parameters()):
            raise UserError("method: these settings train no parameter: check method.target_modules")
        self._tuner = wrapped.base_model if isinstance(wrapped.base_model, Tuner) else None
        if self._tuner is None:  # PEFT's own tuners train the head in the model's type
            train_in_float32(wrapped)
        return wrapped

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        groups = None if self._tuner is None else self._tuner.parameter_groups(learning_rate)
        return super().parameter_groups(model, learning_rate) if groups is None else groups

    def optimizer(
        self, groups: list[dict[str, Any]], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        own = None if self._tuner is None else self._tuner.optimizer(learning_rate, weight_decay)
        return super().optimizer(groups, learning_rate, weight_decay) if own is None else own

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self._tuner is not None:
            self._tuner.attach(optimizer)

    def regularise(self, model: nn.Module) -> None:
        if self._tuner is not None:
            self._tuner.regularise(self._step + 1)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        self._step += 1
        event = None if self._tuner is None else self._tuner.after_step(self._step, optimizer)
        if event is not None:
            self._events.append(event)

    def rank_events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def planned_events(self) -> PlannedEvents | None:
        return None if self._tuner is None else self._tuner.planned_events()

    def ranks(self, model: nn.Module) -> dict[str, int]:
        return {} if self._tuner is None else self._tuner.ranks()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._tuner is None else {"step": self._step, "tuner": self._tuner.training_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._tuner is not None:
            self._step = state["step"]
            self._tuner.load_training_state(state["tuner"])

    def finish(self, model: nn.Module) -> None:
        if self._tuner is not None:
            self._tuner.finish()

    def load(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, PeftModel)
        try:
            refuse_other_update(read_config(folder), self.config, folder)
            weights = read_weights(folder)
        except ValueError as error:
            raise UserError(f"adapter: {error}") from error
        try:
            held = get_peft_model_state_dict(model, save_embedding_layers=False)
            strange = sorted(weights.keys() ^ held.keys())
            if strange:
                raise UserError(f"adapter: {folder} is of another model or other modules: {strange[0]}")
            head = [n for n in weights if not set(self.config.modules_to_save or ()).isdisjoint(n.split("."))]
            for name in head:
                if weights[name].shape != held[name].shape:
                    log.info("adapter: %s has another shape in the saved adapter and is initialised again", name)
                    weights[name] = held[name]
            log_kept_head(name for name in head if weights[name] is not held[name])
            set_peft_model_state_dict(model, weights)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise UserError(f"adapter: cannot load {folder}: {one_line(error)}") from error

    def save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, PeftModel)
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build a PEFT method from the settings' fields."""
    return PeftMethod(*peft_config(fields, context))


def peft_config(fields: dict[str, Any], context: RunContext) -> tuple[PeftConfig, dict[str, Any] | None]:
    """Return the PEFT config from `fields`, and the scaling of its windows (None if it has no windows).

    The fields are those of the config class, `peft_type` and `python_module`. A config with a `rank_pattern` also has
    `ranks_from`: the folder of a finished run whose final ranks are used as fixed ranks.

    Raises:
        UserError: PEFT does not have the type, the type does not have a field, or a value is invalid.
    """
    config_class, _ = tuner_classes(fields)
    fields = {name: value for name, value in fields.items() if name not in ("peft_type", "python_module")}
    known = {field.name for field in dataclasses.fields(config_class) if field.init}
    if "rank_pattern" in known:
        ranks_from = fields.pop("ranks_from", None)
        if ranks_from is not None:
            fields |= {"rank_pattern": final_ranks(ranks_from)} | ({"init_b": 0} if "init_b" in known else {})
    refuse_unknown(fields, known, config_class.__name__)
    refuse_misfits(fields, config_class)
    task_type = fields.get("task_type")
    _check_values(fields, known)
    if None not in (task_type, context.task_type) and task_type != context.task_type:
        raise UserError(f"method.task_type must be the model's {context.task_type}, not {task_type}: leave it out")
    schedule = scale_windows(fields, context)
    by_run = {"total_step": context.total_steps, "seed": context.seed, "task_type": context.task_type}
    fields |= {name: value for name, value in by_run.items() if name in known and fields.get(name) is None}
    # A config class may have its own default targets (flexlora.baselines).
    by_model = "target_modules" in known and not hasattr(config_class, "default_targets")
    if by_model and fields.get("target_modules") is None:
        if context.target_modules is None:
            raise UserError(
                "method.target_modules is not set, and this architecture has no default: name the linears to adapt"
            )
        fields["target_modules"] = context.target_modules
    if "modules_to_save" in known and fields.get("modules_to_save") is None:
        fields["modules_to_save"] = list(context.head_modules)
    with by_user_names():  # PEFT's own classes raise many kinds of errors
        return config_class(**fields), schedule


def _check_values(fields: dict[str, Any], known: set[str]) -> None:
    """Check values that PEFT accepts silently, or that PEFT refuses only after the model is loaded."""
    names = ("r", "init_r", "max_rank", "rank_pattern", "lora_alpha", "alpha_pattern")
    dropouts = [name for name in fields if name.endswith(("_dropout", "_dropout_p"))]
    given = SimpleNamespace(**{name: fields.get(name) for name in (*names, *dropouts)})
    lowest = 0 if "oft_block_size" in known else 1  # in OFT 0 means no rank
    with by_user_names():
        whole(given, "r", "init_r", "max_rank", "rank_pattern", at_least=lowest, at_most=MAX_WIDTH, or_none=True)
        number(given, "lora_alpha", "alpha_pattern", above=0, or_none=True)
        probability(given, *dropouts, or_none=True)


def tuner_classes(fields: Mapping[str, Any]) -> tuple[type[PeftConfig], type[Any]]:
    """Find the configuration class and the tuner class for `method.peft_type`.

    `method.python_module` names a user's module, which is imported first. It registers the tuner, or an importance that
    a field names.

    Raises:
        UserError: PEFT does not have the type, or the module cannot be imported.
    """
    module = fields.get("python_module")
    if module is not None:
        import_named(module, "method.python_module")
    by_name = {str(kind.value): kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    name = fields["peft_type"]
    if not isinstance(name, str) or name not in by_name:
        near = did_you_mean(str(name), by_name)
        raise UserError(f"there is no method.peft_type '{name}'.{near} PEFT has: {', '.join(sorted(by_name))}.")
    return PEFT_TYPE_TO_CONFIG_MAPPING[by_name[name]], PEFT_TYPE_TO_TUNER_MAPPING[by_name[name]]


def scale_windows(fields: dict[str, Any], context: RunContext) -> dict[str, Any] | None:
    """Scale the windows in `fields` from the paper's steps to this run's. Return the changes, or None without windows.

    Raises:
        UserError: a window is below its minimum.
    """
    before = {name: fields[name] for name in WINDOWS if fields.get(name) is not None}
    if not before:
        return None
    scaled = context.schedule is Schedule.scaled and context.paper_steps is not None
    for name, value in before.items():
        # The windows are checked before scaling, because a scaled window is rounded to an allowed value.
        lowest = 1 if name == "deltaT" else 0
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"method.{name} must be a whole number of at least {lowest}, not {value!r}")
        if value < lowest:
            raise UserError(f"method.{name} must be at least {lowest}, not {value}")
    factor = context.total_steps / context.paper_steps if scaled and context.paper_steps else 1.0
    after = scaled_windows(before, factor)
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
    """Check that every entry of `modules_to_save` names a module, because PEFT silently ignores unknown names."""
    names = [name for name, _ in model.named_modules() if name]
    for entry in wanted:
        if not any(name == entry or name.endswith(f".{entry}") for name in names):
            near = did_you_mean(entry, {name.rpartition(".")[2] for name in names})
            raise UserError(f"method.modules_to_save: no module of the model is called '{entry}'.{near}")
