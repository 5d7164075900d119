"""The tuners that PEFT lacks, one file each. They depend on torch, peft and `flexlora.tuner` only.

Importing this registers them with PEFT, as importing `flexlora` does as soon as PEFT is imported. A file in this folder
is found by itself, and its classes are names of this package: `from flexlora.baselines import MoSLoraConfig`.
"""

import importlib
import pkgutil
from typing import Any

_MODULES = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]


def __getattr__(name: str) -> Any:
    for module in _MODULES:
        found = vars(module).get(name)
        if isinstance(found, type):
            return found
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for module in _MODULES for name in vars(module) if name.endswith("Config"))})
