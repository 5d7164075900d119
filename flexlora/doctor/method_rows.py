"""The rows of `flexlora-doctor methods`. They are cached, because counting imports PEFT and builds every method."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import flexlora
from flexlora.cache import cache_dir
from flexlora.conf_path import conf_dir
from flexlora.reading import read_text
from flexlora.results import environment
from flexlora.results.files import to_json, write_text
from flexlora.settings import MethodSettings, RunSettings
from flexlora.source_hash import hash_of_files


@dataclass(frozen=True)
class Described:
    """One method of the list."""

    name: str
    title: str
    """The first sentence of the comment in its YAML file: name, paper and idea."""
    source: str
    """`PEFT`, `ours` (a tuner that PEFT lacks), or `weights` (the method trains some of the model's own weights)."""
    backbones: dict[str, bool]
    """Whether the method adapts each kind of backbone."""
    merges: bool | None
    """Whether the adapter merges into the backbone's weights, or None if the method has no adapter."""
    parameters: int | None
    """The number of active adapter parameters on the current model, or None if the method cannot adapt it, or if
    gradients of the data decide the number."""


def method_rows(
    settings: RunSettings, plain: Mapping[str, Any], methods: Mapping[str, MethodSettings], files: Mapping[str, Path]
) -> list[Described]:
    """Describe every method, on the model of `settings`.

    Args:
        settings: the settings of a run on that model.
        plain: the same settings as plain data.
        methods: the settings of each method, by its name.
        files: the YAML file of each method, by its name.

    Raises:
        UserError: the model cannot be loaded, or its shapes are not known.
    """
    kept = cache_dir("methods", f"{_hash(settings, plain, methods, files)}.json")
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [Described(**row) for row in json.loads(read_text(kept))]

    from flexlora.doctor.method_list import describe

    rows = describe(settings, methods, files)
    if all(file.is_relative_to(conf_dir()) for file in files.values()):  # the hash lacks a user's code
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, to_json([asdict(row) for row in rows]))
    return rows


def _hash(
    settings: RunSettings, plain: Mapping[str, Any], methods: Mapping[str, MethodSettings], files: Mapping[str, Path]
) -> str:
    """Return a hash of everything that the rows depend on."""
    described: dict[str, Any] = {
        "settings": {key: value for key, value in plain.items() if key != "method"},
        "methods": {name: asdict(method) for name, method in methods.items()},
        "files": hash_of_files(*files.values(), *sorted(Path(flexlora.__file__).parent.rglob("*.py"))),
        "versions": environment.versions(),
    }
    if settings.model.path is not None:
        config = Path(settings.model.path).expanduser() / "config.json"
        described["model"] = hash_of_files(config) if config.is_file() else None
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]
