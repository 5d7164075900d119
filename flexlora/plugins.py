"""How a YAML names the code behind it: by the name of a file. Adding one adds a file, no list and no branch."""

import importlib
import pkgutil
from typing import Any

from flexlora.errors import UserError, did_you_mean


def load_plugin(package: str, name: str, key: str, entry: str) -> Any:
    """The function `entry` of the module `<package>.<name>`, as the setting `key` asks for it.

    Raises:
        UserError: the package has no such module, or the module no such function (it is a helper of the others).
    """
    folder = importlib.import_module(package)
    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    function = getattr(importlib.import_module(f"{package}.{name}"), entry, None) if name in names else None
    if function is None:
        known = [other for other in names if hasattr(importlib.import_module(f"{package}.{other}"), entry)]
        raise UserError(f"there is no {key} '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}.")
    return function
