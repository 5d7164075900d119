"""The library that draws the page's figures: plotly.js, from the Python package `plotly` (MIT)."""

import base64
import gzip
from importlib.util import find_spec
from pathlib import Path

from flexlora.errors import UserError


def packed_plotly() -> str:
    """Return plotly.js, compressed by gzip and written in base64: 2 MB instead of 5. Importing plotly would be slow.

    Raises:
        UserError: plotly is not installed.
    """
    found = find_spec("plotly")
    if found is None or found.origin is None:
        raise UserError("the page's figures need plotly: pip install 'flexlora[figures]'")
    source = Path(found.origin).with_name("package_data") / "plotly.min.js"
    return base64.b64encode(gzip.compress(source.read_bytes(), compresslevel=5, mtime=0)).decode("ascii")
