"""The small encoders of `scale=tiny`: they have the real classes, are pretrained once and are cached completely."""

import dataclasses
import logging
import os
from pathlib import Path

import pytest
import torch
from marks import slow_but
from runner_helpers import one_line

from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.results.record import read_record
from flexlora.settings import Dtype, ModelSettings
from flexlora.tiny.english import corpus, primer
from flexlora.tiny.model_cache import CHECKSUM
from flexlora.tiny.models import tiny
from flexlora.tiny.pretrain_encoder import Pretraining, pretrain

SHORT = Pretraining(texts=64, primer_steps=1, steps=2, batch_size=4)


def model_settings(**changes) -> ModelSettings:
    values = {
        "name": "deberta_v3_base",
        "kind": "tiny",
        "scale": "tiny",
        "path": None,
        "revision": None,
        "use_safetensors": True,
        "dtype": Dtype.float32,
    }
    return ModelSettings(**{**values, **changes})


@pytest.fixture
def short(monkeypatch, tmp_path) -> Path:
    """Set an empty cache, and a pretraining of two steps."""
    monkeypatch.setattr(tiny, "Pretraining", lambda: SHORT)
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tiny"


def encoders(cache: Path) -> list[Path]:
    return [folder for folder in cache.iterdir() if folder.is_dir()]


@pytest.mark.parametrize(
    ("name", "model_class", "special", "linears"),
    [
        ("deberta_v3_base", "DebertaV2ForSequenceClassification", "[CLS] the dog [SEP] the cat [SEP]", 18),
        ("roberta_base", "RobertaForSequenceClassification", "<s> the dog </s> </s> the cat </s>", 18),
    ],
)
def test_the_small_encoder_has_the_class_of_the_real_one(short, name, model_class, special, linears):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    backbone = load_backbone(model_settings(name=name), 3)
    assert type(backbone.model).__name__ == model_class
    assert backbone.model.config.num_labels == 3
    assert sum(p.numel() for p in backbone.model.parameters()) < 300_000
    ids = backbone.processor("the dog", "the cat")["input_ids"]
    assert " ".join(backbone.processor.convert_ids_to_tokens(ids)) == special
    assert backbone.processor.unk_token_id not in backbone.processor("nobody found the plot dull .")["input_ids"]
    config = LoraConfig(target_modules=backbone.target_modules)
    adapted = [n for n, _ in backbone.model.named_modules() if check_target_module_exists(config, n)]
    assert len(adapted) == linears
    assert backbone.revision == tiny.content_hash(tiny.RELATIVES[name], SHORT)


def test_the_encoder_is_pretrained_once(short, caplog):
    caplog.set_level(logging.INFO, logger="flexlora")
    first = load_backbone(model_settings(), 2)
    assert caplog.text.count("this happens once") == 1
    second = load_backbone(model_settings(), 2)
    assert caplog.text.count("this happens once") == 1
    assert len(encoders(short)) == 1
    weights = first.model.deberta.state_dict(), second.model.deberta.state_dict()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_pretraining_does_not_change_the_random_state_of_the_run(short):
    """The head and all later random numbers are the same whether or not the encoder was in the cache."""
    heads, draws = [], []
    for _ in range(2):
        torch.manual_seed(5)
        heads.append(load_backbone(model_settings(), 2).model.classifier.weight)
        draws.append(torch.rand(3))
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(draws[0], draws[1])


def test_the_hash_covers_everything_that_determines_the_encoder(monkeypatch):
    deberta = tiny.RELATIVES["deberta_v3_base"]
    plain = tiny.content_hash(deberta, SHORT)
    assert plain == tiny.content_hash(dict(deberta), dataclasses.replace(SHORT))
    hashes = {plain, tiny.content_hash(tiny.RELATIVES["roberta_base"], SHORT)}
    hashes |= {
        tiny.content_hash(deberta, dataclasses.replace(SHORT, **{field.name: getattr(SHORT, field.name) + 1}))
        for field in dataclasses.fields(Pretraining)
    }
    hashes.add(tiny.content_hash(deberta | {"config": deberta["config"] | {"hidden_size": 32}}, SHORT))
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    hashes.add(tiny.content_hash(deberta, SHORT))
    monkeypatch.undo()
    monkeypatch.setattr("flexlora.tiny.english.source_hash", lambda: "another generator")
    hashes.add(tiny.content_hash(deberta, SHORT))
    monkeypatch.undo()
    monkeypatch.setattr(tiny, "source_hash", lambda *parts: "another pretraining")
    hashes.add(tiny.content_hash(deberta, SHORT))
    assert len(hashes) == len(dataclasses.fields(Pretraining)) + 6


