"""The shared configuration fields: those of every tuner, and those of every low-rank update of linears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils.peft_types import PeftType

from .checks import number, probability, whole


def setting(default: Any, text: str, check: Callable[..., None] | None = None, **bounds: Any) -> Any:
    """Make a configuration field with a default, a help text and a check. `dict` and `list` make a new object each.

    `rate: float = setting(0.1, "The rate.", number, above=0)` accepts positive numbers only. A subclass that sets
    another default keeps the check.
    """
    metadata = {"help": text} | ({} if check is None else {"check": partial(check, **bounds)})
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class Checked:
    """A dataclass whose fields are made by `setting`. Their checks run when an object is created.

    Raises:
        FieldError: a value fails its check.
    """

    def __post_init__(self) -> None:
        for name, check in _checks(type(self)).items():
            check(self, name)


def _checks(config_class: type[Any]) -> dict[str, Callable[[Any, str], None]]:
    """Collect the checks of the fields by name. The most derived class that defines a check wins."""
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
    """The tuner's name in PEFT's registry. `Tuner` sets it when it registers the configuration."""

    target_modules: list[str] | str | None = setting(
        None, "Names (suffixes) of the modules to adapt, a regex, or 'all-linear'."
    )
    exclude_modules: list[str] | str | None = setting(
        None, "Names (suffixes) or a regex of modules that are not adapted."
    )
    modules_to_save: list[str] | None = setting(
        None, "Modules outside the adapter that are trained and saved, such as the classifier."
    )

    def __post_init__(self) -> None:
        PeftConfig.__post_init__(self)
        self.peft_type = self.type_name
        self.target_modules = as_set(self.target_modules)
        self.exclude_modules = as_set(self.exclude_modules)
        Checked.__post_init__(self)


@dataclass
class LowRankConfig(TunerConfig):
    """Fields of every low-rank update of linears, by LoRA's names."""

    r: int = setting(8, "Rank of every adapted matrix.", whole)
    lora_alpha: float = setting(16, "Scale: s = lora_alpha / r.", number, above=0)
    lora_dropout: float = setting(0.0, "Dropout on the adapter's input.", probability)
    layers_to_transform: list[int] | int | None = setting(
        None, "Indices of the layers to adapt; all layers by default."
    )
    layers_pattern: list[str] | str | None = setting(None, "Name of the layer list that `layers_to_transform` indexes.")
    rank_pattern: dict[str, int] = setting(dict, "Module name → its rank, if it differs from `r`.", whole)
    alpha_pattern: dict[str, float] = setting(
        dict, "Module name → its lora_alpha, if it differs from `lora_alpha`.", number, above=0
    )
    init_weights: bool = setting(
        True, "ΔW starts as published. False also draws parameters that start at 0 (for tests)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers_pattern and not self.layers_to_transform and self.layers_to_transform != 0:
            raise ValueError("`layers_pattern` does nothing without `layers_to_transform`: set both or neither.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` cannot be used when `target_modules` is a string: put it in the regex."
            )


def as_set(value: Any) -> Any:
    """Return a list or tuple of names as a set, as PEFT keeps `target_modules`; other values as they are."""
    return set(value) if isinstance(value, list | tuple) else value
