"""Turn a composed config into the typed settings of a run, and check them before data and model are loaded.

Hydra's `+key=value` adds a key that the schema does not have, so the schemas are applied here once more.
"""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.plugins import load_plugin
from flexlora.settings import recipes
from flexlora.settings.schema import TASK_SCHEMAS, MethodSettings, RunSettings

# The lowest and the highest allowed value of a setting. Types check whether null is allowed.
MAX_SEED = 2**31 - 1
LONGEST_NAME, LONGEST_PATH = 255, 4000  # in bytes, on any file system
MAX_WIDTH = 2**16  # wider than any adapted linear or trained head
LIMITS: dict[str, tuple[float, float]] = {
    "training.epochs": (1, math.inf),
    "training.max_steps": (1, math.inf),
    "training.batch_size": (1, math.inf),
    "training.eval_batch_size": (1, math.inf),
    "training.gradient_accumulation": (1, math.inf),
    "training.weight_decay": (0, math.inf),
    "training.warmup_ratio": (0, 1),
    "training.min_lr_rate": (0, 1),
    "training.warmup_steps": (0, math.inf),
    "training.eval_every": (0, math.inf),
    "training.checkpoint_every": (1, math.inf),
    "training.log_every": (1, math.inf),
    "task.num_labels": (1, MAX_WIDTH),
    "task.num_classes": (2, MAX_WIDTH),
    "task.random_resized_crop": (0.01, 1),
    "task.horizontal_flip": (0, 1),
    "task.train_share": (0.001, 1),
    "task.test_share": (0.001, 1),
    "task.split_seed": (0, MAX_SEED),
    "task.max_length": (1, 2**20),
    "task.tsv.width": (1, math.inf),
    "task.tsv.broken_rows": (0, math.inf),
    "task.num_beams": (1, math.inf),
    "task.max_new_tokens": (1, math.inf),
    "task.train_rows": (1, math.inf),
    "task.temperature": (0, math.inf),
    "task.top_p": (0, 1),
    "task.num_samples": (1, math.inf),
    "task.program_timeout": (0.1, 3600),
    "task.sampling_seed": (0, MAX_SEED),
    "task.max_train_rows": (1, math.inf),
    "task.max_eval_rows": (1, math.inf),
    "task.validation_rows": (1, math.inf),
    "method.r": (0, MAX_WIDTH),
    "method.max_rank": (1, MAX_WIDTH),
    "method.init_r": (1, MAX_WIDTH),
    "paper_steps": (1, math.inf),
    "parameter_budget": (1, math.inf),
    "seed": (0, MAX_SEED),
    "data_seed": (0, MAX_SEED),
}
_TASKS: dict[tuple[type, str], Any] = {}
# Words that a method's field takes in place of its number.
WORDS = {"lambda_lr_ratio": ("auto",)}
POSITIVE = ("training.learning_rate", "training.max_grad_norm")
FOLDER_NAMES = ("scale", "variant", "method.name", "model.name")
# Characters that YAML does not preserve, that control a terminal, or that represent bytes that are not UTF-8 (they
# cannot be written to a file).
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Paths that must not be empty. A shell variable that is not set gives an empty path, which would be the working folder.
PATHS = (
    *("output_root", "adapter", "method.ranks_from", "model.path"),
    *("task.data_dir", "task.token_cache", "task.image_cache"),
)


def resolve(config: DictConfig, folders: Sequence[Path] | None = None) -> tuple[RunSettings, dict[str, Any]]:
    """Return the typed settings of a composed config, and the same as plain data for the record.

    Args:
        folders: the folders of YAML files; a later one replaces files of an earlier one. None: `conf` only.

    Raises:
        UserError: a key is in no schema, a value is missing, or a value has the wrong type or is out of range.
    """
    folders = folders or [conf_dir()]
    try:
        unresolved = _unresolved(config)
        _refuse_missing(unresolved, config, folders)
        plain: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    checked_elsewhere: dict[str, Any] = {"task": None, "method": None, "recipes": {}, "for_a_start": {}}
    run: RunSettings = _strict({**plain, **checked_elsewhere}, RunSettings, "", known=plain)
    run.recipes = plain["recipes"]
    run.for_a_start = recipes.borrowed(unresolved, config)
    for key in recipes.NO_SETTINGS:
        plain.pop(key, None)
    plain["method"].pop("recipes", None)
    run.task = _task(plain["task"])
    for key in ("name", "kind"):
        if not isinstance(plain["method"][key], str):
            raise UserError(f"method.{key} must be a text, not {plain['method'][key]!r}")
    plain["method"] |= _as_declared(plain["method"], folders)
    run.method = _method(plain["method"])
    _refuse_out_of_range(plain)
    _refuse_what_no_run_takes(plain)
    return run, plain


