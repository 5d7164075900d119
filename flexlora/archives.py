"""Unpack an untrusted zip or tar archive into one folder, in whole files. A stopped unpacking can continue."""

import contextlib
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO

from filelock import FileLock, Timeout
from tqdm import tqdm

from flexlora.errors import UserError, one_line
from flexlora.hub import NO_WRITING
from flexlora.reading import open_regular

DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError),
    *(ValueError, IndexError, RecursionError, MemoryError),  # raised for headers that are not valid
)
# Compression methods of a zip that return only the requested bytes; bzip2 and LZMA inflate a whole chunk at once.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Types of tar headers for long names and other extensions. tarfile reads the whole content of such a header.
EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
LONGEST_EXTENSION = 1 << 20
# Photographs hardly compress. An archive that claims to hold more than `MOST` times its own size, and more than
# `LITTLE` bytes, was made to fill a disk.
MOST = 20
LITTLE = 2**30
# The bytes of a block of the file system. A file occupies whole blocks.
BLOCK = 4096


@dataclass(frozen=True)
class Member:
    """A file of an archive."""

    name: PurePosixPath
    size: int
    entry: zipfile.ZipInfo | tarfile.TarInfo


class ShortHeaders(tarfile.TarInfo):
    """A tar member that refuses extension headers longer than any name needs."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Check the size of a header before tarfile reads it."""
        if self.size < 0 or (self.type in EXTENSIONS and self.size > LONGEST_EXTENSION):
            raise tarfile.ReadError(f"'{self.name}' has {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


class Archive:
    """A zip or tar file (plain, gz, bz2, xz) and the files in it. Close it, or use it in a `with` statement.

    Raises:
        UserError: the file does not exist, is damaged or is not an archive; a member would be written outside the
            folder, or is neither a file nor a folder; or the archive claims to hold far more than its own size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.reading():
            with open_regular(path) as file:
                zipped = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
            self._file = zipfile.ZipFile(path) if zipped else tarfile.open(path, tarinfo=ShortHeaders)  # noqa: SIM115
            self.members: list[Member] = []
        try:
            with self.reading():
                self._list()
        except BaseException:
            self.close()
            raise

    def _list(self) -> None:
        total, limit = 0, max(LITTLE, MOST * self.path.stat().st_size)
        for member in self._files():
            total += member.size
            if total > limit:
                raise UserError(
                    f"{self.path} has {gigabytes(self.path.stat().st_size)} and claims to hold {gigabytes(total)} or "
                    "more: not unpacked"
                )
            self.members.append(member)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, member: Member) -> IO[bytes]:
        """Open the content of a member."""
        if isinstance(self._file, zipfile.ZipFile):
            return self._file.open(member.entry)  # type: ignore[arg-type]
        content = self._file.extractfile(member.entry)  # type: ignore[arg-type]
        assert content is not None
        return content

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn errors of reading the archive and of writing files into a `UserError`."""
        try:
            yield
        except DAMAGED as error:
            raise UserError(
                f"{self.path} is damaged or is not a zip or tar archive: {one_line(error).rstrip(':')}"
            ) from error
        except OSError as error:
            if error.errno is None:  # from gzip and bz2
                raise UserError(f"{self.path} is damaged: {one_line(error)}") from error
            if error.errno in NO_WRITING and error.filename is None:
                raise UserError(f"cannot unpack {self.path}: {error.strerror}. The same command continues.") from error
            raise UserError(f"{error.filename or self.path}: {error.strerror}") from error

    def _files(self) -> Iterator[Member]:
        entries = self._file.infolist() if isinstance(self._file, zipfile.ZipFile) else self._file
        for entry in entries:
            if isinstance(entry, zipfile.ZipInfo):
                name, size, kind = entry.filename, entry.file_size, stat.S_IFMT(entry.external_attr >> 16)
                folder, plain = entry.is_dir(), kind in (0, stat.S_IFREG)
                if entry.flag_bits & 1:
                    raise UserError(f"{self.path}: '{name}' is encrypted")
                if entry.compress_type not in METHODS:
                    raise UserError(f"{self.path}: '{name}' is not compressed with deflate: compress it again")
            else:
                name, size, folder, plain = entry.name, entry.size, entry.isdir(), entry.isreg()
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
                raise UserError(f"{self.path}: '{name}' leaves the folder: nothing is unpacked")
            if size < 0:
                raise UserError(f"{self.path} is damaged: '{name}' has {size} bytes")
            if folder:
                continue
            if not plain or not path.name:
                raise UserError(f"{self.path}: '{name}' is a link or a device, not a file: nothing is unpacked")
            yield Member(path, size, entry)


def unpack(archive: Archive, targets: Mapping[PurePosixPath, Member], folder: Path, anew: Container[str] = ()) -> int:
    """Write the members `targets` under `folder`, each by one rename, and return the number of written files.

    A file that exists with the right size is kept, unless its name is in `anew`. A killed process leaves at most one
    partial file, which the next process overwrites.

    Raises:
        UserError: the archive is damaged, another process is unpacking into `folder`, the disk has too little space, or
            `folder` cannot be written.
    """

    def wanted(target: PurePosixPath, member: Member) -> bool:
        path = folder / target
        return target.name in anew or path.is_symlink() or not path.is_file() or path.stat().st_size != member.size

    part, lock = folder / ".unpacking.part", FileLock(folder / ".unpacking.lock", timeout=0)
    with archive.reading():
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process is unpacking into {folder}") from error
    except (OSError, NotImplementedError) as error:
        raise UserError(f"cannot lock {folder}: {one_line(error)}") from error
    with archive.reading():
        try:
            missing = {target: member for target, member in targets.items() if wanted(target, member)}
            need = sum(-(-member.size // BLOCK) * BLOCK for member in missing.values())
            free = shutil.disk_usage(folder).free
            if need > free:
                raise UserError(f"{folder} has {gigabytes(free)} free, unpacking needs {gigabytes(need)}")
            made: set[Path] = set()
            for target, member in tqdm(missing.items(), desc="unpacking", unit=" files", disable=None):
                path = folder / target
                if path.parent not in made:
                    if not path.parent.resolve().is_relative_to(folder.resolve()):
                        raise UserError(f"{path.parent} is a link that leaves {folder}")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    made.add(path.parent)
                part.unlink(missing_ok=True)
                with archive.open(member) as content, part.open("xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                    if file.tell() != member.size:
                        raise UserError(f"{archive.path} is damaged: '{member.name}' is cut short")
                part.replace(path)
            return len(missing)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            lock.release()


def gigabytes(size: int) -> str:
    """Return a size in bytes as text, such as `4.66 GB`. A small size is in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
