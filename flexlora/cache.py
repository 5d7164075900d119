"""What is computed once and kept between runs. Nothing in it is needed: losing it costs time only."""

import os
import tempfile
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """The cache's folder, or the one of that name in it: `$FLEXLORA_CACHE`, or `~/.cache/flexlora`.

    `$XDG_CACHE_HOME` takes the place of `~/.cache` where it is set. The folder is not made, and may not be writable:
    whoever fills it carries on without.
    """
    named = os.environ.get("FLEXLORA_CACHE")
    if named:
        return Path(named).expanduser().joinpath(*parts)
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a user without a home
        user = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return (user / "flexlora").joinpath(*parts)
