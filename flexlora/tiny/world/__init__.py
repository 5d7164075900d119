"""A small world: what is so in it, texts that state it, and questions about it in Commonsense170K's formats."""

import sys

from flexlora.source_hash import files_of, hash_of_files
from flexlora.tasks import commonsense_prompts, commonsense_rows
from flexlora.tiny.world.corpus import CURRICULUM, Text, corpus
from flexlora.tiny.world.questions import ASKED, rows
from flexlora.tiny.world.things import ASKED_IN_TRAINING, QUALITIES

__all__ = ["ASKED", "ASKED_IN_TRAINING", "CURRICULUM", "QUALITIES", "Text", "corpus", "rows", "source_hash"]


def source_hash() -> str:
    """A hash of all that decides what it generates: this package, the protocol's texts and its formats."""
    return hash_of_files(*files_of(sys.modules[__name__], commonsense_prompts, commonsense_rows))
