"""Saving and loading: the active directions only, back in their slots, whatever moved before."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import SHAPES, Chain, Nested, adapters, delta, fixed, moving, scramble
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_helpers import X, pair, same_adapter
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file

from flexlora import FlexLoraConfig, module_ranks
from flexlora.tuner.packing import plain_name, specific_first

# --- on disk ----------


@settings(max_examples=10)
@given(st.integers(0, 2**16))
def test_the_file_holds_the_active_directions_only(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("adapter")
    model, _ = pair(seed)
    model.save_pretrained(str(folder))
    saved = load_file(folder / "adapter_model.safetensors")
    assert len(saved) == 4 * len(SHAPES)
    for (name, (out, width)), layer in zip(SHAPES.items(), adapters(model), strict=True):
        on = layer.flexlora_active["default"]
        rank = int(on.sum())
        prefix = f"base_model.model.{name}.flexlora_"
        assert saved[prefix + "P"].shape == (out, rank)
        assert saved[prefix + "lambda"].shape == (rank,)
        assert saved[prefix + "Q"].shape == (rank, width)
        assert saved[prefix + "slots"].tolist() == on.nonzero().flatten().tolist()
        assert torch.equal(saved[prefix + "P"], layer.factors("default")[0][:, on])
        assert torch.equal(saved[prefix + "lambda"], layer.factors("default")[1][on])
        assert torch.equal(saved[prefix + "Q"], layer.factors("default")[2][on])
    config = FlexLoraConfig.from_pretrained(str(folder))
    assert config.rank_pattern == dict(zip(SHAPES, [layer.rank("default") for layer in adapters(model)], strict=True))
    assert config.max_rank == 5


@settings(max_examples=10)
@given(st.integers(0, 2**16), st.booleans(), st.booleans())
def test_save_and_load_are_exact(tmp_path_factory, seed, low_cpu_mem_usage, is_trainable):
    folder = tmp_path_factory.mktemp("adapter")
    model, base = pair(seed)
    model.save_pretrained(str(folder))
    loaded = PeftModel.from_pretrained(
        base, str(folder), low_cpu_mem_usage=low_cpu_mem_usage, is_trainable=is_trainable
    )
    same_adapter(model, loaded)
    assert torch.equal(model(X), loaded(X))
    assert all(p.device.type == "cpu" for p in loaded.state_dict().values())
    assert loaded.peft_config["default"].inference_mode is not is_trainable
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable == ({n for n, _ in loaded.named_parameters() if "flexlora_" in n} if is_trainable else set())


def test_saving_twice_gives_the_same_file(tmp_path):
    model, base = pair(3)
    model.save_pretrained(str(tmp_path / "a"))
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "a"), is_trainable=True)
    loaded.save_pretrained(str(tmp_path / "b"))
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_saving_does_not_change_the_model(tmp_path):
    model, _ = pair(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(str(tmp_path))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not model.peft_config["default"].inference_mode
    model.base_model.update_and_allocate(1)


def test_after_prune_and_grow_slots_are_not_contiguous_and_survive(tmp_path):
    model, base = pair(0)
    scramble(model, 1, full=True)
    for layer in adapters(model):
        layer.prune("default", 1)
        layer.prune("default", 3)
        layer.grow("default", 1, layer.slots("default"), model.peft_config["default"], 1, 0)
    assert adapters(model)[0].slots("default").tolist() == [0, 1, 2, 4]
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    same_adapter(model, loaded)


def test_the_rank_limit_is_restored(tmp_path):
    """Continuing training after a reload must not lose the room to grow."""
    model, base = pair(0, max_rank=None)
    assert model.peft_config["default"].max_rank == 8
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    assert [layer.capacity("default") for layer in adapters(loaded)] == [5, 5, 6, 6]
    event = loaded.base_model.update_and_allocate(1)
    assert event.budget_conserved


def test_a_starting_rank_above_the_matrixs_size_survives(tmp_path):
    """r = 8 on a linear of 5 x 6: whatever it starts with, its capacity must come back with fewer directions."""
    torch.manual_seed(0)
    base = Chain()
    model = get_peft_model(copy.deepcopy(base), moving(r=8, max_rank=12))
    scramble(model, 2)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    assert torch.equal(model(X), loaded(X))
    same_adapter(model, loaded)


def test_a_pattern_rank_above_the_matrixs_size_survives(tmp_path):
    torch.manual_seed(0)
    base = Chain()
    model = get_peft_model(copy.deepcopy(base), moving(r=2, max_rank=12, rank_pattern={"q": 9}))
    scramble(model, 2)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    assert torch.equal(model(X), loaded(X))
    same_adapter(model, loaded)


def test_a_name_that_is_the_suffix_of_another(tmp_path):
    torch.manual_seed(0)
    base = Nested()
    model = get_peft_model(copy.deepcopy(base), fixed(target_modules=["q"], r=2, max_rank=6))
    outer, inner = adapters(model)
    scramble(model, 0, full=True)
    for slot in range(4):
        outer.prune("default", slot)
    inner.prune("default", 0)
    assert (outer.rank("default"), inner.rank("default")) == (2, 5)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    same_adapter(model, loaded)
    assert module_ranks(loaded) == {"q": 2, "block.q": 5}


def test_specific_first():
    assert list(specific_first({"q": 1, "block.q": 2, "a.block.q": 3, "k": 4})) == ["a.block.q", "block.q", "k", "q"]
    assert list(specific_first({"a": 1, "b.a": 2})) == ["b.a", "a"], "by length, not by the alphabet"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base_model.model.bert.q", "bert.q"),
        ("bert.q", "bert.q"),
        ("_orig_mod.base_model.model.bert.q", "bert.q"),
        ("base_model.model._orig_mod.bert.q", "bert.q"),
        ("_fsdp_wrapped_module.base_model.model.bert.q", "bert.q"),
        ("base_model.model.module.q", "module.q"),  # the base has a `module` of its own
        ("base_model.q", "base_model.q"),
        ("base_model.model.base_model.q", "base_model.q"),
    ],
)
def test_plain_name(name, expected):
    assert plain_name(name) == expected


# --- errors ----------


def test_loading_into_a_smaller_max_rank_is_a_clear_error(tmp_path):
    model, base = pair(0)
    scramble(model, 0)  # the last slot is always active
    model.save_pretrained(str(tmp_path))
    small = get_peft_model(base, moving(max_rank=4))
    with pytest.raises(
        ValueError, match=r"[qkvo]: a saved direction is in slot \d, but the capacity \(max_rank\).* is 4"
    ):
        small.load_adapter(str(tmp_path), "default")


def test_a_missing_part_is_named():
    model, _ = pair(0)
    state = get_peft_model_state_dict(model)
    del state["base_model.model.k.flexlora_Q"]
    with pytest.raises(ValueError, match=r"flexlora_Q.*k"):
        set_peft_model_state_dict(model, state)


def test_another_width_is_refused_with_the_modules_name():
    model, _ = pair(0)
    state = get_peft_model_state_dict(model)
    state["base_model.model.k.flexlora_Q"] = state["base_model.model.k.flexlora_Q"][:, :-1]
    with pytest.raises(ValueError, match="k: the saved directions have shapes"):
        set_peft_model_state_dict(model, state)


def test_an_adapter_without_slots_takes_the_first():
    model, _ = pair(0)
    state = {k: v for k, v in get_peft_model_state_dict(model).items() if "slots" not in k}
    ranks = module_ranks(model)
    before = [delta(layer) for layer in adapters(model)]
    set_peft_model_state_dict(model, state)
    assert module_ranks(model) == ranks
    for layer, dense in zip(adapters(model), before, strict=True):
        assert layer.slots("default").tolist() == list(range(layer.rank("default")))
        torch.testing.assert_close(delta(layer), dense)


# --- over an existing adapter ----------


@settings(max_examples=8)
@given(st.integers(0, 2**16), st.integers(0, 2**16))
def test_load_adapter_over_an_existing_one(tmp_path_factory, seed, other_seed):
    folder = tmp_path_factory.mktemp("adapter")
    model, base = pair(seed)
    model.save_pretrained(str(folder))
    other = get_peft_model(base, moving())
    scramble(other, other_seed)
    other.load_adapter(str(folder), "default", is_trainable=True)
    same_adapter(model, other)
    assert torch.equal(model(X), other(X))
    assert other.peft_config["default"].rank_pattern == specific_first(module_ranks(model))


def test_set_peft_model_state_dict_on_an_injected_model():
    model, base = pair(4)
    injected = inject_adapter_in_model(moving(), base)
    state = {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(injected, state)
    same_adapter(model, injected)
    again = get_peft_model_state_dict(injected)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_loading_a_second_adapter_beside_the_first(tmp_path):
    model, base = pair(4)
    model.save_pretrained(str(tmp_path))
    other = get_peft_model(base, moving())
    scramble(other, 5)
    first = [t.clone() for layer in adapters(other) for t in layer.factors("default")]
    alone = other(X)
    other.load_adapter(str(tmp_path), "second")
    assert all(
        torch.equal(a, b)
        for a, b in zip(first, (t for la in adapters(other) for t in la.factors("default")), strict=True)
    )
    assert torch.equal(other(X), alone)
    other.set_adapter("second")
    torch.testing.assert_close(other(X), model(X))
    same_adapter(model, other, "default", "second")


def test_saving_one_of_several_adapters(tmp_path):
    model, base = pair(4)
    model.add_adapter("second", fixed(inference_mode=True, target_modules=["q", "o"], r=3))
    scramble(model, 6, adapter="second")
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    same_adapter(model, loaded)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "second"))
    same_adapter(model, loaded, "second")


# --- dtypes ----------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_values_keep_their_bits_over_any_base(tmp_path, dtype, low_cpu_mem_usage):
    torch.manual_seed(0)
    base = Chain().to(dtype)
    model = get_peft_model(copy.deepcopy(base), moving())
    scramble(model, 0)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {t.dtype for layer in adapters(model) for t in layer.factors("default")} == {expected}
    model.save_pretrained(str(tmp_path))
    assert {t.dtype for k, t in load_file(tmp_path / "adapter_model.safetensors").items() if "slots" not in k} == {
        expected
    }
    loaded = PeftModel.from_pretrained(base, str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
    same_adapter(model, loaded)
    assert loaded(X.to(dtype)).dtype == dtype


def test_a_float32_adapter_in_a_model_that_was_loaded_as_float32_and_cast():
    """model.to(bfloat16) casts the adapter too: the mask must stay boolean."""
    model, _ = pair(0)
    model.to(torch.bfloat16)
    assert {layer.flexlora_active["default"].dtype for layer in adapters(model)} == {torch.bool}
    assert model(X.bfloat16()).dtype == torch.bfloat16
