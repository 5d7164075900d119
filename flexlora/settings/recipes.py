"""Recipes: the numbers that a method needs for a task, a benchmark or a scale, as rows of a table in its own YAML.

A setting that comes from a recipe says so where it is declared: `tinit: ${recipe:method.tinit}`, or with a default,
`r: ${recipe:method.r,32}`. The resolver of this module replaces it by the value of the first row that has it, in the
order of `row_names`: this scale's rows before others, a task's before its benchmark's, a row that names the backbone
(`glue/cola@roberta_base`) before one that does not. The command line and an experiment replace the interpolation
itself, so they always win.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError, safe_load

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError, did_you_mean

DECLARED = re.compile(r"\$\{recipe:\s*([\w.]+)\s*(?:,(.*))?\}")
EXAMPLE = "as in glue: {training.learning_rate: 1.0e-3}"
NO_SETTINGS = ("benchmark", "recipes")
"""Keys of a composed config that serve the recipes only: they are no part of a run's settings, record or hash."""


class Found(NamedTuple):
    """A value of a recipe, and where it is."""

    value: Any
    row: str
    in_method: bool
    """Whether the row is in the method's file; otherwise it is in the scale's."""


class Missing(Exception):
    """No row has a value for a setting without a default."""


def register_resolver() -> None:
    """Let OmegaConf resolve `${recipe:KEY}` and `${recipe:KEY,DEFAULT}`."""
    OmegaConf.register_new_resolver("recipe", _resolve, replace=True)


def _resolve(key: str, *default: Any, _root_: DictConfig) -> Any:
    found = look_up(key, _root_)
    if found is not None:
        return found.value
    if default:
        return default[0]
    raise Missing(key)


def row_names(config: Mapping[str, Any]) -> list[str]:
    """The rows that count for a composed config, the strongest first; some may not exist.

    Example:
        `tiny/glue/cola@deberta_v3_base`, `tiny/glue/cola`, `tiny/glue@deberta_v3_base`, `tiny/glue`, ...,
        `glue/cola@deberta_v3_base`, `glue/cola`, `glue@deberta_v3_base`, `glue`.
    """
    return [*_at_scale(config), *_at_any_scale(config)]


def _at_scale(config: Mapping[str, Any]) -> list[str]:
    scale = config["scale"]
    return [*(f"{scale}/{name}" for name in _at_any_scale(config)), *_with_backbone([scale], config)]


def _at_any_scale(config: Mapping[str, Any]) -> list[str]:
    places = dict.fromkeys((config["task"]["name"], config.get("benchmark")))
    return _with_backbone([place for place in places if place is not None], config)


