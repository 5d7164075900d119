"""The cache: results of computations that later runs use again. Deleting it costs time and nothing else."""

import os
import tempfile
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """Return the folder of the cache, or the folder at `parts` in it.

    The cache is in `$FLEXLORA_CACHE`, or else in `~/.cache/flexlora`; `$XDG_CACHE_HOME` replaces `~/.cache`. This
    function does not create the folder. A caller that cannot write there must continue without a cache.
    """
    named = os.environ.get("FLEXLORA_CACHE")
    if named:
        return Path(named).expanduser().joinpath(*parts)
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a user without a home
        user = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return (user / "flexlora").joinpath(*parts)
