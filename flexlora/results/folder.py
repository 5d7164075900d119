"""The folder of one run: its name, its lock, and whether the run in it is finished."""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flexlora.errors import UserError, one_line
from flexlora.reading import open_regular, read_text, read_yaml_text, special_files
from flexlora.results.checkpoint_files import CHECKPOINTS, checkpoint_folders
from flexlora.results.files import sync, sync_tree, to_json, write_text
from flexlora.results.predictions import BEST, LAST
from flexlora.results.record import RunRecord, read_record
from flexlora.results.whole import CONFIGURATION, NOUNS, first_of, look
from flexlora.settings import flat_keys

log = logging.getLogger("flexlora")

# Settings that change where a run is written or whether it runs, but not its results.
LOCATION_KEYS = frozenset({"output_root", "task.token_cache", "task.run_generated_code", "dry"})
# Overrides that do not appear in a variant's name: they have folders of their own, or name a location.
PATH_KEYS = LOCATION_KEYS | {
    "task",
    "method",
    "model",
    "scale",
    "experiment",
    "seed",
    "variant",
    "model.path",
    "task.data_dir",
}
LEFTOVERS = ("result.json", "metrics.jsonl", "ranks.jsonl", LAST, BEST, "config.yaml", CONFIGURATION, "log.txt")
# The number of folders above a run's folder that the run may have made: output_root, scale, task (two parts), model,
# method, variant, and the parent folder of output_root.
PARENTS = 8
# A run with one of these statuses is not started again. A failed, interrupted or killed run continues from its newest
# checkpoint.
KEPT = ("done", "diverged")


def variant_name(overrides: Iterable[str]) -> str:
    """Return a folder name for the overrides of a run: `training.epochs=8` → `training.epochs-8`; none → `default`.

    Several overrides are joined by `+`, so that the name can be typed after `variant=` without quotes. They are sorted,
    so that their order on the command line does not matter. An override that contains unsafe characters or is too long
    is changed and ends with a hash, so that different overrides never have the same name.
    """
    kept = sorted(item.lstrip("+") for item in overrides if item.lstrip("+~").split("=", 1)[0] not in PATH_KEYS)
    if not kept:
        return "default"
    name = "+".join(_folder_name(item, 60) for item in kept)
    return name if len(name) <= 130 else _folder_name(name, 120)


def _folder_name(text: str, longest: int) -> str:
    """Return `text` as a part of a folder name. If it has to change, a hash of it is added."""
    safe = re.sub(r"[^A-Za-z0-9._+-]", "~", text.replace("=", "-"))
    if "~" not in safe and len(safe) <= longest:
        return safe
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe.replace('~', '')[: longest - 9]}-{digest}"


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a hash of a resolved config, which depends neither on the order of its keys nor on `LOCATION_KEYS`."""
    compared = {key: value for key, value in flat_keys(config).items() if key not in LOCATION_KEYS}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the error for a folder that cannot be written: the disk is full, or the user has no permission."""
    return UserError(f"cannot write to {path}: {error.strerror or error}. Set output_root=DIR.")


def held_by(path: Path, holder: str) -> str:
    """Return the message for a run's folder that another process is using."""
    return f"{path} is in use by {holder}: wait until it ends, or give variant=NAME."


