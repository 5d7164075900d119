"""Files that are whole or absent, and JSON that every reader takes."""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one move: a reader, or a run killed half-way, never meets half a file."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)  # mkstemp's own 0600 would hide a shared results folder from its readers
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
    """A file of one JSON object a line, begun afresh and flushed after each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(to_json(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
