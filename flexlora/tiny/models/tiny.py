"""`scale=tiny`: small relatives of the paper's encoders, of the same classes, pretrained once and cached.

A cached encoder is a folder written by `save_pretrained`. It is loaded like any encoder from a folder.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from flexlora.models import Backbone, sequence_classifier
from flexlora.settings import ModelSettings
from flexlora.tiny.model_cache import check_relative, hash_of, small_relative, source_hash
from flexlora.tiny.pretrain_encoder import Pretraining

SPECIAL = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
ROBERTA_SPECIAL = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
LONGEST = 64

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.05,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DEBERTA: dict[str, Any] = {
    "model_type": "deberta-v2",
    "special": SPECIAL,
    "config": _SHAPE
    | {
        "max_position_embeddings": LONGEST,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "pooler_hidden_size": 64,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
    },
}
_ROBERTA: dict[str, Any] = {
    "model_type": "roberta",
    "special": ROBERTA_SPECIAL,
    # RoBERTa counts positions from the padding id plus one.
    "config": _SHAPE | {"max_position_embeddings": LONGEST + 2, "type_vocab_size": 1},
}
RELATIVES = {"deberta_v3_base": _DEBERTA, "roberta_base": _ROBERTA}
"""Maps `model.name` to the architecture, the special tokens and the shape of its small relative."""


def load(settings: ModelSettings, num_labels: int) -> Backbone:
    """Load the small relative of `model.name` with a fresh head. It is pretrained first if it is not in the cache.

    Raises:
        UserError: `model.path` is set, or `model.name` has no small relative.
    """
    check_relative(settings, RELATIVES, "of encoders")
    pretraining = Pretraining()
    shape = RELATIVES[settings.name or ""]
    return small_relative(
        settings,
        content_hash(shape, pretraining),
        lambda folder: make(folder, shape, pretraining),
        lambda small: sequence_classifier.load(small, num_labels),
    )


def content_hash(relative: dict[str, Any], pretraining: Pretraining) -> str:
    """Hash everything that determines the encoder: settings, source of generator and pretraining, library versions."""
    import torch
    import transformers

    from flexlora.tiny import english, pretrain_encoder

    facts = {
        "relative": relative,
        "pretraining": asdict(pretraining),
        "generator": english.source_hash(),
        "source": source_hash(pretrain_encoder, make, _tokenizer),
    }
    return hash_of(facts, torch, transformers)


def make(folder: Path, relative: dict[str, Any], pretraining: Pretraining) -> None:
    """Pretrain a small encoder and save it with its tokenizer in the existing `folder`.

    The process's random state is restored afterwards: a run does not depend on which process pretrained.
    """
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    from flexlora.tiny.english import corpus, primer
    from flexlora.tiny.pretrain_encoder import pretrain

    tokenizer = _tokenizer(relative["special"])
    config = AutoConfig.for_model(
        relative["model_type"],
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **relative["config"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pretraining.seed)
        # The pooler belongs to the head, which every run initialises again.
        without_pooler = {"add_pooling_layer": False} if relative["model_type"] == "roberta" else {}
        encoder = AutoModel.from_config(config, **without_pooler)
        pretrain(encoder, tokenizer, primer(pretraining.texts), corpus(pretraining.texts), pretraining)
    transformers_logging.disable_progress_bar()
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(special: dict[str, str]) -> Any:
    """Make a tokenizer with one token for each word, and the special tokens of the model family."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from flexlora.tiny.english import VOCABULARY

    ids = {word: number for number, word in enumerate([*special.values(), *VOCABULARY])}
    begin, end = special["cls_token"], special["sep_token"]
    is_roberta = begin == "<s>"
    backend = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {end} $B {end}" if is_roberta else f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(begin, ids[begin]), (end, ids[end])],
    )
    inputs = ["input_ids", "attention_mask"] if is_roberta else ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=LONGEST, model_input_names=inputs, **special
    )
