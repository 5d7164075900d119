"""Folders that settings name."""

from pathlib import Path

from flexlora.errors import UserError


def existing_folder(key: str, path: str) -> Path:
    """Return the folder at `path`, the value of the setting `key`.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder {folder}")
    return folder
