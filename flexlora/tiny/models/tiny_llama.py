"""`scale=tiny`: a small relative of the paper's language model, of LLaMA's own class, pretrained once and cached.

The cached model is a folder written by `save_pretrained`. It is loaded like any language model from a folder.
"""

from pathlib import Path
from random import Random
from typing import Any

from flexlora.models import Backbone, causal_lm
from flexlora.settings import ModelSettings
from flexlora.tiny import small_llama
from flexlora.tiny.model_cache import check_relative, small_relative, source_hash
from flexlora.tiny.pretrain_llama import Pretraining

RELATIVES = ("llama3_8b",)
"""The values of `model.name` that have a small relative."""


def load(settings: ModelSettings, num_labels: None = None) -> Backbone:
    """Load the small relative of `model.name`. It is pretrained first if it is not in the cache.

    Raises:
        UserError: `model.path` is set, or `model.name` has no small relative.
    """
    check_relative(settings, RELATIVES, "of language models")
    pretraining = Pretraining()
    return small_relative(settings, content_hash(pretraining), lambda folder: make(folder, pretraining), causal_lm.load)


def content_hash(pretraining: Pretraining) -> str:
    """Hash everything that determines the model."""
    from flexlora.tiny import world

    return small_llama.content_hash(pretraining, world.source_hash() + source_hash(_tokenizer))


def make(folder: Path, pretraining: Pretraining) -> None:
    """Pretrain the small language model on texts about the small world and save it in the existing `folder`."""
    from flexlora.tiny.world import corpus

    small_llama.make(folder, _tokenizer(), pretraining, corpus)


def _tokenizer() -> Any:
    """Make a tokenizer with one token for each lower-case word, and one token for "### Response:"."""
    from flexlora.tasks.commonsense_prompts import RESPONSE, training_text
    from flexlora.tiny.world import ASKED, CURRICULUM, QUALITIES, corpus, rows

    draw = Random("vocabulary")
    texts = [piece for stage in range(len(CURRICULUM)) for text in corpus(stage, 1000) for piece, _ in text]
    texts += [training_text(row, row["output"]) for name in ASKED for row in rows(name, QUALITIES, 500, draw)]
    return small_llama.word_tokenizer(texts, RESPONSE)
