"""Check a YAML file of a `--config-dir` before Hydra reads it."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import MarkedYAMLError, YAMLError

from flexlora.errors import UserError, one_line
from flexlora.reading import read_yaml_text

RUN_BY_HYDRA = ("_target_", "()")
"""The keys whose value is imported and called by Hydra, or by the logging that it configures. Our files have none."""


def check_own_yaml(file: Path) -> None:
    """Check that Hydra can read a file of the user, and that the file names no code that Hydra would run.

    Hydra itself reports a mistake in YAML's grammar, with the line.

    Raises:
        UserError: the file is not a regular file, is too large, is not UTF-8, has values that YAML cannot construct, or
            has a key of `RUN_BY_HYDRA`.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(read_yaml_text(file))), resolve=False)
    except MarkedYAMLError as error:
        if error.problem_mark is not None:
            return
        raise UserError(f"{file}: {one_line(error)}") from error
    except (OSError, YAMLError) as error:
        raise UserError(f"{file}: {getattr(error, 'strerror', None) or one_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{file}: its values are nested too deeply") from error
    except Exception as error:  # YAML's constructors raise any error: a number of 5,000 digits, day 32
        raise UserError(f"{file}: a value cannot be read: {one_line(error)}") from error
    for place in _places_of_code(content, ""):
        raise UserError(
            f"{file}: {place} names code that Hydra would run: leave it out "
            "(method.kind, method.python_module and task.family name code of your own)"
        )


def _places_of_code(content: Any, place: str) -> Iterator[str]:
    """Yield the key of each value in `content` that Hydra would run. A resolver could also parse one out of a text."""
    if isinstance(content, dict):
        for key, value in content.items():
            inner = f"{place}.{key}".removeprefix(".")
            if key in RUN_BY_HYDRA:
                yield inner
            else:
                yield from _places_of_code(value, inner)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from _places_of_code(value, f"{place}[{number}]")
    elif isinstance(content, str) and "_target_" in content:
        yield place
