"""Check names, types and ranges of `method.*` against the classes that declare its fields. Messages name settings."""

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.tuner.checks import FieldError


def refuse_unknown(fields: Iterable[str], known: Iterable[str], where: str) -> None:
    """Check that all `fields` are in `known`. `where` names their owner in the message.

    Raises:
        UserError: a field is not known.
    """
    known = set(known)
    for name in fields:
        if name not in known:
            near = did_you_mean(f"method.{name}", {f"method.{field}" for field in known})
            raise UserError(f"there is no setting 'method.{name}': {where} has no such field.{near}")


def refuse_misfits(fields: dict[str, Any], declared: type) -> None:
    """Check that each value has the type that the dataclass `declared` gives its field.

    Raises:
        UserError: a value has another type, or a mapping for a nested configuration has a key that it does not have.
    """
    hints = typing.get_type_hints(declared)
    for name, value in fields.items():
        if not fits(value, hints[name]):
            raise UserError(f"method.{name}: {value!r} is not {_spell(hints[name])}")
        hinted: tuple[Any, ...] = (hints[name], *typing.get_args(hints[name]))
        nested = next((kind for kind in hinted if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)
        if nested is not None and isinstance(value, dict):  # PEFT drops unknown keys in silence
            known = {f"{name}.{field.name}" for field in dataclasses.fields(nested)}
            refuse_unknown((f"{name}.{key}" for key in value), known, nested.__name__)


def take(declared: type, fields: dict[str, Any]) -> Any:
    """Make an object of the dataclass `declared` from its own fields, and remove them from `fields`.

    Raises:
        UserError: a value has another type or is invalid, or a field without a default is missing.
    """
    names = [field.name for field in dataclasses.fields(declared)]
    own = {name: fields.pop(name) for name in names if name in fields}
    refuse_misfits(own, declared)
    with by_user_names():
        return declared(**own)


@contextlib.contextmanager
def by_user_names() -> Iterator[None]:
    """Convert the exceptions of a configuration to a `UserError`. The message names the field if it is known.

    Raises:
        UserError: the block raised any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except FieldError as error:
        raise UserError(f"method.{error.field} {error.reason}") from error
    except Exception as error:
        raise UserError(f"method: {one_line(error)}") from error


def fits(value: Any, hint: Any) -> bool:
    """Return whether a YAML value fits a field with the annotation `hint`. The class itself checks unusual ones."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    kind = origin or hint
    if kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        # YAML reads 16 as an integer and 16.0 as a float. PEFT can divide by both.
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (kind is float or float(value).is_integer())
        )
    if kind is list and isinstance(value, list):
        return not arguments or all(fits(item, arguments[0]) for item in value)
    if kind in (str, list, dict):
        return isinstance(value, kind)
    return True


def _spell(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else _spell(argument) for argument in arguments)
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
