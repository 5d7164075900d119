"""A small language model of LLaMA's own class, with one token for each word, pretrained on generated texts."""

import inspect
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flexlora.tiny import pretrain_llama
from flexlora.tiny.model_cache import hash_of
from flexlora.tiny.pretrain_llama import Corpus, Pretraining

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


def content_hash(pretraining: Pretraining, texts: str) -> str:
    """Hash everything that determines a model: the settings, the hash of its texts, our source, library versions."""
    import tokenizers
    import torch
    import transformers

    facts = {
        "shape": SHAPE,
        "special": SPECIAL,
        "pretraining": asdict(pretraining),
        "texts": texts,
        "source": [inspect.getsource(part) for part in (pretrain_llama, make, word_tokenizer)],
    }
    return hash_of(facts, torch, transformers, tokenizers)


def make(folder: Path, tokenizer: Any, pretraining: Pretraining, corpus: Corpus) -> None:
    """Pretrain a small language model and save it with its tokenizer in the existing `folder`.

    The process's random state is restored afterwards: a run does not depend on which process pretrained.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    ends = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("pad_token", "bos_token", "eos_token")}
    config = LlamaConfig(vocab_size=len(tokenizer), **ends, **SHAPE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pretraining.seed)
        model = LlamaForCausalLM(config)
        pretrain_llama.pretrain(model, tokenizer, pretraining, corpus)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def word_tokenizer(texts: Iterable[str], *more: str) -> Any:
    """Make a tokenizer with one token for each lower-case word of `texts`, and one for each text of `more`."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(unk_token=SPECIAL["unk_token"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=list(SPECIAL.values()), show_progress=False)
    )
    backend.add_tokens([AddedToken(text, normalized=False) for text in more])
    begin = SPECIAL["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=SHAPE["max_position_embeddings"], **SPECIAL
    )