@pytest.mark.parametrize("harm", slow_but({"flipped"}, ["cut", "flipped", "gone", "checksum"]))
def test_a_damaged_encoder_is_pretrained_again(short, caplog, harm):
    load_backbone(model_settings(), 2)
    (folder,) = encoders(short)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    if harm == "cut":
        weights.write_bytes(content[:-100])
    elif harm == "flipped":
        weights.write_bytes(content[:-4] + bytes(255 - byte for byte in content[-4:]))
    elif harm == "gone":
        weights.unlink()
    else:
        (folder / CHECKSUM).write_text("{", encoding="utf-8")
    load_backbone(model_settings(), 2)
    assert "is damaged: making it again" in caplog.text
    assert weights.read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs /proc")
def test_an_unwritable_cache_falls_back_to_a_temporary_folder(short, monkeypatch, caplog):
    monkeypatch.setenv("FLEXLORA_CACHE", "/proc/flexlora")  # nobody can make folders there, not even root
    backbone = load_backbone(model_settings(), 2)
    assert backbone.model.num_labels == 2
    (line,) = [record.getMessage() for record in caplog.records if "is not cached" in record.getMessage()]
    assert "cannot write in /proc/flexlora/tiny" in line


def test_pretraining_learns():
    """The loss falls by 30% within 150 steps. A fresh encoder starts at the loss of guessing."""
    torch.manual_seed(0)
    relative = tiny.RELATIVES["roberta_base"]
    tokenizer = tiny._tokenizer(relative["special"])
    from transformers import RobertaConfig, RobertaModel

    encoder = RobertaModel(
        RobertaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **relative["config"]),
        add_pooling_layer=False,
    )
    settings = dataclasses.replace(Pretraining(), primer_steps=50, steps=150, warmup_steps=20)
    losses = pretrain(encoder, tokenizer, primer(200), corpus(200), settings)
    assert len(losses) == 150
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize("changes", [{"path": "/somewhere"}, {"name": "mine"}, {"name": None}])
def test_a_local_or_unknown_model_is_refused(short, changes):
    with pytest.raises(UserError, match=r"^scale=tiny makes its own small model: leave out model=local and model.path"):
        load_backbone(model_settings(**changes), 2)
    assert not short.exists()


@pytest.mark.slow
def test_the_command_runs_offline(flexlora_run, tiny_cache, tmp_path):
    """The command opens no socket: its interpreter imports `sitecustomize` first, which makes every socket fail."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse\n"
    )
    result = flexlora_run(
        "-m",
        "task=glue/cola",
        "method=lora,flexlora",
        "scale=tiny",
        "training.max_steps=16",
        "task.max_eval_rows=64",
        f"output_root={tmp_path / 'outputs'}",
        PYTHONPATH=str(tmp_path),
        HF_HUB_OFFLINE="",
        FLEXLORA_CACHE=str(tiny_cache),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the results say nothing about the paper" in result.stdout
    for method in ("lora", "flexlora"):
        variant = "task.max_eval_rows-64+training.max_steps-16"
        folder = tmp_path / "outputs" / "tiny" / "glue" / "cola" / "deberta_v3_base" / method / variant / "seed0"
        record = read_record(folder / "result.json")
        assert (record.status, record.scale, record.steps) == ("done", "tiny", 16)
        assert record.data["source"] == "generated"
        assert record.data["revision"] is not None
        assert record.backbone["path"] is None
        assert len(record.backbone["revision"]) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=local"], "scale=tiny makes its own small model: leave out model=local and model.path, or leave out"),
        (["task.data_dir=/nowhere"], "scale=tiny generates its data: leave out task.data_dir, or leave out scale=tiny"),
    ],
)
def test_contradicting_settings_are_refused_in_one_line(flexlora_run, tmp_path, arguments, message):
    result = flexlora_run("task=glue/cola", "scale=tiny", *arguments, f"output_root={tmp_path}")
    assert result.returncode == 2
    assert one_line(result).startswith(message)


def test_a_sweep_over_tasks_continues_after_a_divergence(flexlora_run, tiny_cache, tmp_path):
    """The evaluation has one row: DeBERTa's prediction of a score then has no dimension."""
    result = flexlora_run(
        "task=glue/stsb,glue/mnli",  # not in experiment=glue's order: the command line's order wins
        "experiment=glue",
        "scale=tiny",
        "method=lora",
        "seed=0",
        "training.learning_rate=1e30,1e-3",
        "training.max_steps=2",
        "training.warmup_ratio=0",
        "task.max_eval_rows=1",
        f"output_root={tmp_path}",
        FLEXLORA_CACHE=str(tiny_cache),
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "\n4 runs: 2 diverged, 2 done\n" in result.stdout
    records = [read_record(path) for path in sorted(tmp_path.rglob("result.json"))]
    assert {(record.task, record.status) for record in records} == {
        (task, status) for task in ("glue/stsb", "glue/mnli") for status in ("diverged", "done")
    }
    assert all(set(record.samples["evaluation"].values()) == {1} for record in records)


def test_an_unknown_scale_is_refused_in_one_line(flexlora_run, tmp_path):
    result = flexlora_run("task=glue/cola", "scale=tyny", f"output_root={tmp_path}")
    assert result.returncode == 2
    assert one_line(result) == "there is no scale 'tyny'. Did you mean tiny? There are: paper, tiny."
