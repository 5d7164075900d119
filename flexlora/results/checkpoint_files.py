"""The folders of a run's checkpoints, and the check that one is whole. Only the training knows their content."""

import json
import re
from pathlib import Path

from flexlora.reading import read_text
from flexlora.results.files import file_sha256

CHECKPOINTS = "checkpoints"
# A checkpoint of the same step that a new one is about to replace.
REPLACED = "~"
NAME = re.compile(rf"step-([0-9]+)({REPLACED}?)")
TENSORS, STATE, MANIFEST = "trained.safetensors", "state.pt", "manifest.json"


def checkpoint_folders(path: Path) -> dict[int, Path]:
    """Return the checkpoint folders of the run in `path` by step, the newest first; some may be damaged."""
    named = ((NAME.fullmatch(folder.name), folder) for folder in (path / CHECKPOINTS).glob("step-*"))
    found = sorted((int(name[1]), not name[2], folder) for name, folder in named if name)
    return dict(sorted({step: folder for step, _, folder in found}.items(), reverse=True))


def verify(folder: Path) -> None:
    """Check that a checkpoint is whole.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: the manifest is damaged, or a file differs from its hash in the manifest.
    """
    manifest = json.loads(read_text(folder / MANIFEST))
    hashes = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(hashes, dict) or set(hashes) != {TENSORS, STATE}:
        raise ValueError(f"{MANIFEST} is not a checkpoint's")
    for name, expected in hashes.items():
        if file_sha256(folder / name) != expected:
            raise ValueError(f"{name} is not what was written")