def _task(values: dict[str, Any]) -> Any:
    """Return `values` as an object of the family's schema. Runs of a sweep that have the same task share the work."""
    schema = task_schema(values["family"])
    key = (schema, repr(values))
    if key not in _TASKS:
        _TASKS[key] = _strict(values, schema, "task.")
    return copy.deepcopy(_TASKS[key])


def resolve_method(config: DictConfig) -> MethodSettings:
    """Return the method of a composed config. A field whose recipe is missing has the value "???"."""
    fields: Any = OmegaConf.to_container(config.method, resolve=False)
    fields.pop("recipes", None)
    for name, (key, has_default) in recipes.declared(fields).items():
        missing = not has_default and recipes.look_up(key, config) is None
        fields[name] = "???" if missing else config.method[name]
    return _method(fields)


def _method(plain: Mapping[str, Any]) -> MethodSettings:
    fields = {key: value for key, value in plain.items() if key not in {"name", "kind"}}
    return MethodSettings(plain["name"], plain["kind"], fields)


def task_schema(family: str) -> type:
    """Return the dataclass of `task.*` for a family. A name with a dot is a user's module with a class `Settings`.

    Raises:
        UserError: there is no such family, or the module has no dataclass `Settings`.
    """
    if "." in family:
        schema = load_plugin((), family, "task.family", "Settings")
        if not (isinstance(schema, type) and is_dataclass(schema)):
            raise UserError(f"task.family: {family}.Settings must be a dataclass: its fields are the keys of task.*")
        return schema
    if family not in TASK_SCHEMAS:
        known = ", ".join(TASK_SCHEMAS)
        raise UserError(f"there is no task.family '{family}'.{did_you_mean(family, TASK_SCHEMAS)} There are: {known}.")
    return TASK_SCHEMAS[family]


