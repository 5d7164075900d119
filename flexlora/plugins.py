"""How a YAML names the code behind it: by the name of a file. Adding one adds a file, no list and no branch."""

import importlib
import pkgutil
from types import ModuleType

from flexlora.errors import UserError, did_you_mean


def load_plugin(package: str, name: str, key: str) -> ModuleType:
    """The module `<package>.<name>`, as the setting `key` asks for it.

    Raises:
        UserError: the package has no such module.
    """
    folder = importlib.import_module(package)
    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    if name not in names:
        raise UserError(f"there is no {key} '{name}'.{did_you_mean(name, names)} There are: {', '.join(names)}.")
    return importlib.import_module(f"{package}.{name}")
