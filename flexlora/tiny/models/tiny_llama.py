"""`scale=tiny`: a small relative of the paper's language model, of LLaMA's own class, pretrained once and cached.

The cached model is a folder written by `save_pretrained`. It is loaded like any language model from a folder.
"""

from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from flexlora.models import Backbone, causal_lm
from flexlora.settings import ModelSettings
from flexlora.tiny.model_cache import check_relative, hash_of, small_relative, source_hash
from flexlora.tiny.pretrain_llama import Pretraining

RELATIVES = ("llama3_8b",)
"""The values of `model.name` that have a small relative."""

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# The small shape: four layers of width 64. As in LLaMA3, there are fewer key and value heads than query heads.
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def load(settings: ModelSettings, num_labels: None = None) -> Backbone:
    """Load the small relative of `model.name`. It is pretrained first if it is not in the cache.

    Raises:
        UserError: `model.path` is set, or `model.name` has no small relative.
    """
    check_relative(settings, RELATIVES, "of language models")
    pretraining = Pretraining()
    return small_relative(settings, content_hash(pretraining), lambda folder: make(folder, pretraining), causal_lm.load)


def content_hash(pretraining: Pretraining) -> str:
    """Hash everything that determines the model: settings, source of world and pretraining, library versions."""
    import tokenizers
    import torch
    import transformers

    from flexlora.tiny import pretrain_llama, world

    facts = {
        "shape": SHAPE,
        "special": SPECIAL,
        "pretraining": asdict(pretraining),
        "world": world.source_hash(),
        "source": source_hash(pretrain_llama, make, _tokenizer),
    }
    return hash_of(facts, torch, transformers, tokenizers)


def make(folder: Path, pretraining: Pretraining) -> None:
    """Pretrain a small language model and save it with its tokenizer in the existing `folder`.

    The process's random state is restored afterwards: a run does not depend on which process pretrained.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    from flexlora.tiny.pretrain_llama import pretrain

    tokenizer = _tokenizer()
    ends = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("pad_token", "bos_token", "eos_token")}
    config = LlamaConfig(vocab_size=len(tokenizer), **ends, **SHAPE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pretraining.seed)
        model = LlamaForCausalLM(config)
        pretrain(model, tokenizer, pretraining)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    """Make a tokenizer with one token for each lower-case word, and one token for "### Response:"."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from flexlora.tasks.commonsense_prompts import RESPONSE, training_text
    from flexlora.tiny.world import ASKED, CURRICULUM, QUALITIES, corpus, rows

    backend = Tokenizer(models.WordLevel(unk_token=SPECIAL["unk_token"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    draw = Random("vocabulary")
    texts = [piece for stage in range(len(CURRICULUM)) for text in corpus(stage, 1000) for piece, _ in text]
    texts += [training_text(row, row["output"]) for name in ASKED for row in rows(name, QUALITIES, 500, draw)]
    backend.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=list(SPECIAL.values()), show_progress=False)
    )
    backend.add_tokens([AddedToken(RESPONSE, normalized=False)])
    begin = SPECIAL["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=SHAPE["max_position_embeddings"], **SPECIAL
    )
