"""Open untrusted files. Only regular files up to a limit are read, so that no reader waits forever."""

import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

TEXT = 256 * 2**20
"""The largest text that is parsed as a whole (a record, a manifest, a list of images), in bytes."""
YAML_TEXT = 4 * 2**20
"""The largest YAML file, in bytes: parsing takes about a second for each MiB."""
LINE = 64 * 2**20
"""The longest line of a file that is read line by line, in bytes."""
YAML_VALUES = 100_000
"""The largest number of values in a YAML file. Each alias counts as all values that it stands for."""

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotRead(OSError):
    """A file exists but is not read. `strerror` says why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EINVAL, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def status_of(path: Path) -> os.stat_result:
    """Return the status of a regular file.

    Raises:
        OSError: `path` is not a regular file or a link to one. Reading it could wait forever.
    """
    status = path.stat()
    _check(path, status)
    return status


def regular(path: Path) -> Path:
    """Check that `path` is a regular file and return it, for a library that opens the file itself. See `status_of`."""
    status_of(path)
    return path


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes.

    Raises:
        OSError: `path` is not a regular file or a link to one, or it cannot be opened.
    """
    regular(path)
    # With O_NONBLOCK, a pipe that has replaced the file after the check is opened without waiting for its writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        limit: the largest size that is read, in bytes. None is for files of data or weights, which may have any size.

    Raises:
        OSError: `path` is not a regular file, is larger than `limit`, or cannot be read.
    """
    with open_regular(path) as file:
        if limit is None:
            return file.read()
        too_large = os.fstat(file.fileno()).st_size > limit  # a sparse file may claim any size
        content = b"" if too_large else file.read(limit + 1)
    if too_large or len(content) > limit:
        raise NotRead(path, f"it is larger than {limit // 2**20} MiB")
    return content


def read_text(path: Path, limit: int = TEXT) -> str:
    """Return the content of a UTF-8 file that is parsed as a whole.

    Raises:
        OSError: `path` is not a regular file, is larger than `limit`, or cannot be read.
        UnicodeDecodeError: the content is not UTF-8.
    """
    return read_bytes(path, limit).decode("utf-8")


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their line breaks.

    Raises:
        OSError: `path` is not a regular file, has a line longer than `LINE`, or cannot be read.
        UnicodeDecodeError: a line is not UTF-8.
    """
    with open_regular(path) as file:
        while line := file.readline(LINE + 1):
            if len(line) > LINE:
                raise NotRead(path, f"it has a line longer than {LINE // 2**20} MiB")
            yield line.decode("utf-8")


def read_yaml_text(path: Path) -> str:
    """Return the text of a YAML file whose aliases do not multiply beyond `YAML_VALUES` values.

    A file of ten lines whose aliases refer to each other can stand for more values than fit in any memory.

    Raises:
        OSError: `path` is not a regular file, is larger than `YAML_TEXT`, or cannot be read.
        YAMLError: the text is not YAML, or has too many values or levels.
        UnicodeDecodeError: the content is not UTF-8.
    """
    import yaml

    text = read_text(path, YAML_TEXT)
    if "*" not in text:  # no alias
        return text
    try:
        node = yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        count = 0 if node is None else _values(node, {})
    except RecursionError:
        raise yaml.YAMLError("its values are nested too deeply") from None
    if count > YAML_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {YAML_VALUES:,} values")
    return text


def special_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and kind of each pipe, socket or device that is in `folder`, or to which a link there points."""
    try:
        paths = sorted(folder.iterdir())
    except PermissionError:  # the files of this folder may be read, but not listed
        return
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError:  # no library can open a link to nothing, or to itself
            continue
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            yield path.name, _kind(mode)


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRead(path, f"it is {_kind(status.st_mode)}, not a regular file")


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "something else")


def _values(node: Any, known: dict[int, int]) -> int:
    """Count the values below a YAML node. `known` has the counts of nodes that occurred before.

    Raises:
        YAMLError: an alias stands for a value that contains the alias.
    """
    import yaml

    if id(node) not in known:
        known[id(node)] = -1
        parts = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else []
        flat = (part for item in parts for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_values(part, known) for part in flat)
    if known[id(node)] < 0:
        raise yaml.YAMLError("one of its aliases stands for a value that contains the alias")
    return known[id(node)]
