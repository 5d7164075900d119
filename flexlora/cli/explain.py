"""Explain Hydra's errors in one line, with a suggestion."""

import re
import sys
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.reading import regular
from flexlora.settings import flat_keys
from flexlora.settings.recipes import check_recipes

GROUPS = ("task", "method", "model", "scale", "experiment")


def require_task(config: DictConfig) -> list[Path]:
    """Check that a task is chosen, and that the chosen YAML files and recipes are valid.

    Returns:
        The folders of YAML files. A later folder has precedence.

    Raises:
        UserError: no task is chosen, a YAML file of the user lacks its name or kind, it has the name of a file of the
            package, or a recipe of the method or the scale is invalid.
    """
    folders = config_folders()
    _refuse_hidden_files(folders)
    for group, kind in {"task": "family", "method": "kind", "model": "kind"}.items():
        chosen = config.get(group)
        if not isinstance(chosen, DictConfig) or not {"name", kind} <= {str(key) for key in chosen}:
            raise UserError(f"the YAML of this {group} lacks 'name' or '{kind}', which those in conf/{group} have")
    if config.task.name == "none":
        tasks = [name for name in choices("task", folders) if name != "none"]
        raise UserError(f"no task is given: task=NAME, one of {', '.join(tasks)}")
    method, scale = (HydraConfig.get().runtime.choices[group] for group in ("method", "scale"))
    _check_recipes_once(method, scale, tuple(folders))
    return folders


def _refuse_hidden_files(folders: list[Path]) -> None:
    """Check that no chosen file of the user has the name of a file of the package: Hydra would silently ignore it.

    Raises:
        UserError: two folders have a file with this name.
    """
    for group, name in HydraConfig.get().runtime.choices.items():
        if group not in GROUPS:
            continue
        files = [file for folder in folders if (file := folder / group / f"{name}.yaml").is_file()]
        if len(files) > 1:
            raise UserError(
                f"{files[0]} has the name of a {group} of the package, which would be used instead: rename it "
                f"(a file may inherit from ours: 'defaults: [{name}, _self_]')"
            )


@cache
def _check_recipes_once(method: str, scale: str, folders: tuple[Path, ...]) -> None:
    """Check the recipes of a method once in a sweep."""
    known = {group: choices(group, list(folders)) for group in ("task", "benchmark", "scale", "model")}
    check_recipes(method, scale, known, folders)


def config_folders() -> list[Path]:
    """Return the folders of YAML files of this run. A later folder has precedence."""
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in reversed(sources) if source.schema == "file"]


def choices(group: str, folders: list[Path]) -> list[str]:
    """Return every choice of a config group in `folders`, as the command line writes it: `glue/cola`."""
    found = {
        str(file.relative_to(folder / group).with_suffix(""))
        for folder in folders
        for file in (folder / group).rglob("*.yaml")
    }
    return sorted(found)


def method_files() -> dict[str, Path]:
    """Return the YAML file of every method of the package and of `--config-dir`, by the method's name."""
    found = {name: folder / "method" / f"{name}.yaml" for folder in _folders() for name in choices("method", [folder])}
    return dict(sorted(found.items()))


def list_choices() -> str:
    """Return a line for every config group with its choices, for `--help`."""
    listed = {group: [name for name in choices(group, _folders()) if name != "none"] for group in GROUPS}
    return "\n".join(f"{group}: {', '.join(names)}" for group, names in listed.items())


def explain(error: HydraException | OmegaConfBaseException | YAMLError | OSError) -> str:
    """Return one line for an error that Hydra raised while it composed a config or started a sweep."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: not valid YAML: {error.problem}"
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # some of Hydra's errors are both
        reason = error.strerror or error
        return f"cannot write {error.filename or 'multirun.yaml'}: {reason}. Set output_root=DIR."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        missing = str(error.missing_cfg_file).removesuffix(".yaml")
        launcher = re.match(r"hydra/launcher/(joblib|submitit)", missing)
        if launcher:
            chosen = missing.replace("launcher/", "launcher=")
            return f"{chosen} is not installed: pip install 'flexlora[{launcher[1]}]'"
        group, _, name = missing.partition("/")
        if group in GROUPS:
            for folder in _folders():
                odd = _why_not_read(folder / f"{missing}.yaml")
                if odd is not None:
                    return odd
            known = [choice for choice in choices(group, _folders()) if choice != "none"]
            return f"there is no {group} '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}."
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        quoted = f"; with its own quotes: '{key}=\"{value}\"'" if equals and not set(value) & set("'\"") else ""
        return f"cannot read '{error.override}': settings are written key=value{quoted}"
    text = one_line(error)
    if text.startswith("Ambiguous value for argument "):
        return f"{text.removeprefix('Ambiguous value for argument ')} is several values: -m runs each of them"
    in_file = re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)\n\s*full_key: (\S+)", str(error))
    if in_file:
        file, what, key = in_file.groups()
        if what.startswith("Key "):
            return f"{file}.yaml: there is no setting '{key}'.{did_you_mean(key, _known_keys())}"
        return f"{file}.yaml: {key}: {what}"
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown[1]
        near = did_you_mean(key, _known_keys())
        more = ""
        if key.startswith("method."):
            more = " A field of PEFT's beyond the method's file is set with +, in a sweep over methods with ++."
        return f"there is no setting '{key}'.{near}{more}"
    if error.__cause__ is not None and text.startswith("Error merging override "):
        return f"{text.removeprefix('Error merging override ')}: {_plainly(one_line(error.__cause__))}"
    return text


def _why_not_read(file: Path) -> str | None:
    """Return why Hydra does not find an existing file (it is not a regular file), or None if there is no reason."""
    try:
        regular(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{file}: {error.strerror}"
    return None


def _plainly(text: str) -> str:
    """Replace OmegaConf's words for frequent errors by plain ones."""
    if text.endswith("is not a ListConfig, list or tuple."):
        return "a list is written in brackets, [a,b]"
    return re.sub(r"^field '[^']+' is not Optional$", "it cannot be null", text)


def _folders() -> list[Path]:
    """Return the package's folder of YAML files, and the folder of `--config-dir` if it is given."""
    folders = [conf_dir()]
    arguments = sys.argv[1:]
    for position, argument in enumerate(arguments):
        if argument.startswith("--config-dir="):
            folders.append(Path(argument.partition("=")[2]))
        elif argument in {"--config-dir", "-cd"} and position + 1 < len(arguments):
            folders.append(Path(arguments[position + 1]))
    return folders


def _known_keys() -> list[str]:
    """Return the names of all settings of the choices on the command line, composed without its other overrides."""
    chosen = [item for item in sys.argv[1:] if item.partition("=")[0] in GROUPS and "," not in item]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            try:
                composed = compose("config", overrides=chosen)
            except HydraException:  # a file of the user may be broken
                composed = compose("config")
    except HydraException:
        return list(GROUPS)
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    keys = flat_keys(plain)
    return [*GROUPS, *(key for key in keys if not key.startswith(("recipes", "method.recipes", "benchmark")))]
