"""An adapter's state through torch's own ways: copies, pickles, state dicts, half precision."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from builders import SHAPES, Chain, adapters, moving, scramble
from packing_helpers import X, pair, same_adapter
from peft import (
    PeftModel,
    get_peft_model,
)

from flexlora import attach, module_ranks
from flexlora.tuner import RankAllocator


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
        assert state[f"base_model.model.{name}.flexlora_P.default.tensor"].shape == (out, 5)
        assert state[f"base_model.model.{name}.flexlora_Q.default.tensor"].shape == (5, width)
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
