"""A small world: its facts, texts that state them, and questions about them in Commonsense170K's formats."""

import sys

from flexlora.source_hash import files_of, hash_of_files
from flexlora.tasks import commonsense_prompts, commonsense_rows
from flexlora.tiny.world.corpus import CURRICULUM, corpus
from flexlora.tiny.world.questions import ASKED, rows
from flexlora.tiny.world.things import ASKED_IN_TRAINING, QUALITIES

__all__ = ["ASKED", "ASKED_IN_TRAINING", "CURRICULUM", "QUALITIES", "corpus", "rows", "source_hash"]


def source_hash() -> str:
    """Hash the source code that determines the generated text: this package and the protocol's prompts and formats."""
    return hash_of_files(*files_of(sys.modules[__name__], commonsense_prompts, commonsense_rows))
