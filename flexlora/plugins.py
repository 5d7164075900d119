"""Load the module that a setting names, such as `method.kind`. A new module needs no entry in any list."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from flexlora.errors import UserError, did_you_mean, one_line


def load_plugin(packages: tuple[str, ...], name: str, key: str, entry: str) -> Any:
    """Return the function `entry` of the module that the setting `key` names.

    Args:
        packages: the packages that are searched for the module, in this order.
        name: the name of a module in one of `packages`. A name with a dot (`my_package.my_method`) is any module.
        key: the name of the setting, for messages.
        entry: the name of the function.

    Raises:
        UserError: no package has such a module, or the module has no such function (it is only a helper of others).
    """
    return getattr(load_module(packages, name, key, entry), entry)


def load_named(name: str, key: str, entry: str) -> Any:
    """Return the function `entry` of the user's module `name`, which the setting `key` names.

    Raises:
        UserError: there is no such module, or it has no such function.
    """
    return getattr(_of_the_user(name, key, entry), entry)


def load_module(packages: tuple[str, ...], name: str, key: str, entry: str) -> ModuleType:
    """Return the module that the setting `key` names. The module has the function `entry`. See `load_plugin`."""
    if "." in name:
        return _of_the_user(name, key, entry)
    folders = [importlib.import_module(package) for package in packages]
    names = {f.name: f"{folder.__name__}.{f.name}" for folder in folders for f in pkgutil.iter_modules(folder.__path__)}
    module = importlib.import_module(names[name]) if name in names else None
    if module is None or not hasattr(module, entry):
        known = sorted(other for other in names if hasattr(importlib.import_module(names[other]), entry))
        raise UserError(f"there is no {key} '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}.")
    return module


def _of_the_user(name: str, key: str, entry: str) -> ModuleType:
    module = import_named(name, key)
    if not hasattr(module, entry):
        raise UserError(f"{key}: the module '{name}' has no '{entry}'")
    return module


def import_named(name: Any, key: str) -> ModuleType:
    """Return the user's module `name`, the value of the setting `key`.

    Raises:
        UserError: `name` is not the name of a module, Python finds no such module, or importing it fails.
    """
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{key}: '{name}' is not the name of a Python module")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: Python finds no module '{error.name}'. Add its folder to PYTHONPATH.") from error
    except Exception as error:  # importing runs the module, which may raise anything
        raise UserError(f"{key}: importing '{name}' fails: {type(error).__name__}: {one_line(error)}") from error
