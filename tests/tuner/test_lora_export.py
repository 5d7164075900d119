"""To plain LoRA and back. Exported folders are loaded by PEFT's LoraModel only; no flexlora takes part."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from builders import SHAPES, Chain, Nested, adapters, delta, fixed, moving, scramble
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
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from flexlora import convert_to_lora, module_ranks, save_as_lora, warm_start_from_lora
from flexlora.tuner.weighted import truncate

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))


def adapted(seed=0, base=None, **options):
    torch.manual_seed(1)
    base = base if base is not None else Chain()
    model = get_peft_model(copy.deepcopy(base), moving(**options))
    scramble(model, seed)
    return model, base


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
        with pytest.raises(ValueError, match="has no FlexLoRA adapter"):
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


# --- warm start ----------


def lora_folder(folder, base, seed=0, targets=tuple(SHAPES), **options):
    torch.manual_seed(seed)
    settings = {"r": 3, "lora_alpha": 5, "target_modules": list(targets)} | options
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in lora.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    lora.save_pretrained(str(folder))
    return lora


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
