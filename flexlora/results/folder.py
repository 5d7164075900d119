"""The folder of one run: where it lies, who holds it, and whether there is anything left to do in it."""

import contextlib
import hashlib
import json
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
from flexlora.results.files import to_json, write_text
from flexlora.results.predictions import BEST, LAST
from flexlora.results.record import read_record
from flexlora.settings import flat_keys

# Settings that say where things are written, or whether at all, and nothing of what is run.
WHEREABOUTS = frozenset({"output_root", "task.token_cache", "dry"})
# Overrides that a run's path spells in folders of their own, or that say where things lie and not what is run.
PATH_KEYS = WHEREABOUTS | {
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
LEFTOVERS = ("result.json", "metrics.jsonl", "ranks.jsonl", LAST, BEST, "config.yaml", "log.txt")
CHECKPOINTS = "checkpoints"
NAME = re.compile(r"step-([0-9]+)")
# A run that ended so is kept; one that failed, was interrupted or killed goes on from its newest checkpoint.
KEPT = ("done", "diverged")


def variant_name(overrides: Iterable[str]) -> str:
    """A folder name for what sets this run apart: `training.epochs=8` → `training.epochs-8`; none → `default`.

    Several are joined by `+`, so that the name can be typed after `variant=` without quotes.

    Sorted, so that the order of the command line does not matter; where the spelling of one had to change to be safe,
    or is cut, a hash of it keeps two variants apart, and the others keep theirs.
    """
    kept = sorted(item.lstrip("+") for item in overrides if item.lstrip("+~").split("=", 1)[0] not in PATH_KEYS)
    if not kept:
        return "default"
    name = "+".join(_folder_name(item, 60) for item in kept)
    return name if len(name) <= 130 else _folder_name(name, 120)


def _folder_name(text: str, longest: int) -> str:
    """`text` as a part of a folder's name; where it is not the same any more, with a hash of it."""
    safe = re.sub(r"[^A-Za-z0-9._+-]", "~", text.replace("=", "-"))
    if "~" not in safe and len(safe) <= longest:
        return safe
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe.replace('~', '')[: longest - 9]}-{digest}"


def config_hash(config: Mapping[str, Any]) -> str:
    """A name for a resolved config that does not depend on the order of its keys or on where things are written."""
    compared = {key: value for key, value in flat_keys(config).items() if key not in WHEREABOUTS}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to tell a user of a disk that is full, a folder that is not theirs."""
    return UserError(f"cannot write to {path}: {error.strerror or error}. Set output_root=DIR.")


def held_by(path: Path, holder: str) -> str:
    """What to tell a user whose run's folder another process holds."""
    return f"{path} is held by {holder}: wait for it, or give variant=NAME."


def checkpoint_folders(path: Path) -> dict[int, Path]:
    """The checkpoints of the run in `path` by their step, the newest first, damaged ones among them."""
    named = ((NAME.fullmatch(folder.name), folder) for folder in (path / CHECKPOINTS).glob("step-*"))
    return dict(sorted(((int(name[1]), folder) for name, folder in named if name), reverse=True))


class RunFolder:
    """`<output_root>/<scale>/<task>/<model>/<method>/<variant>/seed<seed>`, held by one process at a time.

    As a context manager: locks on entry, lets go on exit.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config
        self._lock = FileLock(path / ".lock")
        self._holder = path / ".holder.json"

    def __enter__(self) -> "RunFolder":
        """Take the folder.

        Raises:
            UserError: another process holds it (the message says which), or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
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
        with contextlib.suppress(OSError):  # a disk that can no longer be written; the lock says who holds it
            self._holder.unlink(missing_ok=True)
        self._lock.release()

    def holder(self) -> str | None:
        """Who holds the folder, None where nobody does. Writes nothing, and does not wait."""
        try:
            import fcntl

            with (self.path / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._describe_holder()
        except (OSError, ImportError):  # no lock there yet, or a system without flock
            return None
        return None

    def is_finished(self) -> bool:
        """Whether this very run is done already.

        Raises:
            UserError: the folder keeps a run of another config; the message names the differing keys.
        """
        path = self.path / "result.json"
        if not path.is_file():
            return False
        try:
            record = read_record(path)
        except ValueError as error:
            raise UserError(f"{error}. Move the folder away, or give variant=NAME.") from error
        if record.status not in KEPT:
            return False
        if record.config_hash != config_hash(self.config):
            raise UserError(
                f"{self.path} holds a finished run of another config ({_differences(record.config, self.config)}): "
                "move it away, or give variant=NAME."
            )
        return record.status == "done"

    def can_resume(self) -> bool:
        """Whether an unfinished run of this config left checkpoints here.

        Raises:
            UserError: they are of another config; the message names the differing keys.
        """
        if not checkpoint_folders(self.path):
            return False
        file = self.path / "config.yaml"
        try:
            before: Any = OmegaConf.to_container(OmegaConf.load(file))
        except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(
                f"{file} cannot be read ({one_line(error)}): move the folder away, or give variant=NAME."
            ) from error
        if not isinstance(before, dict):
            raise UserError(f"{file} is no configuration: move the folder away, or give variant=NAME.")
        if config_hash(before) == config_hash(self.config):
            return True
        raise UserError(
            f"{self.path} holds an unfinished run of another config ({_differences(before, self.config)}): "
            "move it away, or give variant=NAME."
        )

    def drop_checkpoints(self) -> None:
        """Of a run that is done nothing is left to go on with."""
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def begin(self) -> None:
        """Clear what an unfinished run left behind and write down what is going to run."""
        for name in LEFTOVERS:
            (self.path / name).unlink(missing_ok=True)
        for name in ("adapter", "tensorboard", CHECKPOINTS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(self.config))))

    def _describe_holder(self) -> str:
        try:
            holder = json.loads(self._holder.read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _clear_parts(self) -> None:
        """Remove what a killed process had half written."""
        for part in [*self.path.glob(".*.part"), *(self.path / CHECKPOINTS).glob(".*.part")]:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = flat_keys(before), flat_keys(now)
    absent = object()
    keys = [key for key in sorted(old | new) if old.get(key, absent) != new.get(key, absent) and key not in WHEREABOUTS]
    shown = [f"{key}: {old.get(key, 'absent')} → {new.get(key, 'absent')}" for key in keys[:6]]
    return ", ".join([*shown, f"and {len(keys) - 6} more"] if len(keys) > 6 else shown)
