"""The cache: results of computations that later runs use again. If it is deleted, they are only computed again."""

import atexit
import logging
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

log = logging.getLogger("flexlora")


def cache_dir(*parts: str) -> Path:
    """Return the folder of the cache, or the folder at `parts` in it.

    The cache is in `$FLEXLORA_CACHE`, or otherwise in `~/.cache/flexlora` (`$XDG_CACHE_HOME` replaces `~/.cache`). A
    folder in which other users can put files is not used. The process then uses a temporary folder, which is deleted
    at the end. This function does not create the folder. A caller that cannot write there must continue without a
    cache.
    """
    named = os.environ.get("FLEXLORA_CACHE")
    if named:
        return trusted(Path(named).expanduser()).joinpath(*parts)
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # the user has no home folder
        user = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return trusted(user / "flexlora").joinpath(*parts)


def trusted(folder: Path) -> Path:
    """Return `folder`, or a folder of this process if other users can put files into `folder`."""
    reason = _danger(folder)
    return folder if reason is None else _own_folder(f"{folder} {reason}")


def _danger(folder: Path) -> str | None:
    """Return why files in `folder` may be from other users, as the end of a sentence, or None if it is safe."""
    for path in (folder, *folder.parents):
        try:
            here, above = path.lstat(), path.parent.stat()
        except OSError:  # the folder does not exist yet, and will belong to this user
            continue
        if path == folder and path.stat().st_mode & stat.S_IWOTH:
            return "can be written by every user"
        if above.st_mode & stat.S_IWOTH and here.st_uid not in (os.getuid(), above.st_uid):
            return f"is not safe: {path} belongs to another user, in a folder that every user can write"
    return None


@cache
def _own_folder(reason: str) -> Path:
    """Return a temporary folder of this process, and say why it is used."""
    folder = tempfile.mkdtemp(prefix="flexlora-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.warning("nothing is kept in the cache: %s (FLEXLORA_CACHE=DIR sets another folder)", reason)
    return Path(folder)
