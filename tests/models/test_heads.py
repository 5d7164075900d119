"""A checkpoint's trained head: it is kept where its classes are the task's, in the task's order, and always said."""

import json
from pathlib import Path

import pytest
import torch
from encoder_helpers import loaded, settings
from marks import slow_but
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from flexlora.architectures import ENCODERS
from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.models.heads import class_order
from flexlora.results.record import read_record

MNLI = ["entailment", "neutral", "contradiction"]
IDS = {"input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 10, 3]])}
LAST = {name: "classifier.out_proj" if name in ("roberta", "electra") else "classifier" for name in ENCODERS}


def trained(source: Path, folder: Path, names: list[str] | None) -> Path:
    """A checkpoint with a head of three classes, and their names."""
    config = AutoConfig.from_pretrained(source, num_labels=3)
    model = AutoModelForSequenceClassification.from_pretrained(source, config=config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name or "pooler" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    if names is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)
    for file in source.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def logits(backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model.eval()(**IDS).logits


@pytest.mark.parametrize("architecture", slow_but({"bert", "roberta"}, ENCODERS))
def test_the_order_of_the_classes_is_the_tasks(architecture, encoders, tmp_path):
    folder = trained(encoders[architecture], tmp_path / "m", ["CONTRADICTION", "entailment", "Neutral"])
    backbone = loaded(folder, 3)
    theirs = logits(backbone)
    line = backbone.match_classes(MNLI)
    assert torch.equal(logits(backbone), theirs[:, [1, 2, 0]])
    assert backbone.model.config.id2label == dict(enumerate(MNLI))
    assert line.startswith("head: ")
    assert line.endswith(
        "from the checkpoint (its classes are put in the task's order: CONTRADICTION, entailment, Neutral → "
        "entailment, neutral, contradiction)"
    )
    facts = backbone.facts()["head"]
    assert (LAST[architecture] in facts["kept"], facts["new"]) == (True, [])


@pytest.mark.parametrize("architecture", slow_but({"bert", "roberta"}, ENCODERS))
def test_a_head_of_other_classes_is_initialised_again(architecture, encoders, tmp_path):
    folder = trained(encoders[architecture], tmp_path / "m", ["negative", "neutral", "positive"])
    heads = []
    for seed in (1, 1, 2):
        backbone = loaded(folder, 3)
        theirs = backbone.model.get_submodule(LAST[architecture]).weight.detach().clone()
        torch.manual_seed(seed)
        line = backbone.match_classes(MNLI)
        heads.append(backbone.model.get_submodule(LAST[architecture]).weight.detach())
        assert backbone.model.get_submodule(LAST[architecture]).bias.abs().max() == 0
    assert "the checkpoint's has other classes: negative, neutral, positive" in line
    assert LAST[architecture] in backbone.facts()["head"]["new"]
    assert heads[0].equal(heads[1])
    assert not heads[0].equal(heads[2])
    assert not heads[0].equal(theirs)
    assert heads[0].std().item() == pytest.approx(backbone.model.config.initializer_range, rel=0.5)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, "its classes have no names and are taken as entailment, neutral, contradiction"),
        (MNLI, "its classes are taken as entailment, neutral, contradiction"),
        (["Entailment ", "NEUTRAL", "contradiction"], "its classes are taken as entailment, neutral, contradiction"),
    ],
)
def test_a_head_of_the_same_classes_is_kept(names, said, encoders, tmp_path):
    folder = trained(encoders["bert"], tmp_path / "m", names)
    backbone = loaded(folder, 3)
    before = logits(backbone)
    assert backbone.match_classes(MNLI) == f"head: bert.pooler.dense, classifier from the checkpoint ({said})"
    assert torch.equal(logits(backbone), before)
    saved = load_file(folder / "model.safetensors")
    assert backbone.model.classifier.weight.equal(saved["classifier.weight"])


def test_a_new_head_is_said_too(encoders, tmp_path):
    plain = loaded(encoders["bert"], 2)
    assert plain.match_classes(["0", "1"]) == "head: bert.pooler.dense from the checkpoint; classifier new"
    assert plain.facts()["head"] == {"kept": ["bert.pooler.dense"], "new": ["classifier"], "classes": None}
    other = loaded(trained(encoders["roberta"], tmp_path / "m", MNLI), 2)
    assert other.match_classes(["0", "1"]) == "head: classifier.dense from the checkpoint; classifier.out_proj new"
    number = loaded(trained(encoders["bert"], tmp_path / "n", None), 1)
    assert number.match_classes([]) == "head: bert.pooler.dense from the checkpoint; classifier new"


