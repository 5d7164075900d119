"""What an earlier task left in config.json and the tokenizer's files decides neither the loss nor the tokens."""

import dataclasses
import inspect
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from encoder_helpers import loaded, settings
from glue_helpers import settings_of
from marks import slow_but

from flexlora.architectures import ENCODERS
from flexlora.errors import UserError
from flexlora.models import Backbone, load_backbone
from flexlora.settings import ModelSettings
from flexlora.tasks.glue import Glue, glue
from flexlora.tasks.rows import Rows

# 20 and 5 words of the tiny BERT's vocabulary: a limit or a side that is left changes the tokens of the first.
TEXTS = (["the cat sees the dog often never always again the child helps the singer . the farmer calls the sailor ."],
         ["the dog likes the cat ."])  # fmt: skip

CONFIG: dict[str, dict[str, Any]] = {
    "loss of a number": {"problem_type": "regression"},
    "loss of one class": {"problem_type": "single_label_classification"},
    "loss of many classes": {"problem_type": "multi_label_classification"},
    "tuples": {"return_dict": False},
    "an old name for tuples": {"torchscript": True},
    "attentions": {"output_attentions": True},
    "hidden states": {"output_hidden_states": True},
    "a decoder": {"is_decoder": True},
    "cross attention": {"is_decoder": True, "add_cross_attention": True},
    "dropout of the head": {
        "classifier_dropout": 0.9, "cls_dropout": 0.9, "seq_classif_dropout": 0.9, "pooler_dropout": 0.9,
        "summary_last_dropout": 0.9,
    },
    "three classes": {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
    "classes that are no numbers": {"id2label": {"yes": "no"}},
    "classes of another kind": {"id2label": ["a", "b"], "label2id": None},
    "the name of a task": {"finetuning_task": "mnli", "task_specific_params": {"summarization": {"max_length": 4}}},
}  # fmt: skip
TOKENIZER: dict[str, dict[str, Any]] = {
    "cut at the start": {"truncation_side": "left"},
    "padded at the start": {"padding_side": "left"},
    "a limit below 0": {"model_max_length": -1},
    "a limit of 0": {"model_max_length": 0},
    "a short limit": {"model_max_length": 8},
    "a long limit": {"model_max_length": 100_000},
    "no token to pad with": {"pad_token": None},
    "one segment": {"model_input_names": ["input_ids", "attention_mask"]},
    "no mask": {"model_input_names": ["input_ids"]},
    "two segments": {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
}
# Of the tokenizer's own file, which has the settings of its last call.
BACKEND: dict[str, dict[str, Any]] = {
    "a cut of the last call": {
        "truncation": {"direction": "Left", "max_length": 6, "strategy": "OnlySecond", "stride": 2}
    },
    "padding of the last call": {
        "padding": {
            "strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 3, "pad_type_id": 1,
            "pad_token": "[SEP]",
        }
    },
}  # fmt: skip
FILES = {"config.json": CONFIG, "tokenizer_config.json": TOKENIZER, "tokenizer.json": BACKEND}
CASES = [(file, name) for file, cases in FILES.items() for name in cases]


def changed(source: Path, folder: Path, file: str, changes: dict[str, Any]) -> Path:
    shutil.copytree(source, folder)
    values = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(values | changes), encoding="utf-8")
    if "pad_token" in changes:
        (folder / "special_tokens_map.json").unlink(missing_ok=True)
        backend = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] != "[PAD]"]
        (folder / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")
    return folder


def paired(folder: Path, num_labels: int) -> tuple[Glue, Backbone, dict[str, torch.Tensor]]:
    """A task of two pairs of texts, a backbone, and the batch of both."""
    labels = [0.5, 1.5] if num_labels == 1 else [0, 1]
    rows = Rows(tuple(column * 2 for column in TEXTS), labels)
    rows.texts[0][1] = "the cat helps ."
    given = settings_of("stsb" if num_labels == 1 else "rte", max_length=18, token_cache=None)
    task = glue(given, rows, {"validation": rows}, {})
    backbone = loaded(folder, num_labels)
    task.preprocess(backbone.processor)
    return task, backbone, task.collate(list(task.train.examples))


def losses(folder: Path, num_labels: int) -> list[float]:
    """The losses in training, with dropout, and in evaluation."""
    task, backbone, batch = paired(folder, num_labels)
    torch.manual_seed(1)
    train = task.loss(backbone.model.train(), batch)
    evaluation, _ = task.predict(backbone.model.eval(), batch)
    return [train.item(), evaluation.item()]


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("architecture", ENCODERS)
def test_the_loss_is_that_of_transformers_for_this_kind_of_label(architecture, num_labels, encoders):
    task, backbone, batch = paired(encoders[architecture], num_labels)
    theirs = backbone.model.eval()(**batch).loss
    assert torch.allclose(task.loss(backbone.model, batch), theirs, atol=1e-6)
    assert torch.allclose(task.predict(backbone.model, batch)[0], theirs, atol=1e-6)


@pytest.fixture(scope="module")
def expected(encoders) -> Callable[[str, int], list[float]]:
    return cache(lambda architecture, num_labels: losses(encoders[architecture], num_labels))


@pytest.mark.parametrize("architecture", slow_but({"bert"}, ENCODERS))
@pytest.mark.parametrize(("file", "left"), CASES, ids=[name for _, name in CASES])
def test_it_does_not_decide_the_loss(file, left, architecture, encoders, expected, tmp_path):
    folder = changed(encoders[architecture], tmp_path / "model", file, FILES[file][left])
    for num_labels in (1, 2):
        assert losses(folder, num_labels) == expected(architecture, num_labels)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_the_texts_of_a_pair_are_told_apart_where_the_model_can(architecture, encoders):
    backbone = loaded(encoders[architecture], 2)
    inputs = backbone.processor(*TEXTS)
    assert set(inputs.get("token_type_ids", [[0, 1]])[0]) == {0, 1}
    assert ("token_type_ids" in inputs) == (architecture not in ("roberta", "distilbert"))


def test_one_line_names_what_was_left(encoders, tmp_path, caplog):
    caplog.set_level("INFO", "flexlora")
    folder = changed(
        encoders["bert"], tmp_path / "m", "config.json", {"problem_type": "regression", "classifier_dropout": 0.5}
    )
    folder = changed(folder, tmp_path / "n", "tokenizer_config.json", TOKENIZER["a short limit"])
    loaded(folder, 2)
    assert caplog.messages[:2] == [
        f"model.path: config.json of {folder} has problem_type=regression, classifier_dropout=0.5 of an earlier task: "
        "not used",
        f"model.path: the tokenizer of {folder} has model_max_length=8: not used, the task decides",
    ]
    caplog.clear()
    loaded(encoders["bert"], 2)
    assert caplog.messages == []


def test_dropout_of_the_layers_stays_and_is_said(encoders, tmp_path, caplog):
    """It is the pretrained model's own, so that no task decides it."""
    folder = changed(encoders["bert"], tmp_path / "m", "config.json", {"hidden_dropout_prob": 0.5})
    backbone = loaded(folder, 2)
    assert backbone.facts()["dropout"] == {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.5}
    assert caplog.messages == [
        f"model.path: config.json of {folder} has hidden_dropout_prob=0.5 (usual for bert: hidden_dropout_prob=0.1): "
        "this run trains with it"
    ]


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), "0.1", [0.1]])
def test_dropout_that_is_no_probability_is_one_line(value, encoders, tmp_path):
    folder = changed(encoders["bert"], tmp_path / "m", "config.json", {"attention_probs_dropout_prob": value})
    with pytest.raises(UserError, match=r"attention_probs_dropout_prob") as caught:
        loaded(folder, 2)
    assert "\n" not in str(caught.value)


