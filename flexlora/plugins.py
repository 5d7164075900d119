"""How a YAML names the code behind it: by the name of a file. Adding one adds a file, no list and no branch."""

import importlib
import pkgutil
from typing import Any

from flexlora.errors import UserError, did_you_mean


def load_plugin(package: str, name: str, key: str, entry: str) -> Any:
    """The function `entry` of the module `<package>.<name>`, as the setting `key` asks for it.

    A name with a dot is a module of the user's own, wherever Python finds it (`my_package.my_method`).

    Raises:
        UserError: the package has no such module, or the module no such function (it is a helper of the others).
    """
    if "." in name:
        return _of_the_user(name, key, entry)
    folder = importlib.import_module(package)
    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    function = getattr(importlib.import_module(f"{package}.{name}"), entry, None) if name in names else None
    if function is None:
        known = [other for other in names if hasattr(importlib.import_module(f"{package}.{other}"), entry)]
        raise UserError(f"there is no {key} '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}.")
    return function


def _of_the_user(name: str, key: str, entry: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{key}: '{name}' is no module's name")
    try:
        return getattr(importlib.import_module(name), entry)
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: Python finds no module '{error.name}' (PYTHONPATH names more folders)") from error
    except AttributeError as error:
        raise UserError(f"{key}: the module '{name}' has no function '{entry}'") from error
