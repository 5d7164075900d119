"""A small world: what is so in it, texts that state it, and questions about it in Commonsense170K's formats."""

import hashlib
from functools import cache
from pathlib import Path

from flexlora.tasks.world.corpus import CURRICULUM, Text, corpus
from flexlora.tasks.world.questions import ASKED, rows
from flexlora.tasks.world.things import ASKED_IN_TRAINING, QUALITIES

__all__ = ["ASKED", "ASKED_IN_TRAINING", "CURRICULUM", "QUALITIES", "Text", "corpus", "rows", "source_hash"]


@cache
def source_hash() -> str:
    """A hash of this package's own source: what it generates is a function of nothing else."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
