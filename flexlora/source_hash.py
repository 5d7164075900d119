"""A name for what our own code makes: a hash of its source."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType


@cache
def hash_of_files(*files: Path) -> str:
    """Of what stands in these files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def files_of(*modules: ModuleType) -> Iterable[Path]:
    """The files of modules, and of packages all that lie in their folder, in a fixed order."""
    for module in modules:
        file = Path(str(module.__file__))
        yield from sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
