"""Full fine-tuning, BitFit and the linear probe: the trained and the saved parameters of the backbone."""

import pytest
import torch
from method_helpers import context, logits, settings_of, tiny, train, wrapped
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from flexlora.errors import UserError
from flexlora.methods import build_method

HEAD = {"pooler", "classifier"}


def trained(name: str) -> set[str]:
    _, model = wrapped(name, "bert")
    return {key for key, parameter in model.named_parameters() if parameter.requires_grad}


def test_each_method_trains_its_parameters():
    names = {name for name, _ in tiny("bert").named_parameters()}
    head = {name for name in names if HEAD & set(name.split("."))}
    assert trained("linear") == head
    assert trained("full") == names
    biases = {name for name in names if name.endswith(".bias")}
    assert trained("bitfit") == biases | head
    assert "bert.embeddings.LayerNorm.bias" in biases  # the norms' too


def test_the_head_is_counted_separately():
    for name in ("linear", "full", "bitfit"):
        method, model = wrapped(name, "bert")
        sizes = {key: p.numel() for key, p in model.named_parameters() if p.requires_grad}
        head = sum(size for key, size in sizes.items() if HEAD & set(key.split(".")))
        counted = method.parameters(model)
        assert counted["head"] == head == 32 * 32 + 32 + 2 * 32 + 2
        assert counted["adapter_active"] == counted["adapter_allocated"] == sum(sizes.values()) - head
        assert counted["total"] == sum(p.numel() for p in model.parameters())


def test_a_fully_trained_model_is_saved_completely(tmp_path):
    method, model = train("full", "bert")
    method.save(model, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_otherwise_only_trained_parameters_are_saved(tmp_path):
    method, model = train("bitfit", "bert")
    method.save(model, tmp_path)
    assert set(load_file(tmp_path / "trained.safetensors")) == trained("bitfit")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["bert.nothing"], "method.trainable: 'bert.nothing' does not match the full name of any parameter."),
        (["query"], "method.trainable: 'query' does not match the full name of any parameter."),
        (["*"], "method.trainable: '*' is not a regular expression"),
    ],
)
def test_patterns_without_a_match_are_refused(patterns, message):
    settings = settings_of("bitfit").method.with_fields(trainable=patterns)
    with pytest.raises(UserError) as refused:
        build_method(settings, context("bert")).wrap(tiny("bert"))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_the_command_refuses_weights_of_half_precision(flexlora_run, arguments, tmp_path):
    result = flexlora_run(*arguments, "method=full", "model.dtype=bfloat16", f"output_root={tmp_path}")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("flexlora-run: 41 of 41 trainable parameters are bfloat16")
