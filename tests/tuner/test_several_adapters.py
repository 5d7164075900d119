"""Several adapters on one model: the ranks of one move, and the others are free."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from builders import Chain, adapters, fixed, moving, scramble
from packing_helpers import X
from peft import get_peft_model
from torch import nn
from training_helpers import trainable

from flexlora import attach, module_ranks
from flexlora.baselines import VptConfig
from flexlora.tuner import watch


@pytest.fixture(autouse=True)
def forget_adapters_of_other_tests() -> None:
    watch._watched.clear()
    watch.forget()


def pair(first: Any = None, second: Any = None) -> Any:
    """A model with two adapters; "default" is active."""
    torch.manual_seed(1)
    model = get_peft_model(Chain(), moving() if first is None else first)
    model.add_adapter("second", moving() if second is None else second)
    for seed, name in enumerate(("default", "second")):
        scramble(model, seed, name)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(trainable(model), lr=0.02)


def test_only_the_active_adapter_moves_its_ranks():
    model = pair()
    optimizer = adamw(model)
    attachment = attach(model, optimizer)
    before = module_ranks(model, "second")
    step(model, optimizer)
    assert attachment.allocator.adapter_name == "default"
    assert module_ranks(model, "default") != module_ranks(model, "second") == before


def test_the_second_adapter_moves_once_the_first_is_released():
    model = pair()
    first = attach(model, adamw(model))
    model.set_adapter("second")
    optimizer = adamw(model)
    with pytest.raises(ValueError, match=r"adapter 'default' of this model change already \(at step 0 of 100\)"):
        attach(model, optimizer)
    first.remove()
    assert attach(model, optimizer).allocator.adapter_name == "second"
    before = module_ranks(model, "default")
    step(model, optimizer)
    assert module_ranks(model, "second") != module_ranks(model, "default") == before


def test_fixed_ranks_train_beside_moving_ones():
    model = pair(second=fixed())
    model.base_model.set_adapter(["default", "second"])
    optimizer = adamw(model)
    assert attach(model, optimizer).allocator.adapter_name == "default", "the one whose ranks move"
    beside, before = attach(model, optimizer, adapter_name="second"), module_ranks(model, "second")
    step(model, optimizer)
    assert beside.step == 1
    assert module_ranks(model, "second") == before


def test_two_moving_adapters_in_one_optimizer_are_refused():
    model = pair()
    model.base_model.set_adapter(["default", "second"])
    optimizer = adamw(model)
    with pytest.raises(ValueError, match=r"the adapters default, second train at the same time.*adapter_name=NAME"):
        attach(model, optimizer)
    assert attach(model, optimizer, adapter_name="second").allocator.adapter_name == "second"
    with pytest.raises(ValueError, match="no trainable FlexLoRA adapter named 'third'"):
        attach(model, optimizer, adapter_name="third")


def test_no_active_adapter_is_refused():
    model = pair()
    model.base_model.set_adapter(["default"], inference_mode=True)
    with pytest.raises(ValueError, match=r"none of the adapters default, second trains: call model.set_adapter"):
        attach(model, torch.optim.AdamW(model.parameters(), lr=0.02))


def test_deleting_the_adapter_that_moves_removes_its_hooks():
    model = pair()
    optimizer = adamw(model)
    attach(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.delete_adapter("default")
    step(model, optimizer)  # its hooks would look for the parameters of the adapter
    assert model.base_model.rank_allocator.adapter_name == "second"


def test_another_adapter_may_be_deleted_while_ranks_move():
    model = pair()
    optimizer = adamw(model)
    attachment = attach(model, optimizer)
    model.delete_adapter("second")
    step(model, optimizer)
    assert attachment.step == 1


def test_a_second_adapter_that_nobody_attaches_is_told():
    model = pair()
    optimizer = adamw(model)
    attach(model, optimizer)
    model.base_model.set_adapter(["default", "second"])
    optimizer.add_param_group({"params": [p for n, p in model.named_parameters() if ".second" in n]})
    step(model, optimizer)
    with pytest.warns(UserWarning, match="nothing counts its steps"):
        step(model, optimizer)


def test_a_copy_begins_with_the_masks_of_its_source():
    """TRL makes its reference model so, and copies the parameters, but no buffers, by their names."""
    model = pair()
    model.base_model.update_and_allocate(1)
    model.add_adapter("ref", model.peft_config["default"])
    model.add_adapter("own", moving())

    def same_mask(name: str) -> list[bool]:
        layers = adapters(model)
        return [torch.equal(layer.flexlora_active[name], layer.flexlora_active["default"]) for layer in layers]

    assert all(same_mask("ref"))
    assert not all(same_mask("own"))


# --- mixed batches ---------------------------------------------------------------------------------------------------


def test_rows_of_a_batch_have_different_adapters():
    model = pair().eval()
    expected = {"__base__": None, "default": None, "second": None}
    with model.disable_adapter():
        expected["__base__"] = model(X)
    for name in ("default", "second"):
        model.set_adapter(name)
        expected[name] = model(X)
    of_rows = [list(expected)[row % 3] for row in range(len(X))]
    mixed = model(X, adapter_names=of_rows)
    for row, name in enumerate(of_rows):
        torch.testing.assert_close(mixed[row], expected[name][row])
    assert not torch.equal(expected["default"], expected["second"])


def test_an_unknown_adapter_or_training_is_refused():
    model = pair().eval()
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): third"):
        model(X, adapter_names=["third"] * len(X))
    with pytest.raises(ValueError, match="in training mode"):
        model.train()(X, adapter_names=["default"] * len(X))


def test_a_method_that_changes_the_sequence_does_not_mix():
    timm = pytest.importorskip("timm.models.vision_transformer")
    vit = timm.VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    model = get_peft_model(vit, VptConfig(num_tokens=2)).eval()
    with pytest.raises(ValueError, match="VPT does not mix adapters"):
        model(torch.zeros(2, 3, 32, 32), adapter_names=["default", "__base__"])