@pytest.mark.parametrize(
    ("theirs", "ours", "order"),
    [
        (["1", "0"], ["0", "1"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["0", "1"], [0, 1]),
        (["not-entailment", "entailment"], ["entailment", "not_entailment"], [1, 0]),
        (["unacceptable", "acceptable"], ["0", "1"], None),
        (["yes", "yes"], ["yes", "no"], None),
        (["a", "A"], ["a", "A"], None),
    ],
)
def test_classes_are_compared_by_their_names(theirs, ours, order):
    assert class_order(theirs, ours) == order


def test_the_record_and_one_line_of_the_run_say_it(flexlora_run, arguments, tiny_bert, tmp_path):
    config = AutoConfig.from_pretrained(tiny_bert, id2label={0: "1", 1: "0"}, label2id={"1": 0, "0": 1})
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, config=config)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        if (tiny_bert / name).exists():
            (folder / name).write_bytes((tiny_bert / name).read_bytes())
    given = [word for word in arguments if not word.startswith("model.path=")]
    result = flexlora_run(
        *given,
        f"model.path={folder}",
        "method=lora",
        "training.max_steps=1",
        f"output_root={tmp_path}",
        "schedule=absolute",
    )
    assert result.returncode == 0, result.stderr + result.stdout
    line = "its classes are put in the task's order: 1, 0 → 0, 1"
    assert result.stdout.count(line) == 1
    (record,) = tmp_path.glob("local/**/result.json")
    assert read_record(record).backbone["head"] == {
        "kept": ["bert.pooler.dense", "classifier"],
        "new": [],
        "classes": line,
    }


# --- a second adapter -------------------------------------------------------------------------------------------------


def with_adapter(folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForSequenceClassification.from_pretrained(folder)
    config = LoraConfig(target_modules=["query"], init_lora_weights=False, task_type="SEQ_CLS")
    get_peft_model(base, config).save_pretrained(folder)
    return folder


def test_an_adapter_beside_the_weights_is_refused(encoders, tmp_path):
    folder = with_adapter(trained(encoders["bert"], tmp_path / "m", None))
    with pytest.raises(
        UserError, match=r"has adapter_config.json beside its weights: an adapter of an earlier training"
    ):
        load_backbone(settings(folder), 2)
    (folder / "adapter_config.json").unlink()
    assert not [name for name, _ in load_backbone(settings(folder), 2).model.named_modules() if "lora" in name]


def test_an_adapter_beside_a_language_model_is_refused_before_and_after_loading(tmp_path, monkeypatch):
    from commonsense_helpers import model_settings, write_llama

    from flexlora.models import pretrained, sketch

    folder = write_llama(tmp_path / "llama")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": str(folder), "r": 2})
    )
    for load in (load_backbone, sketch):
        with pytest.raises(UserError, match=r"Merge it first .*, or move adapter_config.json away"):
            load(model_settings(folder), None)
    # From the hub the file is seen only by what transformers made of it.
    monkeypatch.setattr(pretrained, "refuse_second_adapter", lambda *_: None)
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.ones(shape)
        for layer in range(2)
        for side, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"beside its weights: an adapter of an earlier training"):
        load_backbone(model_settings(folder), None)


def test_an_adapter_beside_a_timm_model_is_refused(tmp_path):
    from test_image_classifier import refusal
    from vtab_helpers import write_vit

    folder = write_vit(tmp_path / "vit")
    (folder / "adapter_config.json").write_text("{}")
    assert "has adapter_config.json beside its weights" in refusal(folder)


def test_weights_that_hold_an_adapter_are_refused(encoders, tmp_path):
    folder = trained(encoders["bert"], tmp_path / "m", None)
    state = load_file(folder / "model.safetensors")
    state["bert.encoder.layer.0.attention.self.query.lora_A.default.weight"] = torch.ones(2, 32)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lora_A.default.weight, but config.json describes no such layer"):
        load_backbone(settings(folder), 2)
