"""DeBERTaV3's checkpoint in the hub's layout: a SentencePiece model and pytorch_model.bin, no newer files."""

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from runner_helpers import one_line
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

from flexlora.models.random_init import DEBERTA_V3_BASE
from flexlora.results.record import read_record
from flexlora.testing.small_data import sentences

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pooler_hidden_size": 32,
}


@pytest.fixture(scope="module")
def tiny_deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller DeBERTaV3-base with the files of its hub repository."""
    folder = tmp_path_factory.mktemp("tiny-deberta")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text, _ in sentences(400, seed=0)]),
        model_prefix=str(folder / "spm"),
        vocab_size=80,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
    )
    (folder / "spm.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    model = DebertaV2ForMaskedLM(DebertaV2Config(**(DEBERTA_V3_BASE | SMALL | {"vocab_size": 120})))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_deberta_trains_with_pooler_and_classifier(flexlora_run, tiny_deberta, cola, tmp_path):
    result = flexlora_run(
        "task=glue/cola",
        "method=flexlora",
        "model=local",
        f"model.path={tiny_deberta}",
        "model.use_safetensors=false",
        f"task.data_dir={cola}",
        "training.epochs=1",
        "variant=test",
        f"output_root={tmp_path}",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.rglob("result.json")
    record = read_record(file)
    assert record.status == "done"
    # Six linears in each of two layers at rank 8: four of 32 x 32, two between 32 and 64; events conserve the total.
    assert sum(record.rank_events["final_ranks"].values()) == 12 * 8
    assert {name.split(".")[-1] for name in record.rank_events["final_ranks"]} == {
        "query_proj",
        "key_proj",
        "value_proj",
        "dense",
    }
    assert record.parameters["head"] == (32 * 32 + 32) + (32 * 2 + 2)


def test_other_models_are_read_from_safetensors_only(flexlora_run, tiny_deberta, cola, tmp_path):
    result = flexlora_run(
        "task=glue/cola",
        "model=local",
        f"model.path={tiny_deberta}",
        f"task.data_dir={cola}",
        f"output_root={tmp_path}",
    )
    assert result.returncode == 2
    assert "safetensors" in one_line(result)