def test_a_text_is_cut_by_the_task_and_never_beyond_the_models_positions(encoders):
    backbone = loaded(encoders["bert"], 2)
    rows = Rows((["the cat sees the dog . " * 30],), [0])
    for longest, tokens in ((10, 10), (60, 60), (500, 64)):
        task = glue(settings_of("cola", max_length=longest, token_cache=None), rows, {"validation": rows}, {})
        task.preprocess(backbone.processor)
        assert task.train.lengths == [tokens]


def test_a_language_model_returns_its_logits_and_is_cut_at_the_end(tmp_path):
    from commonsense_helpers import model_settings, write_llama

    folder = write_llama(tmp_path / "llama")
    folder = changed(folder, tmp_path / "m", "config.json", {"return_dict": False, "output_hidden_states": True})
    folder = changed(
        folder, tmp_path / "n", "tokenizer_config.json", {"truncation_side": "left", "model_max_length": -1}
    )
    backbone = load_backbone(model_settings(folder), None)
    ids = torch.tensor([[1, 5, 6]])
    out = backbone.model(input_ids=ids)
    assert out.logits.shape[:2] == (1, 3)
    assert out.hidden_states is None
    cut = backbone.processor("which is cat ?", truncation=True, max_length=3)["input_ids"]
    assert cut == backbone.processor("which is cat ?")["input_ids"][:3]
    assert backbone.processor.model_max_length == backbone.model.config.max_position_embeddings


