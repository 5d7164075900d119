"""A small English, generated: words, clauses, the eight tasks' rows and the text that small models are pretrained on.

Labels hang on agreement over a distance and on how a review is built, never on which words are there: words,
and pairs of neighbouring words, are about as frequent under one label as under another (docs/tiny.md).
"""

import hashlib
from functools import cache
from pathlib import Path

from flexlora.tasks.generator.corpus import corpus, primer
from flexlora.tasks.generator.rows import TASKS, generate
from flexlora.tasks.generator.words import VOCABULARY

__all__ = ["TASKS", "VOCABULARY", "corpus", "generate", "primer", "source_hash"]


@cache
def source_hash() -> str:
    """A hash of this package's own source: what it generates is a function of nothing else."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
