"""The page of the Python interface: a mkdocstrings directive for every public name."""

import importlib
from types import ModuleType

import flexlora

INTRO = """# The Python interface

For anyone who calls flexlora from Python. This page is generated from the docstrings.
"""
REPORT = "flexlora.report.frame"


def api_page() -> str:
    """Return the page as Markdown."""
    baselines = importlib.import_module("flexlora.baselines")
    own = [name for name in configs(baselines) if name not in flexlora.__all__]
    parts = [INTRO, "## `flexlora`", *(_entry(f"{_home(flexlora, name)}.{name}") for name in flexlora.__all__)]
    parts += ["## Configurations of the baselines", "`flexlora.baselines` has one for each tuner that PEFT lacks."]
    parts += [_entry(f"{_home(baselines, name)}.{name}") for name in own]
    parts += ["## The report as a pandas frame", _entry(f"{REPORT}.read_frame")]
    return "\n\n".join(parts) + "\n"


def configs(baselines: ModuleType) -> list[str]:
    """Return the names of the configuration classes of `flexlora.baselines`."""
    names = (name for name in dir(baselines) if name.endswith("Config"))
    return [name for name in names if _home(baselines, name).startswith(f"{baselines.__name__}.")]


def _home(package: ModuleType, name: str) -> str:
    return str(getattr(package, name).__module__)


def _entry(path: str) -> str:
    return f"::: {path}\n    options: {{heading_level: 3}}"
