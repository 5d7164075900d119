"""`scale=tiny`: a small relative of Llama-3.1-8B that reads any text letter by letter, pretrained once, and cached.

Its tokens are letters, so that it can be tried on a user's own instructions, whose words no small vocabulary has.
"""

import itertools
import string
from pathlib import Path
from typing import Any

from flexlora.models import Backbone, causal_lm
from flexlora.settings import ModelSettings
from flexlora.tiny import english, small_llama
from flexlora.tiny.model_cache import check_relative, small_relative, source_hash
from flexlora.tiny.pretrain_llama import Pretraining, Text

RELATIVES = ("llama3_1_8b",)
"""The values of `model.name` that have a small relative."""

PRETRAINING = Pretraining(texts=200, steps=(100,), batch_size=16, warmup_steps=20, cooldown_steps=50)
LONGEST = 2048
"""The most letters of a text. Positions are rotations, so that pretraining on short texts does not limit them."""


def load(settings: ModelSettings, num_labels: None = None) -> Backbone:
    """Load the small relative of `model.name`. It is pretrained first if it is not in the cache.

    Raises:
        UserError: `model.path` is set, or `model.name` has no small relative.
    """
    check_relative(settings, RELATIVES, "of language models for instructions")
    return small_relative(settings, content_hash(), make, causal_lm.load)


def content_hash() -> str:
    """Hash everything that determines the model."""
    return small_llama.content_hash(PRETRAINING, english.source_hash() + source_hash(make, corpus, tokenizer))


def make(folder: Path) -> None:
    """Pretrain the small language model and save it in the existing `folder`."""
    from transformers import LlamaConfig

    small_llama.make(folder, tokenizer(), PRETRAINING, corpus)
    config = LlamaConfig.from_pretrained(folder)
    config.max_position_embeddings = LONGEST
    config.save_pretrained(folder)


def corpus(stage: int, count: int) -> list[Text]:
    """Generate `count` English texts as letters. The target after each letter is the next one."""
    return [[*itertools.zip_longest(text, text[1:])] for text in map(" ".join, english.corpus(count))]


def tokenizer() -> Any:
    """Make a tokenizer with one token for each letter, digit, mark and white space of ASCII."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = small_llama.SPECIAL
    ids = {token: number for number, token in enumerate([*special.values(), *string.printable])}
    backend = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    begin = special["bos_token"]
    backend.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, ids[begin])])
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LONGEST, **special)
