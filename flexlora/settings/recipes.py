"""Recipes: a method's numbers for tasks, benchmarks and scales, as rows of a table in the method's YAML.

A setting that takes its value from a recipe is declared as `tinit: ${recipe:method.tinit}`, or, with a default, as
`r: ${recipe:method.r,32}`. The resolver of this module replaces it by the value in the first row that has one.
`look_up` gives the order: rows of the current scale come before others, a task's rows before its benchmark's, and a
row that names the backbone (`glue/cola@roberta_base`) before one that does not. The command line and an experiment
replace the interpolation itself, so they always win.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError, did_you_mean
from flexlora.reading import read_text, read_yaml_text

DECLARED = re.compile(r"\$\{recipe:\s*([\w.]+)\s*(?:,(.*))?\}")
EXAMPLE = "as in glue: {training.learning_rate: 1.0e-3}"
NO_SETTINGS = ("benchmark", "recipes_like", "recipes", "for_a_start")
"""Keys of a composed config that only recipes use. A run's settings, record and hash do not include them."""


class Found(NamedTuple):
    """A value of a recipe and the row that it comes from."""

    value: Any
    row: str
    in_method: bool
    """Whether the row is in the method's file; if not, it is in the scale's file."""


class Missing(Exception):
    """A setting has no default, and no row has a value for it."""


def register_resolver() -> None:
    """Register the resolvers of `${recipe:KEY}`, `${recipe:KEY,DEFAULT}` and `${stem:PATH,DEFAULT}` with OmegaConf."""
    OmegaConf.register_new_resolver("recipe", _resolve, replace=True)
    OmegaConf.register_new_resolver("stem", _stem, replace=True)


def _resolve(key: str, *default: Any, _root_: DictConfig) -> Any:
    found = look_up(key, _root_)
    if found is not None:
        return found.value
    if default:
        return default[0]
    raise Missing(key)


def _stem(path: str | None, default: str = "data") -> str:
    """Return the name of a file or folder without its endings, as a folder name: `my reviews.csv` → `my_reviews`."""
    name = "" if path is None else Path(path).expanduser().resolve().name
    return re.sub(r"[^\w-]+", "_", name.partition(".")[0]).strip("_") or default


def _at_scale(config: Mapping[str, Any]) -> list[str]:
    """Return the names of this scale's rows, the strongest first: `tiny/glue/cola@roberta_base`, ..., `tiny`."""
    scale = config["scale"]
    return [*(f"{scale}/{name}" for name in _at_any_scale(config)), *_with_backbone([scale], config)]


