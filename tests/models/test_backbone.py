"""Checks of a local encoder before training: its maximum length, and whether the tokenizer belongs to it."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.models.sequence_classifier import positions
from flexlora.settings import Dtype, ModelSettings

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def settings(folder: Path) -> ModelSettings:
    return ModelSettings(
        name=None,
        kind="sequence_classifier",
        scale="local",
        path=str(folder),
        revision=None,
        use_safetensors=True,
        dtype=Dtype.float32,
    )


@pytest.fixture
def copy(tiny_bert, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def test_max_length_follows_the_position_table_of_each_architecture():
    assert positions(BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=40))) == 40
    roberta = RobertaConfig(**SMALL, max_position_embeddings=42, pad_token_id=1)
    assert positions(RobertaForSequenceClassification(roberta)) == 40
    deberta = DebertaV2Config(**SMALL, position_biased_input=False, relative_attention=True, max_position_embeddings=40)
    assert positions(DebertaV2ForSequenceClassification(deberta)) > 10**6


def test_a_tokenizer_without_a_limit_gets_that_of_the_model(copy):
    file = copy / "tokenizer_config.json"
    values = json.loads(file.read_text())
    values.pop("model_max_length")
    file.write_text(json.dumps(values))
    assert load_backbone(settings(copy), 2).processor.model_max_length == 64


def test_a_tokenizer_of_another_model_is_refused(copy):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(UserError, match="has 29 words, but the model has 28: they do not belong together"):
        load_backbone(settings(copy), 2)
