"""`scale=tiny`: a small relative of Llama-3.1-8B for HumanEval, pretrained once on short functions, and cached."""

from pathlib import Path
from random import Random
from typing import Any

from flexlora.models import Backbone, causal_lm
from flexlora.settings import ModelSettings
from flexlora.source_hash import files_of, hash_of_files
from flexlora.tiny import functions, small_llama
from flexlora.tiny.model_cache import check_relative, small_relative, source_hash
from flexlora.tiny.pretrain_llama import Pretraining

RELATIVES = ("llama3_1_8b",)
"""The values of `model.name` that have a small relative."""

PRETRAINING = Pretraining(texts=8_000, steps=(300, 700), cooldown_steps=300)


def load(settings: ModelSettings, num_labels: None = None) -> Backbone:
    """Load the small relative of `model.name`. It is pretrained first if it is not in the cache.

    Raises:
        UserError: `model.path` is set, or `model.name` has no small relative.
    """
    check_relative(settings, RELATIVES, "of language models for HumanEval")
    return small_relative(settings, content_hash(), make, causal_lm.load)


def content_hash() -> str:
    """Hash everything that determines the model."""
    from flexlora.tasks import humaneval_text

    return small_llama.content_hash(
        PRETRAINING, hash_of_files(*files_of(functions, humaneval_text)) + source_hash(_tokenizer)
    )


def make(folder: Path) -> None:
    """Pretrain the small language model and save it in the existing `folder`."""
    small_llama.make(folder, _tokenizer(), PRETRAINING, functions.corpus)


def _tokenizer() -> Any:
    """Make a tokenizer with one token for each lower-case word, digit and mark."""
    from flexlora.tasks.humaneval_text import EVALUATION, WITHOUT_INPUT

    texts = [piece for stage in range(2) for text in functions.corpus(stage, 1000) for piece, _ in text]
    for row in functions.problems(1000, Random("vocabulary")):
        texts += [
            WITHOUT_INPUT.format(instruction=row["query"]),
            row["answer"],
            row["prompt"],
            row["canonical_solution"],
        ]
        texts += [prompt.format(prompt=row["prompt"]) for prompt in EVALUATION.values()]
    return small_llama.word_tokenizer(texts)
