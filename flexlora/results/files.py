"""Writes files in one move, so that no file is ever half written. Also reads and writes JSON."""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from flexlora.reading import open_regular, read_bytes, read_lines

# A part of the name of every file that `replacing` makes. Only files with this part are deleted.
MADE_HERE = "flexlora-"
PART = re.compile(rf"\..+\.{MADE_HERE}[0-9a-f]{{8}}\.part")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty file to write to. It then replaces `path` in one move, or is removed if an error occurs.

    The file is locked while it is written. A file that a killed process left in this folder has no lock: it is deleted.
    """
    with contextlib.suppress(OSError):
        _remove_left_behind(path.parent)
    handle, part = _new_part(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)


def _new_part(path: Path) -> tuple[int, Path]:
    """Create and lock the file that shall replace `path`. Its mode is the usual mode of a new file of this user."""
    while True:
        part = path.with_name(f".{path.name}.{MADE_HERE}{secrets.token_hex(4)}.part")
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Another process may have found the file before it was locked, and may then delete it.
        if lock(handle) is not False and os.fstat(handle).st_nlink > 0:
            return handle, part
        os.close(handle)


def _remove_left_behind(folder: Path) -> None:
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if PART.fullmatch(entry.name)]
    for part in left:
        with contextlib.suppress(OSError):
            handle = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if lock(handle):
                    Path(part).unlink()
            finally:
                os.close(handle)


def lock(handle: int) -> bool | None:
    """Lock an open file until it is closed.

    Returns:
        True if this process has the lock, False if another process has it, None if locks do not work here.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, ImportError):  # this file system or this operating system has no such locks
        return None
    return True


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one move: nobody ever reads a half-written file."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content` in one move."""
    with replacing(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Make the system write a file, or the entries of a folder, to the disk before this function returns.

    Raises:
        OSError: the disk fails, or is full.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path, leave_out: str = "") -> None:
    """Make the system write all files and folders under `folder` to the disk, except the entry `leave_out`.

    Raises:
        OSError: the disk fails, or is full.
    """
    for path in folder.iterdir():
        if path.is_symlink() or path.name == leave_out:
            continue
        if path.is_dir():
            sync_tree(path)
        elif path.is_file():
            sync(path)
    sync(folder)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file. The file is read in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON. NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class JsonLines:
    """A file with one JSON object on each line, flushed after each line.

    Without `position` the file starts empty. With `position` it continues there, and all later content is deleted.

    Raises:
        ValueError: the content before `position` has changed.
    """

    def __init__(self, path: Path, position: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self._bytes = 0
        if position is None:
            self._file: BinaryIO = path.open("wb")
            return
        held = read_bytes(path)[: position["bytes"]] if path.is_file() else b""
        self._count(held)
        if self._position() != dict(position):
            raise ValueError(f"{path} is not what it was when the run was stopped")
        self._file = path.open("r+b")
        self._file.truncate(self._bytes)
        self._file.seek(self._bytes)

    def write(self, row: dict[str, Any]) -> None:
        line = f"{to_json(row)}\n".encode()
        self._file.write(line)
        self._file.flush()
        self._count(line)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all lines written so far."""
        return read_json_lines(self._path)

    def position(self) -> dict[str, Any]:
        """Write the file to the disk; return its length and the SHA-256 of its content."""
        os.fsync(self._file.fileno())
        return self._position()

    def close(self) -> None:
        self._file.close()

    def _position(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def _count(self, content: bytes) -> None:
        self._hash.update(content)
        self._bytes += len(content)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; no objects if the file does not exist.

    A last line without a line break is skipped, because its writer was stopped.

    Raises:
        ValueError: a complete line is not a JSON object; the message names the line.
        OSError: `path` is not a regular file or cannot be read.
    """
    if not os.path.lexists(path):
        return
    for number, line in enumerate(read_lines(path), start=1):
        if not line.endswith("\n"):
            return
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, is not a JSON object")
        yield row
