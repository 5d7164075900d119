"""A small English, generated: words, clauses, the eight tasks' rows and the text that small models are pretrained on.

Labels hang on agreement over a distance and on how a review is built, never on which words are there: words,
and pairs of neighbouring words, are about as frequent under one label as under another (docs/reference/tiny.md).
"""

import sys

from flexlora.source_hash import files_of, hash_of_files
from flexlora.tiny.english.corpus import corpus, primer
from flexlora.tiny.english.rows import TASKS, generate
from flexlora.tiny.english.words import VOCABULARY

__all__ = ["TASKS", "VOCABULARY", "corpus", "generate", "primer", "source_hash"]


def source_hash() -> str:
    """A hash of this package's own source: what it generates is a function of nothing else."""
    return hash_of_files(*files_of(sys.modules[__name__]))
