"""Composes every task, method and scale and every experiment, and compares the resolved settings of two checkouts.

    python scripts/compare_settings.py dump before.jsonl       # in one checkout
    python scripts/compare_settings.py dump after.jsonl        # in the other
    python scripts/compare_settings.py diff before.jsonl after.jsonl

A line of a dump is one composition: its overrides, and its resolved settings or its error.
"""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import safe_load

from flexlora.conf_path import conf_dir
from flexlora.settings import flat_keys, register_schemas

SCALES = ("paper", "tiny")
# The groups that held the recipes before they moved into the methods' files; nothing reads their keys.
NO_SETTINGS = {"benchmark", "recipes"}


def names(group: str) -> list[str]:
    """Return every choice of a config group."""
    folder = conf_dir() / group
    return sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))


def compositions() -> Iterator[list[str]]:
    """Yield the overrides of every composition: the product of task, method and scale, then each experiment's runs."""
    tasks = [name for name in names("task") if name != "none"]
    for task, method, scale in itertools.product(tasks, names("method"), SCALES):
        yield [f"task={task}", f"method={method}", f"scale={scale}"]
    for experiment in names("experiment"):
        for scale in SCALES:
            for run in runs_of(experiment):
                yield [f"experiment={experiment}", f"scale={scale}", *run]


def runs_of(experiment: str) -> Iterator[list[str]]:
    """Yield the overrides of an experiment's runs with one seed; the task is CoLA if the experiment sets none."""
    content = safe_load((conf_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
    params: dict[str, Any] = {}
    for parent in content.get("defaults", []):
        params |= safe_load((conf_dir() / "experiment" / f"{parent}.yaml").read_text())["hydra"]["sweeper"]["params"]
    params |= content["hydra"]["sweeper"]["params"]
    params = {"task": "glue/cola", "method": "lora,flexlora"} | params
    keys = [key for key in params if key != "seed"]
    for values in itertools.product(*(str(params[key]).strip().split(",") for key in keys)):
        yield [f"{key}={value}" for key, value in zip(keys, values, strict=True)]


def dump(target: Path) -> None:
    """Write a line for every composition."""
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())), target.open("w") as lines:
        for overrides in compositions():
            try:
                entry = {"overrides": overrides, "settings": settings_of(compose("config", overrides=overrides))}
            except Exception as error:
                entry = {"overrides": overrides, "error": f"{type(error).__name__}: {error}"}
            lines.write(json.dumps(entry, sort_keys=True) + "\n")


def settings_of(config: DictConfig) -> dict[str, Any]:
    """Return the resolved settings by key; a missing one is "???"."""
    unresolved: Any = OmegaConf.to_container(config, resolve=False)
    unresolved = {key: value for key, value in unresolved.items() if key not in NO_SETTINGS}
    unresolved["method"].pop("recipes", None)
    settings = {}
    for key in flat_keys(unresolved):
        try:
            value = OmegaConf.select(config, key)
        except OmegaConfBaseException as error:
            settings[key] = "???" if "Missing" in repr(error) else f"error: {error}"
            continue
        if isinstance(value, Enum):
            value = value.name
        settings[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if value is None and OmegaConf.is_missing(*parent_of(config, key)):
            settings[key] = "???"
    return settings


def parent_of(config: DictConfig, key: str) -> tuple[Any, str]:
    """Return the node that has a setting, and the last part of the setting's name."""
    parent, _, name = key.rpartition(".")
    return (OmegaConf.select(config, parent) if parent else config), name


def diff(before: Path, after: Path) -> int:
    """Print each difference with the number of compositions that have it; return how many kinds there are."""
    old, new = ({tuple(e["overrides"]): e for e in map(json.loads, file.open())} for file in (before, after))
    kinds: Counter[str] = Counter()
    example: dict[str, str] = {}
    equal = 0
    for overrides in old | new:
        a, b = old.get(overrides), new.get(overrides)
        if a is None or b is None:
            found = ["composition only " + ("after" if a is None else "before")]
        elif "error" in a or "error" in b:
            found = [] if a == b else [f"error: {a.get('error')} -> {b.get('error')}"]
        else:
            x, y = a["settings"], b["settings"]
            found = [
                f"{key}: {x.get(key, 'absent')!r} -> {y.get(key, 'absent')!r}"
                for key in sorted(x | y)
                if x.get(key, "absent") != y.get(key, "absent")
            ]
        equal += not found
        for kind in found:
            kinds[kind] += 1
            example.setdefault(kind, " ".join(overrides))
    print(f"{len(old)} compositions before, {len(new)} after, {equal} equal")
    for kind, count in kinds.most_common():
        print(f"{count:6}  {kind}   (such as {example[kind]})")
    return len(kinds)


if __name__ == "__main__":
    if sys.argv[1] == "dump":
        dump(Path(sys.argv[2]))
    else:
        sys.exit(1 if diff(Path(sys.argv[2]), Path(sys.argv[3])) else 0)
