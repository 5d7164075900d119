"""Stamps of files: the size, the time of change and the SHA-256 that a file had, to see later whether it is the same.

The comparison with a stamp is cheap: a file with the size and the time of its stamp is not read. The hash of a large
file is kept in the cache under the file's path, size and time, so that a model is read once and not by every run.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flexlora.cache import cache_dir
from flexlora.reading import read_text, status_of
from flexlora.results.files import file_sha256, write_text

# The size in bytes from which a hash is cached. Reading a smaller file takes no longer than reading its hash.
KEPT_FROM = 1 << 20

Stamp = dict[str, Any]
"""The keys are `bytes`, `ctime_ns` (the time of the last change, which no program can set back) and `sha256`."""


FILE = {"bytes": int, "ctime_ns": int, "sha256": str}
FOLDER = {"files": int, "bytes": int, "sha256": str}


def is_stamp(value: object, keys: Mapping[str, type] = FILE) -> bool:
    """Return whether `value`, read from JSON, is a stamp with `keys`: `FILE` for a file, `FOLDER` for a folder."""
    return (
        isinstance(value, dict)
        and value.keys() == keys.keys()
        and all(type(value[name]) is kind for name, kind in keys.items())
    )


def stamp(path: Path) -> Stamp:
    """Return the stamp of a file.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    found = status_of(path)
    return {"bytes": found.st_size, "ctime_ns": found.st_ctime_ns, "sha256": _kept_sha256(path, found)}


def stamps(paths: Iterable[Path]) -> dict[str, Stamp]:
    """Return the stamps of several files by path.

    Raises:
        OSError: a file cannot be read, or is not a regular file.
    """
    return {str(path): stamp(path) for path in paths}


def difference(path: Path, before: Mapping[str, Any], sha256_of: Callable[[Path], str] | None = None) -> str | None:
    """Return what differs between a file and its stamp, as the end of a sentence; None if nothing differs.

    Args:
        path: the file.
        before: its stamp.
        sha256_of: computes the hash of a file. Without it, a file with the size and time of its stamp is not read.
    """
    try:
        found = status_of(path)
        if found.st_size != before["bytes"]:
            return f"has {found.st_size:,} bytes and had {before['bytes']:,}" if found.st_size else "is empty"
        if sha256_of is None and found.st_ctime_ns == before["ctime_ns"]:
            return None
        sha256 = sha256_of(path) if sha256_of is not None else _kept_sha256(path, found)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None if sha256 == before["sha256"] else "has other content"


def folder_stamp(folder: Path) -> Stamp:
    """Return the stamp of a folder with many files: their number, their bytes, and a hash of names, sizes and times.

    No file is read. Files in subfolders do not count. The times are those of the content, which a copy can keep.

    Raises:
        OSError: the folder cannot be listed.
    """
    digest, files, total = hashlib.sha256(), 0, 0
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            found = entry.stat()
            if stat.S_ISREG(found.st_mode):
                digest.update(f"{entry.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="surrogateescape"))
                files, total = files + 1, total + found.st_size
    return {"files": files, "bytes": total, "sha256": digest.hexdigest()}


def _kept_sha256(path: Path, found: os.stat_result) -> str:
    """Return the SHA-256 of a file whose status is `found`, from the cache if it is there."""
    if found.st_size < KEPT_FROM:
        return file_sha256(path)
    absolute = str(path.absolute())
    facts = [absolute, found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns]
    kept = cache_dir("hashes", f"{hashlib.sha256(os.fsencode(absolute)).hexdigest()[:40]}.json")
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        entry = json.loads(read_text(kept))
        if entry["file"] == facts and isinstance(entry["sha256"], str):
            return entry["sha256"]
    sha256 = file_sha256(path)
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps({"file": facts, "sha256": sha256}))
    return sha256