def _with_backbone(places: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    backbone = config["model"]["name"]
    named = [] if backbone is None else [f"@{backbone}"]
    return [f"{place}{suffix}" for place in places for suffix in (*named, "")]


def look_up(key: str, config: Mapping[str, Any]) -> Found | None:
    """The recipe's value for the setting `key`, None where no row that counts has it."""
    tables = ((config["method"].get("recipes") or {}, True), (config.get("recipes") or {}, False))
    for names in (_at_scale(config), _at_any_scale(config)):
        for table, in_method in tables:
            for name in names:
                row = table.get(name)
                if row is not None and key in row:
                    return Found(row[key], name, in_method)
    return None


def declared(unresolved: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """The settings that come from a recipe: their key there, and whether they have a default.

    Args:
        unresolved: a composed config as flat plain data, with its interpolations as they are written.
    """
    found = {}
    for setting, value in unresolved.items():
        match = DECLARED.match(value) if isinstance(value, str) else None
        if match:
            found[setting] = (match[1], match[2] is not None)
    return found


# --- the files, for checks and for saying where a value is ------------------------------------------------------------


def file_of(group: str, name: str, folders: Sequence[Path]) -> Path | None:
    """The YAML of a choice, as Hydra finds it: the last of `folders` that has one; None where none has."""
    files = [folder / group / f"{name}.yaml" for folder in folders]
    return next((file for file in reversed(files) if file.is_file()), None)


def shown(file: Path) -> str:
    """A YAML's path as a message shows it: `conf/method/lora.yaml` for ours, otherwise whole."""
    ours = conf_dir()
    return f"conf/{file.relative_to(ours).as_posix()}" if file.is_relative_to(ours) else str(file)


def row_file(row: str, method: str, folders: Sequence[Path]) -> Path | None:
    """The file that holds a method's recipe row: its own, or that of the method it inherits from."""
    return next((file for file, content in _lineage(method, tuple(folders)) if row in _table(content)), None)


def method_fields(method: str, folders: Sequence[Path]) -> dict[str, Any]:
    """A method's fields as its YAML declares them, inherited ones too; of `${recipe:KEY,DEFAULT}` the default."""
    return {name: _default(value) for name, value in written_fields(method, folders).items()}


def written_fields(method: str, folders: Sequence[Path]) -> dict[str, Any]:
    """A method's fields, inherited ones too, with interpolations as they are written."""
    fields: dict[str, Any] = {}
    for _, content in reversed(list(_lineage(method, tuple(folders)))):
        fields |= content
    return {name: value for name, value in fields.items() if name not in {"defaults", "recipes"}}


def method_table(method: str, folders: Sequence[Path]) -> dict[str, Any]:
    """A method's recipes, inherited rows too, as Hydra merges them."""
    table: dict[str, Any] = {}
    for _, content in reversed(list(_lineage(method, tuple(folders)))):
        for row, settings in _table(content).items():
            table[row] = {**table.get(row, {}), **settings}
    return table


def _default(value: Any) -> Any:
    match = DECLARED.fullmatch(value) if isinstance(value, str) else None
    return value if match is None or match[2] is None else safe_load(match[2])


def _lineage(method: str, folders: tuple[Path, ...]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """A method's file and those it inherits from, with their content."""
    file = file_of("method", method, folders)
    if file is None:
        return
    content = read(file)
    yield file, content
    for parent in content.get("defaults") or []:
        if isinstance(parent, str) and parent not in {"_self_", method} and not parent.startswith("/"):
            yield from _lineage(parent, folders)


def _table(content: Mapping[str, Any]) -> Mapping[str, Any]:
    table = content.get("recipes")
    return table if isinstance(table, Mapping) else {}


def read(file: Path) -> Mapping[str, Any]:
    """The plain content of a YAML file, with interpolations as they are written; empty where it cannot be read."""
    return _read(file, file.stat().st_mtime_ns)


@cache
def _read(file: Path, changed: int) -> Mapping[str, Any]:
    """The plain content of a YAML file; `changed` is its time of change, so that the cache never holds an old one."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, YAMLError, OmegaConfBaseException):  # Hydra has its own line for a file that cannot be read
        return {}
    return content if isinstance(content, Mapping) else {}


def check_recipes(method: str, scale: str, known: Mapping[str, Sequence[str]], folders: Sequence[Path]) -> None:
    """Refuse a recipe that no run could use, before a run takes another number in its place.

    Args:
        method: its rows are checked, inherited ones too.
        scale: the rows of its file are checked.
        known: the choices of the groups task, benchmark, scale and model.
        folders: the folders of YAML files, the strongest last.

    Raises:
        UserError: a row is not a table of settings, or names a task, benchmark, scale or backbone that does not exist,
            or has a key that nothing declares as `${recipe:KEY}` where the row counts.
    """
    lineage = list(_lineage(method, tuple(folders)))
    file = file_of("scale", scale, folders)
    if file is not None:
        lineage.append((file, read(file)))
    everywhere = {key for file, _ in lineage for key in _keys_declared_in(file)}
    for file, content in lineage:
        table = content.get("recipes") or {}
        if not isinstance(table, Mapping):
            raise UserError(f"{shown(file)}: recipes must be a table of rows, {EXAMPLE}")
        for row, settings in table.items():
            where = f"{shown(file)}, recipes, row '{row}'"
            _check_row_name(str(row), where, known)
            if not isinstance(settings, Mapping):
                raise UserError(f"{where}: a row is a table of settings, {EXAMPLE}")
            usable = everywhere | _keys_declared_for(str(row), known, folders)
            for key in settings:
                if key not in usable:
                    near = did_you_mean(str(key), usable)
                    raise UserError(f"{where}: no setting there is declared as ${{recipe:{key}}}.{near}")


def _check_row_name(row: str, where: str, known: Mapping[str, Sequence[str]]) -> None:
    place, at, backbone = row.partition("@")
    places = [name for group in ("task", "benchmark") for name in known[group] if name != "none"]
    scale, _, rest = place.partition("/")
    if scale in known["scale"]:
        place = rest or scale
        places = [*places, *known["scale"]]
    if place not in places:
        raise UserError(f"{where}: there is no task or benchmark '{place}'.{did_you_mean(place, places)}")
    if at and backbone not in known["model"]:
        raise UserError(f"{where}: there is no model '{backbone}'.{did_you_mean(backbone, known['model'])}")


def _keys_declared_for(row: str, known: Mapping[str, Sequence[str]], folders: Sequence[Path]) -> set[str]:
    """The keys that the files of config, benchmark and task declare where `row` counts."""
    place = row.partition("@")[0]
    scale, _, rest = place.partition("/")
    place = rest if scale in known["scale"] else place
    files = [folder / "config.yaml" for folder in folders]
    for task in known["task"]:
        file = file_of("task", task, folders)
        if file is None:
            continue
        benchmark = _benchmark_of(file, file.stat().st_mtime_ns)
        if place in {"", task, benchmark}:
            files += [file, *filter(None, [file_of("benchmark", benchmark, folders)])]
    return {key for file in files if file.is_file() for key in _keys_declared_in(file)}


@cache
def _benchmark_of(file: Path, changed: int) -> str:
    """The benchmark that a task's file chooses."""
    chosen = [entry for entry in _read(file, changed).get("defaults") or [] if isinstance(entry, Mapping)]
    return next((str(name) for entry in chosen for key, name in entry.items() if "/benchmark@" in str(key)), "none")


def _keys_declared_in(file: Path) -> set[str]:
    return _declared_keys(file, file.stat().st_mtime_ns)


@cache
def _declared_keys(file: Path, changed: int) -> set[str]:
    return {match[1] for match in DECLARED.finditer(file.read_text(encoding="utf-8"))}
