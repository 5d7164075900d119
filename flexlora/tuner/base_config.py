"""The fields that tuners share: those of every tuner, and those of every low-rank update of linears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils.peft_types import PeftType

from .checks import number, probability, whole


def setting(default: Any, text: str, check: Callable[..., None] | None = None, **bounds: Any) -> Any:
    """A field of a configuration: its default (`dict` and `list`: a new one each), its help, and its check.

    `rate: float = setting(0.1, "What it is.", number, above=0)` is refused unless it is a positive number. A subclass
    that gives the field another default keeps the check.
    """
    metadata = {"help": text} | ({} if check is None else {"check": partial(check, **bounds)})
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class Checked:
    """A dataclass whose fields are made by `setting`: their checks run when an object is made.

    Raises:
        FieldError: a value is refused.
    """

    def __post_init__(self) -> None:
        for name, check in _checks(type(self)).items():
            check(self, name)


def _checks(config_class: type[Any]) -> dict[str, Callable[[Any, str], None]]:
    """The check of every field that has one, by name; the nearest class that names a check counts."""
    found = {}
    for owner in reversed(config_class.__mro__):
        for name, declared in vars(owner).get("__dataclass_fields__", {}).items():
            if "check" in declared.metadata:
                found[name] = declared.metadata["check"]
    return found


@dataclass
class TunerConfig(PeftConfig, Checked):
    """Fields of every tuner of this package.

    Raises:
        ValueError: a value is out of range, or two values exclude each other.
    """

    type_name: ClassVar[PeftType]
    """The tuner in PEFT's registry; `Tuner` sets it when it registers the configuration."""

    target_modules: list[str] | str | None = setting(
        None, "Names (suffixes) of the modules to adapt, a regex, or 'all-linear'."
    )
    exclude_modules: list[str] | str | None = setting(
        None, "Names (suffixes) or a regex of modules that stay as they are."
    )
    modules_to_save: list[str] | None = setting(
        None, "Modules outside the adapter that train and are saved, e.g. the classifier."
    )

    def __post_init__(self) -> None:
        PeftConfig.__post_init__(self)
        self.peft_type = self.type_name
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        Checked.__post_init__(self)


@dataclass
class LowRankConfig(TunerConfig):
    """Fields of every low-rank update of linears, by LoRA's names."""

    r: int = setting(8, "Rank of every adapted matrix.", whole)
    lora_alpha: float = setting(16, "Scale: s = lora_alpha / r.", number, above=0)
    lora_dropout: float = setting(0.0, "Dropout on the adapter's input.", probability)
    layers_to_transform: list[int] | int | None = setting(
        None, "Indices of the layers to adapt; all of them by default."
    )
    layers_pattern: list[str] | str | None = setting(
        None, "Name of the layer list that `layers_to_transform` counts in."
    )
    rank_pattern: dict[str, int] = setting(dict, "Module name → its rank, where not `r`.", whole)
    alpha_pattern: dict[str, float] = setting(
        dict, "Module name → its lora_alpha, where not `lora_alpha`.", number, above=0
    )
    init_weights: bool = setting(True, "ΔW starts as published. False draws what starts at 0, too (for tests).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers_pattern and not self.layers_to_transform and self.layers_to_transform != 0:
            raise ValueError("`layers_pattern` does nothing without `layers_to_transform`: set both or neither.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` cannot be used when `target_modules` is a string: put it in the regex."
            )


def _as_set(value: Any) -> Any:
    return set(value) if isinstance(value, list | tuple) else value
