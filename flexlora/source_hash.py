"""Hash source files. The hash is the version of generated data and models, so it changes with the code for them."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

from flexlora.reading import read_bytes


@cache
def hash_of_files(*files: Path) -> str:
    """Return a hash of the content of `files`."""
    return hashlib.sha256(b"".join(read_bytes(file) for file in files)).hexdigest()[:16]


def files_of(*modules: ModuleType) -> Iterable[Path]:
    """Yield the files of `modules` in a fixed order. A package has all files of its own folder."""
    for module in modules:
        file = Path(str(module.__file__))
        yield from sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
