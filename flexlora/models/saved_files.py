"""Check the files of a saved model, without torch and without reading its weights."""

import json
from pathlib import Path

from flexlora.errors import UserError, one_line
from flexlora.paths import saved_folder
from flexlora.reading import TEXT, open_regular, read_bytes
from flexlora.text_files import decode

CONFIG = "config.json"
LENGTH = 8
"""The number of bytes at the start of a safetensors file, which hold the length of its header."""


def check_saved_model(path: str) -> None:
    """Check that `path`, the value of `model.path`, is a folder with a saved model, and that no file of it is cut off.

    Raises:
        UserError: there is no such folder, it has no config.json, or a file is damaged.
    """
    folder = require_config(path)
    try:
        json.loads(decode(read_bytes(folder / CONFIG, TEXT), folder / CONFIG))
        for file in sorted(folder.glob("*.safetensors")):
            _refuse_cut_off(file)
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"model.path: {path} is damaged: {one_line(error)}") from error


def require_config(path: str, kind: str = "saved") -> Path:
    """Return the folder at `path`, the value of `model.path`.

    Args:
        path: the setting's value.
        kind: what a folder with a config.json is, for the message: a `timm` model.

    Raises:
        UserError: there is no such folder, or it has no config.json.
    """
    folder = saved_folder("model.path", path)
    if not (folder / CONFIG).is_file():
        raise UserError(f"model.path: {path} has no {CONFIG}: it is not a {kind} model")
    return folder


def _refuse_cut_off(file: Path) -> None:
    """Compare the size of a safetensors file with the size that its header gives.

    Raises:
        UserError: the sizes differ, or the header is not valid.
        OSError: the file cannot be read.
    """
    with open_regular(file) as stream:
        length = int.from_bytes(stream.read(LENGTH), "little")
        header = stream.read(min(length, TEXT))
    try:
        tensors = {name: values for name, values in json.loads(header).items() if name != "__metadata__"}
        end = max((int(values["data_offsets"][1]) for values in tensors.values()), default=0)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file.name} has no valid header: copy it again") from error
    size, expected = file.stat().st_size, LENGTH + length + end
    if size != expected:
        raise UserError(f"{file.name} has {size} bytes, but {expected} by its header: copy it again")
