"""Find where the settings of a run come from: the command line, a file, or a row of a file's recipes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flexlora.settings import recipes
from flexlora.settings.resolve import flat_keys
from flexlora.settings.schema import RunSettings

# Groups of files, the strongest first, with the prefix of their keys among the settings.
LAYERS = {"experiment": "", "scale": "", "method": "method.", "task": "task.", "benchmark": "", "model": "model."}
DEFAULTS = ("method", "model")
"""Groups whose plain values are defaults, like the values of `conf/config.yaml`."""
INHERITING = ("method", "benchmark")
"""Groups whose files can inherit from another file of their group."""

NO_VALUES = {"defaults", "hydra", *recipes.NO_SETTINGS}


class Source(NamedTuple):
    """A setting whose value is not a plain default, and its source."""

    setting: str
    value: Any
    where: str
    """`command line`, or `conf/method/lora.yaml, recipes, row 'glue/cola'`."""


def sources(
    settings: RunSettings,
    plain: Mapping[str, Any],
    overrides: Sequence[str],
    choices: Mapping[str, Any],
    folders: Sequence[Path],
) -> list[Source]:
    """Return every setting of a run that is not a plain default, with the source of its value.

    Args:
        settings: the run's settings.
        plain: the same settings as plain data.
        overrides: the overrides of the command line, such as `training.epochs=3`.
        choices: the chosen file of every group, such as `{"task": "glue/cola"}`.
        folders: the folders of YAML files, the strongest last.
    """
    typed = {item.lstrip("+").partition("=")[0] for item in overrides if "=" in item}
    layers = list(_layers(choices, folders))
    with_tables = {
        **plain,
        "benchmark": settings.benchmark,
        "recipes_like": settings.recipes_like,
        "recipes": settings.recipes,
        "method": {"name": settings.method.name, "recipes": recipes.method_table(settings.method.name, folders)},
    }
    found = []
    for setting, value in flat_keys(plain).items():
        where = "command line" if setting in typed else _place(setting, layers, with_tables, folders)
        if where is not None:
            found.append(Source(setting, value, where))
    return found


class _Layer(NamedTuple):
    group: str
    file: Path
    values: Mapping[str, Any]


def _layers(choices: Mapping[str, Any], folders: Sequence[Path]) -> Iterator[_Layer]:
    for group, prefix in LAYERS.items():
        name = choices.get(group)
        file = None if name is None else recipes.file_of(group, str(name), folders)
        if file is None:
            continue
        values = recipes.read(file) if group not in INHERITING else recipes.written_fields(str(name), folders, group)
        plain = {key: value for key, value in values.items() if key not in NO_VALUES}
        yield _Layer(group, file, flat_keys(plain, prefix))
    file = next(folder / "config.yaml" for folder in reversed(folders) if (folder / "config.yaml").is_file())
    yield _Layer("config", file, flat_keys(recipes.read(file)))


def _place(setting: str, layers: Sequence[_Layer], config: Mapping[str, Any], folders: Sequence[Path]) -> str | None:
    """Return the source of a setting's value, or None if the value is a plain default."""
    holding = [layer for layer in layers if setting in layer.values]
    if not holding:
        return None
    layer = holding[0]
    key = recipes.declared({setting: layer.values[setting]}).get(setting)
    row = None if key is None else recipes.look_up(key[0], config)
    if row is not None:
        if row.in_method:
            file = recipes.row_file(row.row, config["method"]["name"], folders)
        else:
            file = recipes.file_of("scale", config["scale"], folders)
        place = f"{recipes.shown(file or layer.file)}, recipes, row '{row.row}'"
        is_borrowed = recipes.is_borrowed(row.row, config)
        return f"{place}, for a start: not tuned for this data" if is_borrowed else place
    if layer.group in ("config", *DEFAULTS) or (layer.group == "benchmark" and len(holding) == 1):
        return None
    return recipes.shown(layer.file)