def _as_declared(method: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Return the fields that must change so that numbers have the type in the method's YAML.

    `0` and `0.0` then have the same hash. The method's own class checks all types and ranges.

    Raises:
        UserError: a field is a text or a truth value, but the YAML declares a number.
    """
    changed: dict[str, Any] = {}
    declared = recipes.method_fields(method["name"], folders)
    for name, value in method.items():
        example = declared.get(name)
        if isinstance(example, bool) or not isinstance(example, int | float):
            continue
        if value in WORDS.get(name, ()):
            continue
        if isinstance(value, bool | str):
            raise UserError(f"method.{name} must be a number, not {value!r}")
        if isinstance(example, float) and isinstance(value, int):
            changed[name] = float(value)
    return changed


def flat_keys(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under flat keys: `{"training": {"epochs": 8}}` becomes `{"training.epochs": 8}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _unresolved(config: DictConfig) -> dict[str, Any]:
    """Return the settings of a composed config under flat keys, with their interpolations as they are written."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    plain["method"].pop("recipes", None)
    return flat_keys(plain)


def _refuse_missing(flat: Mapping[str, Any], config: DictConfig, folders: Sequence[Path]) -> None:
    wanting = [key for key, value in flat.items() if value == "???"]
    if wanting:  # a YAML of the user lacks a key of its schema
        raise UserError(f"{', '.join(wanting)} is not set: give it in the YAML, or as {wanting[0]}=VALUE.")
    without = [
        setting
        for setting, (key, has_default) in recipes.declared(flat).items()
        if not has_default and recipes.look_up(key, config) is None
    ]
    if without:
        raise UserError(_no_recipe(without, config, folders))


def _no_recipe(settings: list[str], config: DictConfig, folders: Sequence[Path]) -> str:
    task, method, scale, benchmark = config.task.name, config.method.name, config.scale, config.get("benchmark")
    of_method = settings[0].startswith(("training.", "method.", "paper_steps"))
    group, name = ("method", method) if of_method else ("scale", scale)
    rows = [task] if benchmark in (None, task) else [task, benchmark]
    rows = rows if of_method else [f"{scale}/{row}" for row in rows]
    file = recipes.file_of(group, name, folders)
    where = f"conf/{group}/{name}.yaml" if file is None else recipes.shown(file)
    choice = " or ".join(f"'{row}'" for row in rows)
    return (
        f"{', '.join(settings)} is not set: {where} has no recipe row for task {task}. "
        f"Add {settings[0]} to row {choice} of its recipes, or give {settings[0]}=VALUE."
    )


def _refuse_what_no_run_takes(plain: Mapping[str, Any]) -> None:
    """Check for characters and numbers that no setting may have, including the method's settings.

    Raises:
        UserError: a setting has such a character or number.
    """
    for key, value in flat_keys(plain).items():
        for item in value if isinstance(value, list) else [value]:
            if CONTROL.search(f"{key}{item}"):
                raise UserError(f"{key} contains a line break, a control character or bytes that are not UTF-8: {item}")
            if isinstance(item, int) and abs(item) > MAX_SEED:
                raise UserError(f"{key} must be between {-MAX_SEED} and {MAX_SEED}, not {item}")
            if isinstance(item, float) and not math.isfinite(item):
                raise UserError(f"{key} must be a finite number, not {item}")


def _refuse_out_of_range(plain: Mapping[str, Any]) -> None:
    values = flat_keys(plain)
    for key, (lowest, highest) in LIMITS.items():
        value = values.get(key)
        if isinstance(value, int | float) and not lowest <= value <= highest:  # types are checked elsewhere
            allowed = f"at least {lowest}" if highest == math.inf else f"between {lowest} and {highest}"
            raise UserError(f"{key} must be {allowed}, not {value}")
    for key in POSITIVE:
        value = values.get(key)
        if isinstance(value, int | float) and not value > 0:
            raise UserError(f"{key} must be above 0, not {value}")
    for key in FOLDER_NAMES:
        value = values.get(key)
        if value is not None and ("/" in value or not _is_folder_name(value)):
            raise UserError(f"{key} becomes a folder name; '{value}' is not a valid folder name.")
    task = values["task.name"]
    if not all(_is_folder_name(part) for part in task.split("/")):
        raise UserError(f"task.name becomes folder names, as in glue/cola; '{task}' is not valid.")
    for key in PATHS:
        if values.get(key) == "":
            raise UserError(f"{key} is empty: give a folder, or leave the setting out")
        if values.get(key) is not None:
            if not isinstance(values[key], str):
                raise UserError(f"{key} must be a path, not {values[key]!r}")
            _check_path(key, values[key])


def _check_path(key: str, path: str) -> None:
    encoded = path.encode(errors="surrogatepass")
    if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise UserError(f"{key} is too long for a path: {path}")
    try:
        Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}: the user in {path} has no home folder on this machine") from error


def _is_folder_name(name: str) -> bool:
    return name not in {"", ".", ".."} and name.isprintable() and len(name.encode()) <= LONGEST_NAME


def _strict(values: Mapping[str, Any], schema: type, prefix: str, known: Mapping[str, Any] | None = None) -> Any:
    """Return `values` as an object of `schema`. A message proposes a key of `schema` or of `known` (or of `values`)."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(_structured(schema), dict(values)))
    except ConfigKeyError as error:
        key = f"{prefix}{error.full_key}"
        names = {f"{prefix}{name}" for name in [*flat_keys(known or values), *(f.name for f in fields(schema))]}
        names = {name for name in names if name != key and not key.startswith(f"{name}.")}
        raise UserError(f"there is no setting '{key}'.{did_you_mean(key, names)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{prefix}{error.full_key}: {one_line(error)}") from error


@cache
def _structured(schema: type) -> DictConfig:
    """Return the schema as an OmegaConf object. It can be cached, because a merge copies it."""
    structured: DictConfig = OmegaConf.structured(schema)
    return structured
