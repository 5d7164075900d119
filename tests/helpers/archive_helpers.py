"""Archives of small VTAB tasks."""

import tarfile
import zipfile
from pathlib import Path

from vtab_helpers import settings_of

IMAGES = 12


def write(folder: Path, name: str = "kitti") -> Path:
    """Make a task with the benchmark's number of rows, over a few files that are not images."""
    settings = settings_of(name)
    for number in range(IMAGES):
        image = folder / f"images/{number:06d}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(f"{name} {number}".encode() * 100)
    sizes = {"train800": 800, "val200": 200, "train800val200": 1000, "test": settings.test_rows}
    for split, rows in sizes.items():
        lines = [f"images/{row % IMAGES:06d}.jpg {row % settings.num_classes}\n" for row in range(rows)]
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def pack(archive: Path, folder: Path, root: str = "") -> Path:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in files:
                file.write(path, f"{root}{path.relative_to(folder)}")
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as file:
            for path in files:
                file.add(path, f"{root}{path.relative_to(folder)}")
    return archive


def contents(folder: Path) -> dict[str, bytes]:
    """Every file except the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".unpacking.lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
