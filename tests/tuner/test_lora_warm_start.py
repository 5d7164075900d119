"""FlexLoRA started from a trained LoRA gives the LoRA's output."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import SHAPES, Chain, adapters, delta, fixed, moving, scramble
from export_helpers import X, adapted, lora_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import (
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from flexlora import convert_to_lora, save_as_lora, warm_start_from_lora
from flexlora.tuner.weighted import truncate

CASES = {
    "plain": {},
    "lower rank": {"r": 1},
    "equal rank": {"r": 2},
    "higher rank": {"r": 5},
    "alpha": {"lora_alpha": 0.7},
    "patterns": {"rank_pattern": {"q": 4, "k": 1}, "alpha_pattern": {"q": 9, "v": 2}},
    "rslora": {"use_rslora": True},
    "rslora with patterns": {"use_rslora": True, "rank_pattern": {"q": 4}, "alpha_pattern": {"v": 2}},
    "classifier": {"modules_to_save": ["head"]},
}


@pytest.mark.parametrize("case", CASES)
def test_warm_start_gives_the_loras_output(tmp_path, case):
    torch.manual_seed(1)
    base = Chain()
    options = CASES[case]
    lora = lora_folder(tmp_path, base, **options)
    kept = {"modules_to_save": options["modules_to_save"]} if "modules_to_save" in options else {}
    model = get_peft_model(copy.deepcopy(base), moving(r=2, max_rank=5, lora_alpha=3, **kept))
    warm_start_from_lora(model, tmp_path)
    torch.testing.assert_close(model(X), lora(X), rtol=1e-4, atol=1e-4)
    for layer in adapters(model):
        assert layer.rank("default") >= 2, "a module keeps at least its starting rank"
        p, values, q = layer.packed_factors("default")
        count = int((values != 0).sum())
        torch.testing.assert_close(p[:, :count].T @ p[:, :count], torch.eye(count), rtol=0, atol=1e-5)
        torch.testing.assert_close(q[:count] @ q[:count].T, torch.eye(count), rtol=0, atol=1e-5)
        assert (values >= 0).all()
        off = ~layer.flexlora_active["default"]
        assert not layer.flexlora_P["default"][:, off].any()
    model.base_model.update_and_allocate(1)


def test_warm_start_keeps_zero_impact_vectors_where_the_lora_is_smaller(tmp_path):
    torch.manual_seed(1)
    base = Chain()
    lora_folder(tmp_path, base, r=1)
    model = get_peft_model(copy.deepcopy(base), moving(r=3, max_rank=5))
    vectors = [layer.packed_factors("default") for layer in adapters(model)]
    warm_start_from_lora(model, tmp_path)
    for layer, (p, _, q) in zip(adapters(model), vectors, strict=True):
        assert layer.slots("default").tolist() == [0, 1, 2]
        new_p, values, new_q = layer.packed_factors("default")
        assert torch.equal(new_p[:, 1:], p[:, 1:])
        assert torch.equal(new_q[1:], q[1:])
        assert not values[1:].any()


def test_warm_start_above_max_rank_keeps_the_strongest_and_warns_of_the_share(tmp_path):
    torch.manual_seed(1)
    base = Chain()
    lora = lora_folder(tmp_path, base, r=5)
    model = get_peft_model(copy.deepcopy(base), moving(r=2, max_rank=3))
    lost = energy = 0.0
    best = {}
    for name in SHAPES:
        module = lora.base_model.model.get_submodule(name)
        b, a = module.lora_B["default"].weight.detach().double(), module.lora_A["default"].weight.detach().double()
        dense = b @ a  # its scale is 5/5
        u, s, vh = torch.linalg.svd(dense)
        best[name] = (u[:, :3] * s[:3]) @ vh[:3]
        energy += float(s.square().sum())
        lost += float(s[3:].square().sum())
    with pytest.warns(UserWarning, match=rf"max_rank: {100 * lost / energy:.2g} % of its energy"):
        warm_start_from_lora(model, tmp_path)
    for name, layer in zip(SHAPES, adapters(model), strict=True):
        torch.testing.assert_close(delta(layer), best[name], rtol=1e-4, atol=1e-4)


def test_warm_start_of_some_modules_leaves_the_others(tmp_path):
    torch.manual_seed(1)
    base = Chain()
    lora = lora_folder(tmp_path, base, targets=("q", "v"))
    model = get_peft_model(copy.deepcopy(base), moving())
    before = [layer.packed_factors("default") for layer in adapters(model)]
    warm_start_from_lora(model, tmp_path)
    torch.testing.assert_close(model(X), lora(X), rtol=1e-4, atol=1e-4)
    for i in (1, 3):
        for a, b in zip(before[i], adapters(model)[i].packed_factors("default"), strict=True):
            assert torch.equal(a, b)


def test_warm_start_refuses_modules_that_are_not_adapted(tmp_path):
    torch.manual_seed(1)
    base = Chain()
    lora_folder(tmp_path, base)
    model = get_peft_model(copy.deepcopy(base), moving(target_modules=["q", "k"]))
    with pytest.raises(ValueError, match="adapts 2 modules that this adapter does not, such as o"):
        warm_start_from_lora(model, tmp_path)


def test_warm_start_refuses_anything_but_a_plain_lora(tmp_path):
    torch.manual_seed(1)
    base = Chain()
    model = get_peft_model(copy.deepcopy(base), moving())
    with pytest.raises(FileNotFoundError, match="safetensors"):
        warm_start_from_lora(model, tmp_path)
    lora_folder(tmp_path / "dora", base, use_dora=True)
    with pytest.raises(ValueError, match="use_dora"):
        warm_start_from_lora(model, tmp_path / "dora")
    model.save_pretrained(str(tmp_path / "flex"))
    with pytest.raises(ValueError, match="FLEXLORA, not a plain LoRA"):
        warm_start_from_lora(model, tmp_path / "flex")
    lora_folder(tmp_path / "lora", base)
    with pytest.raises(ValueError, match="has no FlexLoRA adapter"):
        warm_start_from_lora(model, tmp_path / "lora", "other")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_warm_start_over_other_dtypes(tmp_path, dtype):
    torch.manual_seed(1)
    base = Chain().to(dtype)
    lora = lora_folder(tmp_path, base)
    model = get_peft_model(copy.deepcopy(base), moving(max_rank=5))
    warm_start_from_lora(model, tmp_path)
    tolerance = 0.2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(model(X.to(dtype)), lora(X.to(dtype)), rtol=tolerance, atol=tolerance)


def gpt2():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16)
    return GPT2LMHeadModel(config).eval(), torch.arange(10).view(2, 5)


def test_conv1d_there_and_back(tmp_path):
    torch.manual_seed(0)
    base, ids = gpt2()
    targets = ["c_attn", "c_fc", "mlp.c_proj"]
    lora = lora_folder(tmp_path / "lora", base, targets=targets, fan_in_fan_out=True).eval()
    model = get_peft_model(copy.deepcopy(base), moving(target_modules=targets, max_rank=6)).eval()
    warm_start_from_lora(model, tmp_path / "lora")
    torch.testing.assert_close(model(ids).logits, lora(ids).logits, rtol=1e-3, atol=1e-3)
    scramble(model, 3, scale=0.1)
    for uniform_rank in (False, True):
        folder = tmp_path / f"out{uniform_rank}"
        save_as_lora(folder, model, uniform_rank=uniform_rank)
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)


def test_export_and_warm_start_round_trip(tmp_path):
    model, base = adapted(8)
    save_as_lora(tmp_path, model)
    again = get_peft_model(copy.deepcopy(base), moving(r=2, max_rank=5))
    warm_start_from_lora(again, tmp_path)
    torch.testing.assert_close(again(X), model(X), rtol=1e-4, atol=1e-4)
    for a, b in zip(adapters(again), adapters(model), strict=True):
        torch.testing.assert_close(delta(a), delta(b), rtol=1e-4, atol=1e-4)


def test_warm_start_of_an_injected_model(tmp_path):
    torch.manual_seed(1)
    base = Chain()
    lora = lora_folder(tmp_path, base)
    model = inject_adapter_in_model(moving(), copy.deepcopy(base))
    warm_start_from_lora(model, tmp_path)
    torch.testing.assert_close(model(X), lora(X), rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_truncate_is_the_best_approximation(out, width, rank, kept, seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    values = torch.randn(rank, generator=generator, dtype=torch.float64)
    q = torch.randn(rank, width, generator=generator, dtype=torch.float64)
    left, s, right = truncate((p, values, q), kept)
    u, expected, vh = torch.linalg.svd((p * values) @ q, full_matrices=False)
    k = s.numel()
    assert k == min(kept, rank, out, width)
    torch.testing.assert_close(s, expected[:k], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((left * s) @ right, (u[:, :k] * expected[:k]) @ vh[:k], rtol=1e-8, atol=1e-8)
    assert left.shape == (out, k)
    assert right.shape == (k, width)


def test_truncate_keeps_the_dtype():
    assert {t.dtype for t in truncate((torch.randn(3, 2), torch.randn(2), torch.randn(2, 4)), 2)} == {torch.float32}


def test_a_base_with_a_module_named_like_the_adapter(tmp_path):
    """A base whose own module is called `default` must not lose it to the adapter's name."""
    torch.manual_seed(0)
    base = nn.Sequential()
    base.add_module("default", nn.Linear(6, 6))
    base.add_module("q", nn.Linear(6, 6))
    model = get_peft_model(copy.deepcopy(base), fixed(target_modules=["default", "q"]))
    scramble(model)
    model.save_pretrained(str(tmp_path / "flex"))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "flex"))
    assert torch.equal(loaded(X), model(X))
    save_as_lora(tmp_path / "lora", model)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "lora"))
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-5)


def test_patterns_are_left_out_where_all_modules_are_alike():
    model = get_peft_model(Chain(), fixed(r=3))
    config, _ = convert_to_lora(model)
    assert (config.r, config.lora_alpha) == (3, 16)
    assert config.rank_pattern == config.alpha_pattern == {}
