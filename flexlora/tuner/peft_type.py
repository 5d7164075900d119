"""Adds the methods of this package to PEFT's enum `PeftType`.

`register_peft_method` refuses names outside the enum, and PEFT finds the class of a saved adapter by the enum, so the
enum must contain the method. tests/tuner/test_peft_contract.py tests this.
"""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType


def extend_peft_types(name: str) -> PeftType:
    """Return the member `name` of PEFT's enum, and add it if it does not exist."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # From Python 3.11 on, PeftType.FLEXLORA reads an attribute of the class. EnumType refuses plain setattr.
    type.__setattr__(PeftType, name, member)
    return member


def register_tuner(name: str, config_class: type[Any], model_class: type[Any]) -> None:
    """Let PEFT create and load adapters of the type `name`. A repeated import of the same module does nothing.

    Raises:
        ValueError: PEFT has another tuner with this name.
    """
    member = extend_peft_types(name.upper())
    config_class.type_name = member
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(member)
    if known is None:
        register_peft_method(
            name=name.lower(), config_cls=config_class, model_cls=model_class, prefix=model_class.prefix
        )
    elif (known.__module__, known.__qualname__) != (model_class.__module__, model_class.__qualname__):
        raise ValueError(f"a tuner named '{name}' already exists ({known.__module__}): choose another name.")
