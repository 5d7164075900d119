"""The cache of the small models of scale=tiny: each model is pretrained once, by one process, and then reused.

Each model is a folder in the cache. The folder's name holds a hash of everything that determines the model. A folder
is complete or does not exist.
"""

import hashlib
import inspect
import json
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from flexlora.cache import cache_dir
from flexlora.errors import UserError, one_line
from flexlora.models import Backbone
from flexlora.reading import read_text
from flexlora.results.files import file_sha256
from flexlora.settings import ModelSettings

log = logging.getLogger("flexlora")

CHECKSUM = "sha256.json"

BackboneT = TypeVar("BackboneT", bound=Backbone)
Load = Callable[[ModelSettings], BackboneT]
"""Loads a model from the folder that the settings name."""

Build = Callable[[Path], None]
"""Writes a model into an existing, empty folder: files only, no subfolders."""


def hash_of(facts: Mapping[str, Any], *libraries: ModuleType) -> str:
    """Hash `facts` (JSON values) and the versions of these libraries, without their patch numbers."""
    versions = [".".join(library.__version__.split(".")[:2]) for library in libraries]
    return hashlib.sha256(json.dumps({**facts, "versions": versions}, sort_keys=True).encode()).hexdigest()[:16]


@cache
def source_hash(*parts: ModuleType | Callable[..., Any]) -> str:
    """Hash the source code of these modules and functions."""
    return hashlib.sha256("".join(map(inspect.getsource, parts)).encode()).hexdigest()


def check_relative(settings: ModelSettings, names: Collection[str], of: str) -> None:
    """Check that `model.name` has a small relative and that no `model.path` is set.

    Args:
        settings: `model.*`.
        names: the models that have a small relative.
        of: the kind of models, for the message, such as "of encoders".

    Raises:
        UserError: `model.path` is set, or `model.name` is not in `names`.
    """
    if settings.name not in names or settings.path is not None:
        raise UserError(
            "scale=tiny makes its own small model: leave out model=local and model.path, or leave out scale=tiny "
            f"(small relatives {of}: {', '.join(names)})"
        )


def small_relative(settings: ModelSettings, revision: str, build: Build, load: Load[BackboneT]) -> BackboneT:
    """Load the small relative of `model.name` with `load`. `build` makes it first if it is not in the cache.

    The backbone's `revision` is the given one.
    """
    with cached_model(settings.name or "", revision, build) as folder:
        backbone = load(replace(settings, path=str(folder)))
    return replace(backbone, revision=revision)


@contextmanager
def cached_model(name: str, revision: str, build: Build) -> Iterator[Path]:
    """Yield the folder of a small model. The model is built first if it is not there.

    The folder is in the cache. If the cache cannot be written, it is a temporary folder that is deleted afterwards.
    """
    folder = cache_dir("tiny") / f"{name}-{revision}"
    try:
        ensure(folder, name, build)
    except (OSError, SafetensorError) as error:  # safetensors raises SafetensorError when the disk is full
        reason = getattr(error, "strerror", None) or one_line(error)
        log.warning(
            "the small model is not cached: cannot write in %s: %s (FLEXLORA_CACHE=DIR sets another folder)",
            folder.parent,
            reason,
        )
        with tempfile.TemporaryDirectory(prefix="flexlora-tiny-") as temporary:
            _announced(name, build, Path(temporary))
            yield Path(temporary)
        return
    yield folder


def ensure(folder: Path, name: str, build: Build) -> None:
    """Build the model in `folder` unless it is complete. One process builds, and the others wait for it.

    Raises:
        OSError, SafetensorError: the folder cannot be written.
    """
    if is_whole(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))  # the system releases it when the process ends
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.info("waiting for another process that pretrains the small %s", name)
        lock.acquire()
    try:
        if not is_whole(folder):
            _build_in(folder, name, build)
    finally:
        lock.release()


def is_whole(folder: Path) -> bool:
    """Return whether `folder` is the model that it is named after, and every file matches its checksum."""
    try:
        return bool(json.loads(read_text(folder / CHECKSUM)) == _identity(folder, folder.name))
    except (OSError, ValueError):
        return False


def _build_in(folder: Path, name: str, build: Build) -> None:
    """Build in a temporary folder beside `folder`, then move it there. Damaged and half-built folders are deleted."""
    if folder.exists():
        log.warning("%s is damaged: making it again", folder)
    _remove_left_behind(folder)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    mode = part.stat().st_mode & 0o666  # as for any new file of this user; safetensors makes files for this user only
    try:
        _announced(name, build, part)
        (part / CHECKSUM).write_text(json.dumps(_identity(part, folder.name)), encoding="utf-8")
        for file in part.iterdir():
            file.chmod(mode)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_left_behind(folder: Path) -> None:
    """Delete half-built folders of killed processes beside `folder`. This process has the lock of `folder`."""
    for part in folder.parent.glob(".*.part"):
        name = part.name[1:].rpartition(".")[0].rpartition(".")[0]
        lock = FileLock(folder.with_name(f".{name}.lock"), timeout=0)
        try:
            if name != folder.name:
                lock.acquire()
        except Timeout:  # another process builds it
            continue
        shutil.rmtree(part, ignore_errors=True)
        lock.release()


def _announced(name: str, build: Build, folder: Path) -> None:
    log.info("pretraining the small %s: this happens once and takes one to two minutes on an idle core", name)
    began = time.perf_counter()
    build(folder)
    log.info("pretrained in %.0f s", time.perf_counter() - began)


def _identity(folder: Path, name: str) -> dict[str, Any]:
    """Return which model a folder holds, and the SHA-256 of its files."""
    files = sorted(file for file in folder.iterdir() if file.name != CHECKSUM)
    return {"name": name, "files": {file.name: file_sha256(file) for file in files}}
