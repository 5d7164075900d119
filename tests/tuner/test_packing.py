"""Saving and loading: the active directions only, back in their slots, whatever moved before."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from builders import SHAPES, Chain, Nested, adapters, delta, fixed, moving, scramble
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn

from flexlora import FlexLoraConfig, attach, module_ranks
from flexlora.tuner import RankAllocator
from flexlora.tuner.packing import plain_name, specific_first

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))


def same_adapter(a: nn.Module, b: nn.Module, adapter_a: str = "default", adapter_b: str = "default") -> None:
    layers = list(zip(adapters(a, adapter_a), adapters(b, adapter_b), strict=True))
    assert layers
    for left, right in layers:
        for x, y in zip(left.factors(adapter_a), right.factors(adapter_b), strict=True):
            assert torch.equal(x, y)
            assert x.dtype == y.dtype
        assert torch.equal(left.flexlora_active[adapter_a], right.flexlora_active[adapter_b])
        assert left.scaling[adapter_a] == right.scaling[adapter_b]


def pair(seed: int = 0, **options):
    """An adapted model with scrambled ranks, and the same base without adapter."""
    torch.manual_seed(1)
    base = Chain()
    model = get_peft_model(copy.deepcopy(base), moving(**options))
    scramble(model, seed)
    return model, base


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


# --- torch's own ways ----------


def test_deepcopy():
    model, _ = pair(0)
    model.base_model.update_and_allocate(1)
    twin = copy.deepcopy(model)
    same_adapter(model, twin)
    assert torch.equal(model(X), twin(X))
    ranks = module_ranks(model)
    twin.base_model.update_and_allocate(2)  # its allocator must move the twin's ranks, not the original's
    assert module_ranks(model) == ranks
    assert twin.base_model.rank_allocator.layers[0] is adapters(twin)[0]
    with torch.no_grad():
        adapters(twin)[0].flexlora_lambda["default"].add_(1)
    assert not torch.equal(adapters(model)[0].flexlora_lambda["default"], adapters(twin)[0].flexlora_lambda["default"])


def test_pickle():
    model, _ = pair(0)
    twin = pickle.loads(pickle.dumps(model))
    same_adapter(model, twin)
    assert torch.equal(model(X), twin(X))


def test_state_dict_at_full_capacity_through_weights_only():
    model, base = pair(0)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    for name, (out, width) in SHAPES.items():
        assert state[f"base_model.model.{name}.flexlora_P.default"].shape == (out, 5)
        assert state[f"base_model.model.{name}.flexlora_Q.default"].shape == (5, width)
        assert state[f"base_model.model.{name}.flexlora_active.default"].dtype == torch.bool
    twin = get_peft_model(base, moving())
    assert twin.load_state_dict(state) is not None
    same_adapter(model, twin)
    assert torch.equal(model(X), twin(X))


def test_resuming_from_the_saved_adapter_equals_an_uninterrupted_training(tmp_path):
    """Slots come back in place, so AdamW's moments of every direction land on its row."""

    def train(model, optimizer, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    base = Chain()

    def made():
        return moving(r=3, max_rank=5, init_b=1, total_step=60)

    def optimizer_of(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)

    torch.manual_seed(2)
    whole = get_peft_model(copy.deepcopy(base), made())
    optimizer = optimizer_of(whole)
    attachment = attach(whole, optimizer)
    train(whole, optimizer, range(30))
    whole.save_pretrained(str(tmp_path))
    torch.save({"optimizer": optimizer.state_dict(), "flexlora": attachment.state_dict()}, tmp_path / "state.pt")
    assert any(layer.slots("default").tolist() != list(range(layer.rank("default"))) for layer in adapters(whole)), (
        "the test needs slots that are not contiguous"
    )
    train(whole, optimizer, range(30, 50))

    resumed = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path), is_trainable=True)
    optimizer = optimizer_of(resumed)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    attachment = attach(resumed, optimizer)
    attachment.load_state_dict(state["flexlora"])
    train(resumed, optimizer, range(30, 50))
    same_adapter(whole, resumed)
    assert attachment.step == 50


def test_the_allocator_of_a_loaded_adapter_sees_its_ranks(tmp_path):
    model, base = pair(7)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    allocator = RankAllocator(loaded, loaded.peft_config["default"], "default")
    assert allocator.snapshot().ranks == list(module_ranks(model).values())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_saved_in_half_precision_comes_back_as_float32(tmp_path, low_cpu_mem_usage):
    torch.manual_seed(0)
    base = Chain().to(torch.bfloat16)
    model = get_peft_model(copy.deepcopy(base), moving())
    scramble(model, 0)
    model.to(torch.bfloat16).save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
    assert {t.dtype for layer in adapters(loaded) for t in layer.factors("default")} == {torch.float32}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_second_adapter_without_memory_to_spare(tmp_path, low_cpu_mem_usage):
    model, base = pair(4)
    model.save_pretrained(str(tmp_path))
    other = get_peft_model(base, moving())
    other.load_adapter(str(tmp_path), "second", low_cpu_mem_usage=low_cpu_mem_usage)
    other.set_adapter("second")
    assert torch.equal(other(X), model(X))
    same_adapter(model, other, "default", "second")