def _at_any_scale(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the rows without a scale, the strongest first: `glue/cola@roberta_base`, ..., `glue`."""
    places = dict.fromkeys((config["task"]["name"], config.get("benchmark"), config.get("recipes_like")))
    return _with_backbone([place for place in places if place is not None], config)


def _with_backbone(places: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    backbone = config["model"]["name"]
    named = [] if backbone is None else [f"@{backbone}"]
    return [f"{place}{suffix}" for place in places for suffix in (*named, "")]


def look_up(key: str, config: Mapping[str, Any]) -> Found | None:
    """Return the value that recipes give the setting `key`, or None if no row for this run has it."""
    tables = [
        (table, set(table), in_method)
        for table, in_method in ((config["method"].get("recipes"), True), (config.get("recipes"), False))
        if table
    ]
    for names in (_at_scale(config), _at_any_scale(config)):
        for table, rows, in_method in tables:
            for name in names:
                row = table[name] if name in rows else None  # a set: looking up an absent row in OmegaConf is slow
                if row is not None and key in row:
                    return Found(row[key], name, in_method)
    return None


def is_borrowed(row: str, config: Mapping[str, Any]) -> bool:
    """Return whether a row is of the benchmark `recipes_like`, whose numbers were not tuned for this data."""
    return config.get("recipes_like") in row.partition("@")[0].split("/")


def borrowed(unresolved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings whose value is from a row of `recipes_like`, with the row's name.

    Args:
        unresolved: the composed `config` as flat plain data, with its interpolations as they are written.
    """
    if config.get("recipes_like") is None:
        return {}
    of_training = {key: value for key, value in unresolved.items() if not key.startswith("model.")}
    found = {setting: look_up(key, config) for setting, (key, _) in declared(of_training).items()}
    return {setting: row.row for setting, row in found.items() if row is not None and is_borrowed(row.row, config)}


def declared(unresolved: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return the settings that are declared as `${recipe:KEY}`: their KEY, and whether they have a default.

    Args:
        unresolved: a composed config as flat plain data, with its interpolations as they are written.
    """
    found = {}
    for setting, value in unresolved.items():
        match = DECLARED.match(value) if isinstance(value, str) else None
        if match:
            found[setting] = (match[1], match[2] is not None)
    return found


# --- the files, for checks and for messages with the place of a value -------------------------------------------------


def file_of(group: str, name: str, folders: Sequence[Path]) -> Path | None:
    """Return the YAML file of a choice from the last of `folders` that has one, or None if no folder has one."""
    files = [folder / group / f"{name}.yaml" for folder in folders]
    return next((file for file in reversed(files) if file.is_file()), None)


def shown(file: Path) -> str:
    """Return the path of a YAML file for messages: `conf/method/lora.yaml` if it is in `conf`, or the whole path."""
    ours = conf_dir()
    return f"conf/{file.relative_to(ours).as_posix()}" if file.is_relative_to(ours) else str(file)


def row_file(row: str, method: str, folders: Sequence[Path]) -> Path | None:
    """Return the file that has the recipe row of a method: the method's own file, or one that it inherits from."""
    return next((file for file, content in lineage(method, tuple(folders)) if row in _table(content)), None)


def method_fields(method: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Return a method's fields, inherited ones too; `${recipe:KEY,DEFAULT}` is replaced by its default."""
    return {name: _default(value) for name, value in written_fields(method, folders).items()}


def written_fields(name: str, folders: Sequence[Path], group: str = "method") -> dict[str, Any]:
    """Return the fields of a method (or of another group's choice), inherited ones too, with their interpolations."""
    fields: dict[str, Any] = {}
    for _, content in reversed(list(lineage(name, tuple(folders), group))):
        for key, value in content.items():
            inherited = fields.get(key)
            if isinstance(value, Mapping) and isinstance(inherited, Mapping):
                value = {**inherited, **value}
            fields[key] = value
    return {name: value for name, value in fields.items() if name not in {"defaults", "recipes"}}


def method_table(method: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Return a method's recipe rows, merged with inherited rows as Hydra does."""
    table: dict[str, Any] = {}
    for _, content in reversed(list(lineage(method, tuple(folders)))):
        for row, settings in _table(content).items():
            table[row] = {**table.get(row, {}), **settings}
    return table


def _default(value: Any) -> Any:
    match = DECLARED.fullmatch(value) if isinstance(value, str) else None
    return value if match is None or match[2] is None else yaml.safe_load(match[2])


def lineage(name: str, folders: tuple[Path, ...], group: str = "method") -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the file of a method (or of another group's choice) and the files it inherits from, with their content."""
    file = file_of(group, name, folders)
    if file is None:
        return
    content = read(file)
    yield file, content
    for parent in content.get("defaults") or []:
        if isinstance(parent, str) and parent not in {"_self_", name} and not parent.startswith("/"):
            yield from lineage(parent, folders, group)


def _table(content: Mapping[str, Any]) -> Mapping[str, Any]:
    table = content.get("recipes")
    return table if isinstance(table, Mapping) else {}


def read(file: Path) -> Mapping[str, Any]:
    """Return the content of a YAML file with unresolved interpolations. It is empty if the file cannot be read."""
    try:
        return _read(file, file.stat().st_mtime_ns)
    except Exception:  # YAML's constructors raise any kind of error; Hydra reports a file that cannot be read
        return {}  # not kept: the next read of the file may succeed


@cache
def _read(file: Path, changed: int) -> Mapping[str, Any]:
    """Return the content of a YAML file. `changed`, its time of change, keeps the cache from returning old content."""
    content: Any = yaml.load(read_yaml_text(file), _loader())
    return content if isinstance(content, Mapping) else {}


@cache
def _loader() -> Any:
    """Return OmegaConf's loader of YAML. With libyaml, which reads a command's sixty files in a tenth of the time."""
    plain = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return plain

    class Loader(yaml.cyaml.CParser, plain):  # type: ignore[misc, valid-type]
        def __init__(self, stream: str) -> None:
            yaml.cyaml.CParser.__init__(self, stream)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

    return Loader


def check_recipes(method: str, scale: str, known: Mapping[str, Sequence[str]], folders: Sequence[Path]) -> None:
    """Check that every recipe row can be used. With a row that no run can use, a run would silently take another value.

    Args:
        method: name of the method whose rows are checked, inherited rows too.
        scale: name of the scale whose rows are checked.
        known: the choices of the groups task, benchmark, scale and model.
        folders: the folders of YAML files, the strongest last.

    Raises:
        UserError: a row is not a table of settings, or names a task, benchmark, scale or backbone that does not exist,
            or has a key that no file for the row's runs declares as `${recipe:KEY}`.
    """
    files = list(lineage(method, tuple(folders)))
    file = file_of("scale", scale, folders)
    if file is not None:
        files.append((file, read(file)))
    everywhere = {key for file, _ in files for key in _keys_declared_in(file)}
    for file, content in files:
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
    """Return the keys that the YAML files of config, benchmark and task declare for the runs of `row`."""
    place = row.partition("@")[0]
    scale, _, rest = place.partition("/")
    place = rest if scale in known["scale"] else place
    files = [folder / "config.yaml" for folder in folders]
    for task in known["task"]:
        file = file_of("task", task, folders)
        if file is None:
            continue
        benchmark = _benchmark_of(file)
        if place in {"", task, benchmark}:
            files += [file, *(inherited for inherited, _ in lineage(benchmark, tuple(folders), "benchmark"))]
    return {key for file in files if file.is_file() for key in _keys_declared_in(file)}


def _benchmark_of(file: Path) -> str:
    """Return the benchmark that a task's file names."""
    chosen = [entry for entry in read(file).get("defaults") or [] if isinstance(entry, Mapping)]
    return next((str(name) for entry in chosen for key, name in entry.items() if "/benchmark@" in str(key)), "none")


def _keys_declared_in(file: Path) -> set[str]:
    return _declared_keys(file, file.stat().st_mtime_ns)


@cache
def _declared_keys(file: Path, changed: int) -> set[str]:
    return {match[1] for match in DECLARED.finditer(read_text(file))}
