"""Check the files and folders that settings name."""

from pathlib import Path

from flexlora.errors import UserError
from flexlora.reading import special_files


def existing_folder(key: str, path: str) -> Path:
    """Return the folder at `path`, the value of the setting `key`.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder {folder}")
    return folder


def existing_path(key: str, path: str) -> Path:
    """Return the file or folder at `path`, the value of the setting `key`.

    Raises:
        UserError: there is neither.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{key}: there is no file or folder {place}")
    return place


def saved_folder(key: str, path: str) -> Path:
    """Return the folder at `path`, whose files transformers or PEFT opens.

    Raises:
        UserError: there is no such folder, or it has a pipe, a socket or a device, which would stop the library.
    """
    folder = existing_folder(key, path)
    for name, kind in special_files(folder):
        raise UserError(f"{key}: {folder / name} is {kind}, not a regular file: remove it")
    return folder
