"""Files that are whole or absent, and JSON that every reader takes."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which then replaces it in one move; where writing fails nothing is left."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)  # mkstemp's own 0600 would hide a shared folder from its readers
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one move: a reader, or a run killed half-way, never meets half a file."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content` in one move."""
    with replacing(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of `value`. NaN and infinities, which JSON does not have, become null."""
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
    """A file of one JSON object a line, flushed after each; begun afresh, or continued at an earlier `position`.

    Raises:
        ValueError: the file is no longer what it was at `position`.
    """

    def __init__(self, path: Path, position: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self._bytes = 0
        if position is None:
            self._file: BinaryIO = path.open("wb")
            return
        held = path.read_bytes()[: position["bytes"]] if path.is_file() else b""
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
        """All lines so far."""
        return read_json_lines(self._path)

    def position(self) -> dict[str, Any]:
        """Where the file ends now, and the SHA-256 of all before, which is on the disk from here on."""
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
    """The objects of such a file, one a line; none where there is no file. A last line without its end is left out.

    Raises:
        ValueError: a whole line is no JSON object; says which.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}, is no JSON object")
            yield row
