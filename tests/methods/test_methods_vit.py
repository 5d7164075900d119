"""What every method keeps on an image model: a ViT of timm's, trained by the real loop.

The contract of test_methods_contract.py, for which an image model is another backbone. ADAPTER has the methods with
their exact number of parameters at ViT-B/16's shape, and BY_GRADIENTS has those whose number the data decide.
"""

import shutil

import pytest
import torch
from method_helpers import IN_TWO_STEPS, METHODS, TOTAL_STEPS, make_loop, settings_of
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from vit_helpers import Pictures, logits, vit, wrapped

from flexlora.methods import Method
from flexlora.models.random_init import random_init
from flexlora.training.checkpoint import Checkpoints

# Trainable parameters outside the head: 147,456 a unit of rank for two factors, and 48 more for λ or E.
ADAPTER = {
    "adalora": 12 * (147_456 + 48),
    "adalora_r8": 1_180_032,
    "adaptformer": 156_768,
    "dora": 1_262_592,
    "dynamic_dora": 12 * (147_456 + 48),
    "flora": 1_182_720,
    "hira": 1_179_648,
    "liera": 1_179_648,
    "lora_dash": 1_180_032,
    "lora_fa": 663_552,
    "lora_ga": 1_179_648,
    "lori": 663_552,
    "milora": 1_179_648,
    "mlae": 1_180_032,
    "moslora": 1_182_720,
    "nora_plus": 1_179_648,
    "pissa": 1_179_648,
    "prec_lora": 1_179_648,
    "randlora": 921_600,
    "rasa": 1_179_648 + 12 * 4 * 19,
    "rslora": 1_179_648,
    "sharelora": 706_560,
    "sora": 1_180_032,
    "vera": 95_232,
    "bitfit": 102_912,
    "fact_tk": 86_528,
    "fact_tt": 61_440,
    "flexlora": 1_180_032,
    "flexlora_released": 1_180_032,
    "full": 85_798_656,
    "houlsby": 12 * 2 * (2 * 32 * 768 + 32 + 768),
    "linear": 0,
    "lora": 1_179_648,
    "noah": 12 * 5 * (768 + 4 * 768 + 2 * 768 + 1) + 12 * 768,
    "pfeiffer": 1_189_632,
    "ssf": 205_824,
    "vpt_deep": 460_800,
    "vpt_shallow": 38_400,
}
BY_GRADIENTS = ("e2_dora", "e2_lori", "e2_sharelora", "e2_vera", "e2lora", "gora", "ralora", "ralora_pro")
STARTS_NEAR = {"houlsby", "pfeiffer", "pissa"}
STARTS_ELSEWHERE = {"gora", "noah", "ssf", "vpt_deep", "vpt_shallow"}
NOT_MERGEABLE = {"adaptformer", "houlsby", "noah", "pfeiffer", "vpt_deep", "vpt_shallow"}
MASKS = {name for name in METHODS if "trainable" in settings_of(name).method.fields}

every_method = pytest.mark.parametrize("name", [*ADAPTER, *BY_GRADIENTS])


def train(name: str, total_steps: int = TOTAL_STEPS) -> tuple[Method, nn.Module]:
    method, model = wrapped(name)
    assert make_loop(method, model, settings_of(name), total_steps, task=Pictures()).run().status == "done"
    return method, model


@every_method
def test_the_initial_output_is_the_backbones(name):
    _, model = wrapped(name)
    before = logits(vit())
    if name in STARTS_NEAR:
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-3)
    assert torch.equal(logits(model), before) is (name not in STARTS_NEAR | STARTS_ELSEWHERE)


@every_method
def test_two_steps_change_all_trainable_parameters_and_nothing_else(name):
    method, model = wrapped(name, *IN_TWO_STEPS.get(name, ()))
    loop = make_loop(method, model, settings_of(name), total_steps=2, task=Pictures())  # LoRA-GA moves the backbone
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    loop.run()
    trains = {key for key, value in model.named_parameters() if value.requires_grad}
    assert {key for key, value in model.named_parameters() if not torch.equal(value, before[key])} == trains


@every_method
def test_an_adapter_is_saved_loaded_and_merged(name, tmp_path):
    method, model = train(name)
    method.save(model, tmp_path)
    expected = logits(model)
    assert not expected.allclose(logits(vit()), atol=1e-3)
    if (tmp_path / "adapter_config.json").is_file():
        loaded = PeftModel.from_pretrained(vit(), str(tmp_path))
    else:
        (file,) = tmp_path.glob("*.safetensors")
        loaded = vit()
        assert not loaded.load_state_dict(load_file(file), strict=False).unexpected_keys
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-6)
    if name in NOT_MERGEABLE:
        with pytest.raises(ValueError, match="cannot be merged into the backbone"):
            model.merge_and_unload()
    elif name not in MASKS:
        torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


@every_method
def test_a_resumed_training_equals_an_uninterrupted_one(name, tmp_path):
    settings = settings_of(name, "training.checkpoint_every=3", "training.eval_every=6")
    checkpoints = Checkpoints(tmp_path)
    method, straight = wrapped(name)
    make_loop(method, straight, settings, task=Pictures(), checkpoints=checkpoints).run()
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{TOTAL_STEPS:09d}")
    method, model = wrapped(name)
    resumed = make_loop(method, model, settings, task=Pictures(), checkpoints=checkpoints)
    loaded = checkpoints.load()
    assert loaded is not None
    resumed.load_state_dict(*loaded)
    assert resumed.outcome.steps == 3
    resumed.run()
    expected = dict(straight.named_parameters())
    assert [key for key, value in model.named_parameters() if not torch.equal(value, expected[key])] == []


@pytest.mark.parametrize("name", ADAPTER)
def test_parameters_at_the_shape_of_vit_b16(name):
    method, model = wrapped(name, base=random_init("vit_b16", device="meta", num_labels=100))
    counted = method.parameters(model)
    assert (counted["adapter_active"], counted["head"]) == (ADAPTER[name], 100 * 769)
