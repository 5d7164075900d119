"""Models that are pretrained here, once, and kept: whole or not at all, one process making what several need.

Each is a folder in the cache, named after a hash of everything that makes it what it is.
"""

import hashlib
import inspect
import json
import logging
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
from flexlora.settings import ModelSettings

log = logging.getLogger("flexlora")

CHECKSUM = "sha256.json"

BackboneT = TypeVar("BackboneT", bound=Backbone)
Load = Callable[[ModelSettings], BackboneT]
"""Loads a model from the folder that the settings name."""

Build = Callable[[Path], None]
"""Writes a model into a folder, which exists and is empty: files only, no folders."""


def hash_of(facts: Mapping[str, Any], *libraries: ModuleType) -> str:
    """A name for what is made of `facts`, JSON's values, with these libraries' versions (of patches no account)."""
    versions = [".".join(library.__version__.split(".")[:2]) for library in libraries]
    return hashlib.sha256(json.dumps({**facts, "versions": versions}, sort_keys=True).encode()).hexdigest()[:16]


@cache
def source_hash(*parts: ModuleType | Callable[..., Any]) -> str:
    """A hash of the source of all that decides what is made."""
    return hashlib.sha256("".join(map(inspect.getsource, parts)).encode()).hexdigest()


def check_relative(settings: ModelSettings, names: Collection[str], of: str) -> None:
    """Refuse a model of one's own, or one that has no small relative of this kind.

    Raises:
        UserError: the message says what there is.
    """
    if settings.name not in names or settings.path is not None:
        raise UserError(
            "scale=tiny makes its own small model: leave out model=local and model.path, or scale=tiny "
            f"({of} there is a small relative of {' and '.join(names)})"
        )


def small_relative(settings: ModelSettings, revision: str, build: Build, load: Load[BackboneT]) -> BackboneT:
    """The small relative of `model.name` as `load` loads it from a folder, made there first where it is not; its
    revision is `revision`."""
    with cached_model(settings.name or "", revision, build) as folder:
        backbone = load(replace(settings, path=str(folder)))
    return replace(backbone, revision=revision)


@contextmanager
def cached_model(name: str, revision: str, build: Build) -> Iterator[Path]:
    """The folder of a small model, built first where it is not there.

    It is the cache's, or for this time a temporary one where there is no writing there.
    """
    folder = cache_dir("tiny") / f"{name}-{revision}"
    try:
        ensure(folder, name, build)
    except (OSError, SafetensorError) as error:  # safetensors' word for a disk that is full
        reason = getattr(error, "strerror", None) or one_line(error)
        log.warning("the small model is not kept, %s cannot be written: %s (FLEXLORA_CACHE)", folder.parent, reason)
        with tempfile.TemporaryDirectory(prefix="flexlora-tiny-") as temporary:
            _announced(name, build, Path(temporary))
            yield Path(temporary)
        return
    yield folder


def ensure(folder: Path, name: str, build: Build) -> None:
    """Build what `folder` should hold, unless it is there; one process builds, the others wait for it.

    Raises:
        OSError, SafetensorError: it cannot be written there.
    """
    if is_whole(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))  # it dies with its process
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.info("waiting for another process, which pretrains the small %s", name)
        lock.acquire()
    try:
        if not is_whole(folder):
            _build_in(folder, name, build)
    finally:
        lock.release()


def is_whole(folder: Path) -> bool:
    """Whether every file is there as it was written."""
    try:
        return bool(json.loads((folder / CHECKSUM).read_text(encoding="utf-8")) == _checksums(folder))
    except (OSError, ValueError):
        return False


def _build_in(folder: Path, name: str, build: Build) -> None:
    """Build beside `folder` and move it there whole; what was there, or was left half-built, goes."""
    if folder.exists():
        log.warning("%s is damaged and made anew", folder)
    for left_behind in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(left_behind, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        _announced(name, build, part)
        (part / CHECKSUM).write_text(json.dumps(_checksums(part)), encoding="utf-8")
        part.chmod(0o755)
        for file in part.iterdir():
            file.chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _announced(name: str, build: Build, folder: Path) -> None:
    log.info("pretraining the small %s: this happens once, and takes a minute or two of an idle core", name)
    began = time.perf_counter()
    build(folder)
    log.info("pretrained in %.0f s", time.perf_counter() - began)


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.iterdir() if file.name != CHECKSUM)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
