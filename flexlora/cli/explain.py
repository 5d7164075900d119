"""Explain Hydra's errors in one line, with a suggestion."""

import re
from functools import cache
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from flexlora.cli.choices import GROUPS, choices, config_folders, given_folders, known_keys
from flexlora.cli.suggestions import meant_choice, meant_setting
from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.reading import regular
from flexlora.settings.recipes import check_recipes


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
            for folder in given_folders():
                odd = _why_not_read(folder / f"{missing}.yaml")
                if odd is not None:
                    return odd
            known = [choice for choice in choices(group, given_folders()) if choice != "none"]
            return f"there is no {group} '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}."
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        if key in GROUPS and not equals:
            return f"cannot read '{key}': settings are written key=value{meant_choice(key)}"
        quoted = f"; with its own quotes: '{key}=\"{value}\"'" if equals and not set(value) & set("'\"") else ""
        return f"cannot read '{error.override}': settings are written key=value{quoted}"
    text = one_line(error)
    if text.startswith("Ambiguous value for argument "):
        return f"{text.removeprefix('Ambiguous value for argument ')} is several values: -m runs each of them"
    in_file = re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)\n\s*full_key: (\S+)", str(error))
    if in_file:
        file, what, key = in_file.groups()
        if what.startswith("Key "):
            return f"{file}.yaml: there is no setting '{key}'.{did_you_mean(key, known_keys())}"
        return f"{file}.yaml: {key}: {what}"
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown[1]
        near = meant_setting(key)
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
