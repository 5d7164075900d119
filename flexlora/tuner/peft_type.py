"""Methods of this package as members of PEFT's `PeftType`.

`register_peft_method` refuses names outside the enum, and loading an adapter looks its class up by the enum, so the
enum has to know the method. Guarded by tests/tuner/test_peft_contract.py.
"""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType


def extend_peft_types(name: str) -> PeftType:
    """The member `name` of PEFT's enum, added where it is not there yet."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # Attribute access (PeftType.FLEXLORA) goes through the class on Python ≥ 3.11; EnumType refuses plain setattr.
    type.__setattr__(PeftType, name, member)
    return member


def register_tuner(name: str, config_class: type[Any], model_class: type[Any]) -> None:
    """Have PEFT create and load adapters of the type `name`; does nothing where a module is imported again.

    Raises:
        ValueError: PEFT has another tuner of this name.
    """
    member = extend_peft_types(name.upper())
    config_class.type_name = member
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(member)
    if known is None:
        register_peft_method(
            name=name.lower(), config_cls=config_class, model_cls=model_class, prefix=model_class.prefix
        )
    elif (known.__module__, known.__qualname__) != (model_class.__module__, model_class.__qualname__):
        raise ValueError(f"there is a tuner named '{name}' already ({known.__module__}): choose another name.")
