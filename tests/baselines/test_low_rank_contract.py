"""The contract of every low-rank baseline: start, training, saving, merging, several adapters, bfloat16."""

from __future__ import annotations

import copy
import json
from functools import cache, partial

import pytest
import torch
from low_rank_helpers import BACKBONES, METHODS, PLANNED, adapted, base, plan_for, train
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import flexlora
from flexlora.baselines import LowRankLayer
from flexlora.models.random_init import random_init

on_meta = cache(partial(random_init, device="meta"))

every_method = pytest.mark.parametrize("method", METHODS)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)

DEBERTA = (
    r".*\.encoder\.layer\.\d+\.(attention\.self\.(query|key|value)_proj|attention\.output\.dense|intermediate\.dense|"
    r"output\.dense)"
)
LLAMA = r".*\.(q_proj|k_proj|v_proj|up_proj|down_proj)"
VIT = r"blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
SHAPES = {"deberta_v3_base": (DEBERTA, 8), "llama3_8b": (LLAMA, 32), "vit_b16": (VIT, 8)}
# Trainable parameters at those shapes and ranks, head excluded.
COUNTS = {
    "moslora": (1_331_712, 56_786_944, 1_182_720),
    "flora": (1_331_712, 56_786_944, 1_182_720),
    "liera": (1_327_104, 56_623_104, 1_179_648),
    "mlae": (1_327_680, 56_628_224, 1_180_032),
    "sora": (1_327_680, 56_628_224, 1_180_032),
    "milora": (1_327_104, 56_623_104, 1_179_648),
    "lora_dash": (1_327_680, 56_624_384, 1_180_032),
    "nora_plus": (1_327_104, 56_623_104, 1_179_648),
    "sharelora": (718_848, 4 * 6_537_216, 706_560),
    "rasa": (1_327_104 + 12 * 6 * 19, 56_623_104 + 32 * 5 * 63, 1_179_648 + 12 * 4 * 19),
    "ralora": (1_327_104, 56_623_104, 1_179_648),
    "lori": (663_552, 25_165_824, 663_552),
    "dynamic_dora": (1_327_680, 56_628_224, 1_180_032),  # at rank 8: at its end
    # With a plan in which no layers share.
    "e2lora": (1_327_104, 56_623_104, 1_179_648),
    "e2_sharelora": (718_848, 4 * 6_537_216, 706_560),
    "e2_dora": (1_410_048, 57_409_536, 1_262_592),
    "e2_vera": (83_520, 791_552, 83_328),
    "e2_lori": (663_552, 25_165_824, 663_552),
}


@every_method
@every_backbone
def test_the_initial_output_equals_the_backbones_bit_for_bit(method, backbone):
    assert torch.equal(
        BACKBONES[backbone].evaluate(adapted(method, backbone)), BACKBONES[backbone].evaluate(base(backbone))
    )


@every_method
@every_backbone
def test_two_steps_change_all_trainable_parameters_and_nothing_else(method, backbone):
    """Two steps are needed: in the first, a factor of 0 gives its partner no gradient."""
    model = adapted(method, backbone)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, backbone)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trains
    adapter = {name for name in trains if ".lora_" in name}
    assert sum(before[name].numel() for name in adapter) == flexlora.count_parameters(model).adapter_allocated > 0
    assert trains - adapter == {name for name in before if ".modules_to_save." in name}


