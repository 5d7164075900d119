"""A generator of simple English: the rows of the eight GLUE tasks and the text for pretraining small encoders.

Labels depend on long-distance agreement and on the structure of a review, never on single words. Each word, and each
pair of neighbouring words, is about equally frequent under every label (docs/reference/tiny.md).
"""

import sys

from flexlora.source_hash import files_of, hash_of_files
from flexlora.tiny.english.corpus import corpus, primer
from flexlora.tiny.english.rows import TASKS, generate
from flexlora.tiny.english.words import VOCABULARY

__all__ = ["TASKS", "VOCABULARY", "corpus", "generate", "primer", "source_hash"]


def source_hash() -> str:
    """Hash the source code of this package, which alone determines the generated text."""
    return hash_of_files(*files_of(sys.modules[__name__]))
