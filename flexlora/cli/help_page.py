"""The parts of `flexlora-run --help`: the choices of each group, and every setting with its value and its meaning."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flexlora.cli.choices import GROUPS, choices, given_folders
from flexlora.settings import flat_keys
from flexlora.settings.comments import NO_SETTINGS, meanings

WIDTH = 80
COLUMN = 34
"""The column at which the meanings begin."""
BY_RECIPE = "(recipe)"
HEADS = {
    "": "Run",
    "training": "Training",
    "task": "Task {task}",
    "method": "Method {method}",
    "model": "Model {model}",
}


def list_choices() -> str:
    """Return a paragraph for every config group with its choices."""
    listed = {group: [name for name in choices(group, given_folders()) if name != "none"] for group in GROUPS}
    return "\n".join(
        textwrap.fill(f"{group}: {', '.join(names)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        for group, names in listed.items()
    )


def list_settings(*, _root_: DictConfig) -> str:
    """Return every setting of the composed config in groups. `$` is doubled, because Hydra fills a template with it."""
    chosen = {str(group): name for group, name in HydraConfig.get().runtime.choices.items()}
    known = meanings(chosen, given_folders())
    own: Any = OmegaConf.to_container(
        OmegaConf.masked_copy(_root_, [key for key in map(str, _root_) if key not in NO_SETTINGS]),
        resolve=False,
        enum_to_str=True,
    )
    own["method"].pop("recipes", None)
    has_task = _root_.task.name != "none"
    lines: list[str] = []
    for group, head in HEADS.items():
        names = {name: value for name, value in own.items() if not isinstance(value, Mapping)}
        values = flat_keys({group: own[group]}) if group else names
        lines.append(f"\n-- {head.format(**chosen)} --")
        if group == "task" and not has_task:
            lines += textwrap.wrap("flexlora-run task=NAME --help lists the settings of a task.", WIDTH)
            continue
        for key, value in values.items():
            lines += _lines(f"{key}={_shown(_root_, key, value, has_task)}", known.get(key, ""))
    return "\n".join(lines).replace("$", "$$")


def _shown(config: DictConfig, key: str, value: Any, has_task: bool) -> str:
    """Return a value as the command line writes it. Without a task, recipes are not known."""
    if isinstance(value, str) and "${" in value:
        if "${recipe:" in value and not has_task:
            return BY_RECIPE
        try:
            value = OmegaConf.select(config, key)
        except OmegaConfBaseException:
            return BY_RECIPE
    if isinstance(value, list):
        return f"[{','.join(map(_plain, value))}]"
    return _plain(value)


def _plain(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _lines(setting: str, meaning: str) -> Iterator[str]:
    """Yield the lines of a setting. A long one has its meaning below it."""
    start = f"  {setting}"
    if len(start) >= COLUMN - 1:
        yield start
        start = ""
    yield from textwrap.wrap(
        meaning, WIDTH, initial_indent=start.ljust(COLUMN), subsequent_indent=" " * COLUMN, break_on_hyphens=False
    ) or ([start] if start else [])