class RunFolder:
    """The folder `<output_root>/<scale>/<task>/<model>/<method>/<variant>/seed<seed>`, for one process at a time.

    As a context manager, it locks the folder on entry and unlocks it on exit.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config
        self._lock = FileLock(path / ".lock")
        self._holder = path / ".holder.json"
        self._held: tuple[int, int] | None = None

    def __enter__(self) -> "RunFolder":
        """Create the folder and lock it.

        Raises:
            UserError: another process has the lock (the message says which), the folder cannot be written, or it
                contains a pipe, a socket or a device.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name, kind in special_files(self.path):
                raise UserError(f"{self.path / name} is {kind}, not a regular file: remove it")
            self._lock.acquire(timeout=0)
            self._held = self._lock_file()
            self._clear_parts()
            since = datetime.now(UTC).isoformat(timespec="seconds")
            write_text(self._holder, to_json({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        except Timeout as error:
            raise UserError(held_by(self.path, self._describe_holder())) from error
        except OSError as error:
            self._lock.release()
            raise cannot_write(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # the disk can no longer be written; the lock alone decides
            if self._lock_file() == self._held:
                self._holder.unlink(missing_ok=True)
        self._lock.release()

    def require_held(self) -> None:
        """Check that the folder at this path is still the one that this process locked, before something is written.

        Raises:
            UserError: the folder was moved or deleted since. Another process may have begun the run again there.
        """
        if self._lock_file() != self._held:
            raise UserError(
                f"{self.path} was moved or deleted while the run was using it: nothing more is written. Move it back "
                "and give the same command again."
            )

    def _lock_file(self) -> tuple[int, int] | None:
        try:
            found = (self.path / ".lock").stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def holder(self) -> str | None:
        """Return which process has the lock; None if no process has it. This writes nothing and does not wait."""
        try:
            import fcntl

            with open_regular(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._describe_holder()
        except (OSError, ImportError):  # there is no lock file yet, or the system has no flock
            return None
        return None

    def is_finished(self) -> bool:
        """Return whether the run with this config is done (see `finished`)."""
        return self.finished() is not None

    def finished(self) -> list[str] | None:
        """Return None if the run with this config is not done, else a line for each part that cannot be compared.

        The files of the folder and the files that the run read are compared with the record. A file is only read if
        its time of change differs from the record's.

        Raises:
            UserError: the folder has a finished run of another config (the message names the keys that differ), its
                record cannot be read, a file of the run is missing or damaged, or the run read other data or weights.
        """
        path = self.path / "result.json"
        if not path.is_file():
            return None
        try:
            record = read_record(path)
        except ValueError as error:
            raise UserError(f"{error}. Move the folder away, or give variant=NAME.") from error
        if record.status not in KEPT:
            return None
        if record.config_hash != config_hash(self.config):
            raise UserError(
                f"{self.path} holds a finished run of another config ({_differences(record.config, self.config)}): "
                "move it away, or give variant=NAME."
            )
        return self._compared(record) if record.status == "done" else None

    def _compared(self, record: RunRecord) -> list[str] | None:
        found = look(self.path, record)
        for group, lines in found.changed.items():
            raise UserError(
                f"{self.path} is finished, but its {NOUNS[group]} changed since: {first_of(lines)}. Move the folder "
                "away to run it again, or give variant=NAME."
            )
        if found.damaged and not checkpoint_folders(self.path):
            raise UserError(
                f"{self.path} is finished, but {first_of(found.damaged)}. Move the folder away to run it again, or "
                "give variant=NAME."
            )
        if found.damaged:
            log.warning("%s is not whole: %s. Its checkpoint is used.", self.path, first_of(found.damaged))
            return None
        return found.unknown

    def can_resume(self) -> bool:
        """Return whether the folder has checkpoints of an unfinished run with this config.

        Raises:
            UserError: the checkpoints are of another config (the message names the keys that differ), or the
                unfinished run's config cannot be read.
        """
        if not checkpoint_folders(self.path):
            return False
        file = self.path / "config.yaml"
        try:
            before: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(read_yaml_text(file))))
        except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(
                f"{file} cannot be read ({one_line(error)}): move the folder away, or give variant=NAME."
            ) from error
        if not isinstance(before, dict):
            raise UserError(f"{file} is not the configuration of a run: move the folder away, or give variant=NAME.")
        if config_hash(before) == config_hash(self.config):
            return True
        raise UserError(
            f"{self.path} holds an unfinished run of another config ({_differences(before, self.config)}): "
            "move it away, or give variant=NAME."
        )

    def sync(self) -> None:
        """Make the system write the run's files to the disk, and the names of its folder and of the folders above.

        Raises:
            OSError: the disk fails, or is full.
        """
        sync_tree(self.path, leave_out=CHECKPOINTS)
        for parent in self.path.absolute().parents[:PARENTS]:
            with contextlib.suppress(OSError):  # this user may not have access to all folders above the runs
                sync(parent)

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints. A finished run needs none once its record is on the disk.

        Raises:
            OSError: the disk fails.
        """
        sync(self.path)
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def begin(self) -> None:
        """Delete the files of an unfinished run and write `config.yaml`."""
        for name in LEFTOVERS:
            (self.path / name).unlink(missing_ok=True)
        for name in ("adapter", "tensorboard", CHECKPOINTS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(self.config))))
        self.sync()

    def _describe_holder(self) -> str:
        try:
            holder = json.loads(read_text(self._holder))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _clear_parts(self) -> None:
        """Delete the partial files of a killed process."""
        for part in [*self.path.glob(".*.part"), *(self.path / CHECKPOINTS).glob(".*.part")]:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the flat keys, sorted, in which two resolved configs differ, without `LOCATION_KEYS`."""
    old, new = flat_keys(before), flat_keys(now)
    absent = object()
    return [
        key for key in sorted(old | new) if old.get(key, absent) != new.get(key, absent) and key not in LOCATION_KEYS
    ]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = flat_keys(before), flat_keys(now)
    keys = differing_keys(before, now)
    shown = [f"{key}: {old.get(key, 'absent')} → {new.get(key, 'absent')}" for key in keys[:6]]
    return ", ".join([*shown, f"and {len(keys) - 6} more"] if len(keys) > 6 else shown)