@every_method
@every_backbone
def test_a_saved_adapter_loads_into_a_fresh_backbone(method, backbone, tmp_path):
    model = adapted(method, backbone)
    train(model, backbone, steps=3)
    expected = BACKBONES[backbone].evaluate(model)
    assert not expected.allclose(BACKBONES[backbone].evaluate(base(backbone)), atol=1e-3)  # there is something to save
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        torch.manual_seed(99)  # what loading may draw must not matter
        loaded = PeftModel.from_pretrained(base(backbone), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        torch.testing.assert_close(BACKBONES[backbone].evaluate(loaded), expected, rtol=1e-6, atol=1e-6)
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == method.upper()


@every_method
def test_training_continues_from_a_saved_adapter(method, tmp_path):
    model = adapted(method, "bert")
    train(model, "bert", steps=3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base("bert"), tmp_path, is_trainable=True)
    torch.testing.assert_close(
        BACKBONES["bert"].evaluate(loaded), BACKBONES["bert"].evaluate(model), rtol=1e-6, atol=1e-6
    )
    before = {name: p.detach().clone() for name, p in loaded.named_parameters() if p.requires_grad}
    assert before.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    train(loaded, "bert", steps=1)
    assert all(not torch.equal(p, before[name]) for name, p in loaded.named_parameters() if name in before)


@every_method
@every_backbone
def test_merging_keeps_the_output_and_unmerging_restores_the_backbone(method, backbone):
    around = BACKBONES[backbone]
    model = adapted(method, backbone)
    train(model, backbone, steps=3)
    expected = around.evaluate(model)
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if ".base_layer." in name}
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(around.evaluate(model), expected, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(p, weights[name]) for name, p in model.named_parameters() if name in weights)
    model.unmerge_adapter()
    for name, p in model.named_parameters():
        if name in weights:
            torch.testing.assert_close(p.detach(), weights[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(around.evaluate(model), expected, rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload()
    assert not any(isinstance(module, LowRankLayer) for module in merged.modules())
    torch.testing.assert_close(around.evaluate(merged), expected, rtol=1e-4, atol=1e-5)


@every_method
def test_a_merge_with_a_non_finite_result_is_refused(method):
    model = adapted(method, "bert", init_weights=False)
    layer = next(module for module in model.modules() if isinstance(module, LowRankLayer))
    weight = layer.base_layer.weight.detach().clone()
    with torch.no_grad():
        layer.lora_B["default"][0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, weight)
    assert not layer.merged


@every_method
def test_disabling_the_adapter_restores_the_backbone(method):
    model = adapted(method, "llama", init_weights=False)
    plain = BACKBONES["llama"].evaluate(base("llama"))
    assert not torch.equal(BACKBONES["llama"].evaluate(model), plain)
    with model.disable_adapter():
        assert torch.equal(BACKBONES["llama"].evaluate(model), plain)


@every_method
def test_several_adapters_work_together(method, tmp_path):
    around, outputs = BACKBONES["bert"], {}
    for name, steps in (("one", 2), ("two", 4)):
        model = adapted(method, "bert")
        train(model, "bert", steps)
        outputs[name] = around.evaluate(model)
        model.save_pretrained(tmp_path / name)
    both = PeftModel.from_pretrained(base("bert"), tmp_path / "one", adapter_name="one")
    both.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("one", "two", "one"):
        both.set_adapter(name)
        torch.testing.assert_close(around.evaluate(both), outputs[name], rtol=1e-6, atol=1e-6)
    both.delete_adapter("one")
    both.set_adapter("two")
    torch.testing.assert_close(around.evaluate(both), outputs["two"], rtol=1e-6, atol=1e-6)
    assert not [name for name, _ in both.named_parameters() if name.endswith(".one")]


@every_method
def test_two_active_adapters_add_up_and_merge(method):
    model = adapted(method, "vit", init_weights=False, modules_to_save=None)
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    around = BACKBONES["vit"]
    expected = around.evaluate(model)
    model.base_model.set_adapter(["default"])
    assert not torch.equal(around.evaluate(model), expected)
    model.base_model.set_adapter(["default", "second"])
    model.merge_adapter()
    torch.testing.assert_close(around.evaluate(model), expected, rtol=1e-4, atol=1e-5)


@every_method
@pytest.mark.parametrize("backbone", ["bert", "vit"])
def test_a_bfloat16_backbone_carries_a_float32_adapter(method, backbone, tmp_path):
    model = adapted(method, backbone, base(backbone).to(torch.bfloat16))
    adapter = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    assert {p.dtype for p in adapter.values()} == {torch.float32}
    cast = {key: value.to(torch.bfloat16) if value.is_floating_point() else value
            for key, value in BACKBONES[backbone].inputs.items()}  # fmt: skip
    with torch.no_grad():
        output = model(**cast)
    assert (output if torch.is_tensor(output) else output.logits).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.dtype for name, t in saved.items() if ".lora_" in name and t.is_floating_point()} == {torch.float32}
    loaded = PeftModel.from_pretrained(base(backbone).to(torch.bfloat16), tmp_path)
    for name, parameter in loaded.named_parameters():
        if ".lora_" in name:
            assert torch.equal(parameter, adapter[name]), name


@every_method
@pytest.mark.parametrize(("column", "shape"), list(enumerate(SHAPES)))
def test_parameters_at_exact_shapes(method, column, shape):
    targets, rank = SHAPES[shape]
    given = {"target_r": rank, "r": rank} if method == "dynamic_dora" else {"r": rank}
    if method == "lora_dash":
        given["directions"] = 8
    if method in PLANNED:
        given["plan"] = plan_for(on_meta(shape), targets, rank, lss=False, hra=False)
    model = get_peft_model(copy.deepcopy(on_meta(shape)), METHODS[method](target_modules=targets, **given))
    count = flexlora.count_parameters(model)
    assert (count.adapter_active, count.adapter_allocated, count.head) == (COUNTS[method][column],) * 2 + (0,)


@every_method
def test_the_configuration_survives_saving(method, tmp_path):
    given = {} if method == "e2_vera" else {"lora_alpha": 5.0, "alpha_pattern": {"a": 7.0}}
    config = METHODS[method](r=3, target_modules=["a", "b"], **given)
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config


@every_method
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "`r` must be a whole number of at least 1, not 0"),
        ({"r": 2.5}, "`r` must be a whole number"),
        ({"lora_alpha": -1}, "`lora_alpha` must be a positive number, not -1"),
        ({"lora_alpha": float("nan")}, "`lora_alpha` must be a positive number"),
        ({"lora_dropout": 1.0}, "`lora_dropout` must be a probability below 1, not 1.0"),
        ({"layers_pattern": "layer"}, "`layers_pattern` does nothing"),
        ({"target_modules": ".*", "layers_to_transform": [0]}, "`layers_to_transform` cannot be used"),
    ],
)
def test_bad_settings_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        METHODS[method](**{"target_modules": ["query"], **settings})


@pytest.mark.parametrize("method", [method for method in METHODS if method not in PLANNED])
def test_a_target_that_matches_nothing_is_refused_with_the_nearest_names(method):
    with pytest.raises(ValueError, match=r"qeury match no module\. Nearest names .*query"):
        adapted(method, "bert", target_modules=["qeury", "key"])
    with pytest.raises(ValueError, match=r"is a LayerNorm: .* adapts nn\.Linear"):
        adapted(method, "bert", target_modules=["LayerNorm"])
