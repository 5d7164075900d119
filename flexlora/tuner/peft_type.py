"""FLEXLORA as a member of PEFT's `PeftType`.

`register_peft_method` refuses names outside the enum, and loading an adapter looks its class up by the enum, so the
enum has to know the method. Guarded by tests/test_peft_contract.py.
"""

from __future__ import annotations

from peft.utils.peft_types import PeftType

NAME = "FLEXLORA"


def _extend(name: str) -> PeftType:
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


FLEXLORA = _extend(NAME)
