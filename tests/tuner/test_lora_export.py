"""To plain LoRA and back. Exported folders are loaded by PEFT's LoraModel only; no flexlora takes part."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from builders import SHAPES, Chain, Nested, adapters, delta, fixed, moving, scramble
from export_helpers import X, adapted
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import (
    LoraConfig,
    LoraModel,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.tuners.lora.conversion import convert_to_lora as peft_convert
from peft.tuners.lora.conversion import save_as_lora as peft_save
from safetensors.torch import load_file

from flexlora import convert_to_lora, module_ranks, save_as_lora

# --- our export ----------


@settings(max_examples=10)
@given(
    st.integers(0, 2**16),
    st.booleans(),
    st.sampled_from([{}, {"lora_alpha": 3}, {"alpha_pattern": {"k": 7.0, "o": 1.0}}, {"r": 3}]),
)
def test_export_loads_as_plain_lora_with_the_same_output(tmp_path_factory, seed, uniform_rank, options):
    folder = tmp_path_factory.mktemp("lora")
    model, base = adapted(seed, **options)
    save_as_lora(folder, model, uniform_rank=uniform_rank)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(folder))
    assert type(loaded.base_model) is LoraModel
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-5)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    ranks = module_ranks(model)
    weights = load_file(folder / "adapter_model.safetensors")
    top = max(ranks.values())
    for name, (out, width) in SHAPES.items():
        rank = top if uniform_rank else ranks[name]
        assert weights[f"base_model.model.{name}.lora_A.weight"].shape == (rank, width)
        assert weights[f"base_model.model.{name}.lora_B.weight"].shape == (out, rank)
    assert len(weights) == 2 * len(SHAPES)
    assert "flexlora" not in (folder / "adapter_config.json").read_text().lower()
    if uniform_rank:
        assert config["rank_pattern"] == config["alpha_pattern"] == {}
        assert config["r"] == config["lora_alpha"] == top, "scale 1, for servers that ignore patterns"


@settings(max_examples=10)
@given(st.integers(0, 2**16), st.booleans())
def test_exported_factors_are_exact(seed, uniform_rank):
    model, _ = adapted(seed, alpha_pattern={"k": 7.0})
    config, state = convert_to_lora(model, uniform_rank=uniform_rank)
    for name, layer in zip(SHAPES, adapters(model), strict=True):
        a = state[f"base_model.model.{name}.lora_A.weight"].double()
        b = state[f"base_model.model.{name}.lora_B.weight"].double()
        scale = (config.lora_alpha / config.r) if uniform_rank else layer.scaling["default"]
        torch.testing.assert_close(scale * b @ a, delta(layer), rtol=1e-6, atol=1e-6)
        if not uniform_rank:
            p, values, q = layer.packed_factors("default")
            assert torch.equal(b.float(), p * values)
            assert torch.equal(a.float(), q)


@pytest.mark.parametrize("uniform_rank", [False, True])
@pytest.mark.parametrize(
    "ranks", [(2, 5), (5, 2), (3, 3), (2, 2), (3, 2), (1, 4)], ids=lambda pair: f"q{pair[0]}-block.q{pair[1]}"
)
def test_a_name_that_is_the_suffix_of_another(tmp_path, ranks, uniform_rank):
    """PEFT matches patterns as suffixes: "q" must not give its rank to "block.q", whose rank may be r itself."""
    torch.manual_seed(0)
    base = Nested()
    model = get_peft_model(copy.deepcopy(base), fixed(target_modules=["q"], r=2, max_rank=6))
    scramble(model, 0, full=True)
    for layer, rank in zip(adapters(model), ranks, strict=True):
        for slot in range(6 - rank):
            layer.prune("default", slot)
    save_as_lora(tmp_path, model, uniform_rank=uniform_rank)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-5)


def test_alpha_of_a_suffix_does_not_leak(tmp_path):
    torch.manual_seed(0)
    base = Nested()
    config = fixed(target_modules=["q"], r=6, max_rank=6, alpha_pattern={"block.q": 3.0, "q": 12.0})
    model = get_peft_model(copy.deepcopy(base), config)
    assert [layer.scaling["default"] for layer in adapters(model)] == [2.0, 0.5]
    scramble(model, 0, full=True)
    save_as_lora(tmp_path, model)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", ["[qkvo]", ["q", "k"], "all-linear"])
def test_targets_of_every_form(tmp_path, targets):
    model, base = adapted(2, target_modules=targets)
    save_as_lora(tmp_path, model)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-5)


def test_modules_to_save_and_biases_go_along(tmp_path):
    for i, options in enumerate(({"modules_to_save": ["head"]}, {"bias": "flexlora_only"}, {"bias": "all"})):
        model, base = adapted(3, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.dim() == 1 and parameter.numel() not in (5,):
                    parameter.add_(0.5)
        save_as_lora(tmp_path / str(i), model)
        loaded = PeftModel.from_pretrained(base, str(tmp_path / str(i)))
        torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-5)


def test_an_adapter_of_another_name(tmp_path):
    model, base = adapted(3)
    model.add_adapter("second", fixed(target_modules=["q", "o"], r=3, inference_mode=True))
    scramble(model, 6, "second")
    save_as_lora(tmp_path, model, "second")
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    model.set_adapter("second")
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-5)


def test_an_injected_model(tmp_path):
    torch.manual_seed(1)
    base = Chain()
    model = inject_adapter_in_model(moving(), copy.deepcopy(base))
    scramble(model, 4)
    save_as_lora(tmp_path, model)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model, _ = adapted(3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _, state = convert_to_lora(model)
    for tensor in state.values():
        tensor.add_(1.0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_unknown_adapter():
    model, base = adapted()
    for wrong in (
        (model, "other"),
        (base, "default"),
        (get_peft_model(base, LoraConfig(target_modules=["q"])), "default"),
    ):
        with pytest.raises(ValueError, match=r"has no adapter named .* that is a LoRA"):
            convert_to_lora(*wrong)


# --- PEFT's own export ----------


def test_pefts_own_conversion(tmp_path):
    model, base = adapted(6)
    config, state = peft_convert(model, rank=5)
    assert config.r == 5
    assert state
    peft_save(str(tmp_path), model, rank=5)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-3, atol=1e-4)