def test_a_tokenizer_that_ends_every_text_is_refused(tmp_path):
    """As the tokenizer of a fine-tuning on whole texts is saved: a question would end before its answer."""
    from commonsense_helpers import model_settings, write_llama
    from tokenizers import processors

    folder = write_llama(tmp_path / "llama")
    template = json.loads(processors.TemplateProcessing("$A </s>", None, [("</s>", 2)]).__getstate__())
    folder = changed(folder, tmp_path / "m", "tokenizer.json", {"post_processor": template})
    with pytest.raises(UserError, match=r"ends every text with its end-of-sequence token.*add_eos_token=False"):
        load_backbone(model_settings(folder), None)


def timm_folder(folder: Path, **arguments: Any) -> ModelSettings:
    from vtab_helpers import VIT, write_vit

    write_vit(folder)
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(values | {"model_args": VIT | arguments}), encoding="utf-8")
    return dataclasses.replace(settings(folder), kind="image_classifier")


def test_a_timm_models_head_has_no_dropout_of_an_earlier_task(tmp_path, caplog):
    caplog.set_level("INFO", "flexlora")
    given = timm_folder(tmp_path / "m", drop_rate=0.9, drop_path_rate=0.2)
    backbone = load_backbone(given, 3)
    assert backbone.model.head_drop.p == 0
    assert backbone.facts() == {"dropout": {"drop_path_rate": 0.2}}
    assert caplog.messages == [
        f"model.path: config.json of {given.path} has drop_rate=0.9 of an earlier task: not used",
        f"model.path: config.json of {given.path} has drop_path_rate=0.2 (usual for vit_base_patch16_224: "
        "drop_path_rate=0.0): this run trains with it",
    ]
    with pytest.raises(UserError, match=r"attn_drop_rate=1.5, which is not a probability below 1"):
        load_backbone(timm_folder(tmp_path / "n", attn_drop_rate=1.5), 3)


@pytest.mark.parametrize(
    "name", sorted(inspect.signature(timm.create_model).parameters.keys() - {"model_name", "kwargs"})
)
def test_a_timm_config_neither_names_other_weights_nor_another_use(name, tmp_path):
    """`checkpoint_path` would be unpickled. A parameter that a later timm adds is refused or found here."""
    with pytest.raises(UserError, match=rf"has model_args.{name}, which is no argument of an architecture"):
        load_backbone(timm_folder(tmp_path / "m", **{name: "x"}), 3)


def test_a_timm_config_of_a_feature_extractor_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has model_args.features_only, which is no argument"):
        load_backbone(timm_folder(tmp_path / "m", features_only=True), 3)
