"""Clients that find an adapter's parameters by their names: TRL's reference model, optimizers, EMA, FSDP, saving."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import baseline_helpers
import low_rank_helpers
import pytest
import torch
from builders import SHAPES, Chain, adapters, moving, scramble
from packing_helpers import X, pair, same_adapter
from peft import PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.utils.other import fsdp_auto_wrap_policy
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

from flexlora.training.checkpoint import changing_tensors, restore_tensors
from flexlora.tuner.adapter_parameters import LEAF


def make_reference(model: PeftModel) -> None:
    """Do what TRL's DPO, GRPO, KTO and RLOO trainers do to a loaded adapter."""
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)


def flexlora_case() -> tuple[nn.Module, PeftModel, Callable[[nn.Module], torch.Tensor]]:
    base = Chain()
    model = get_peft_model(copy.deepcopy(base), moving())
    scramble(model)
    return base, model, lambda held: held(X)


def low_rank_case(method: str) -> tuple[nn.Module, PeftModel, Callable[[nn.Module], torch.Tensor]]:
    model = low_rank_helpers.adapted(method, "bert")
    low_rank_helpers.train(model, "bert", steps=3)
    for module in model.modules():
        for name in ("lora_mask", "lora_active"):  # masks that a short training does not take
            for mask in getattr(module, name, {}).values():
                mask[..., 0] = False
    return low_rank_helpers.base("bert"), model, low_rank_helpers.BACKBONES["bert"].evaluate


def baseline_case(method: str) -> tuple[nn.Module, PeftModel, Callable[[nn.Module], torch.Tensor]]:
    name = "bert" if "bert" not in baseline_helpers.CASES[method].refused else "vit"
    model = baseline_helpers.wrapped(method, name)
    baseline_helpers.train(model, name)
    return baseline_helpers.backbone(name), model, lambda held: baseline_helpers.outputs(held, name)


CASES = {
    "flexlora": flexlora_case,
    **{method: partial(low_rank_case, method) for method in low_rank_helpers.METHODS},
    **{method: partial(baseline_case, method) for method in baseline_helpers.CASES},
}


@pytest.mark.parametrize("case", CASES)
def test_a_reference_made_by_names_equals_its_adapter(case, tmp_path):
    torch.manual_seed(0)
    base, model, outputs = CASES[case]()
    expected = outputs(model.eval())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    make_reference(loaded)
    loaded.set_adapter("ref")
    assert (outputs(loaded.eval()) - expected).abs().max() <= 1e-6
    reference = outputs(loaded)
    loaded.set_adapter("default")
    assert (outputs(loaded) - reference).abs().max() == 0.0
    with loaded.disable_adapter():
        assert not torch.allclose(outputs(loaded), reference, atol=1e-4), "the base is no reference"


# --- what earlier versions wrote -------------------------------------------------------------------------------------


def before(state: dict[str, Any]) -> dict[str, Any]:
    """The names of version 0.2.0."""
    return {name.removesuffix(f".{LEAF}"): value for name, value in state.items()}


def test_a_state_dict_of_an_earlier_version_loads():
    model, base = pair(0)
    twin = get_peft_model(base, moving())
    assert str(twin.load_state_dict(before(model.state_dict()))) == "<All keys matched successfully>"
    same_adapter(model, twin)


def test_a_checkpoint_of_an_earlier_version_resumes_bit_for_bit():
    model, base = pair(0)
    twin = get_peft_model(base, moving())
    restore_tensors(twin, before(changing_tensors(model)))
    same_adapter(model, twin)
    with pytest.raises(ValueError, match="another model"):
        restore_tensors(twin, before(changing_tensors(model)) | {"q.flexlora_P.other": torch.zeros(1)})


def test_the_names_in_a_saved_adapter_are_those_of_earlier_versions(tmp_path):
    model, _ = pair(0)
    model.save_pretrained(tmp_path)
    parts = ("P", "Q", "lambda", "slots")
    names = {f"base_model.model.{name}.flexlora_{part}" for name in SHAPES for part in parts}
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == names


def test_an_adapter_with_the_name_of_all_parameters_is_refused():
    with pytest.raises(ValueError, match="an adapter cannot be named 'tensor'"):
        get_peft_model(Chain(), moving(), adapter_name=LEAF)


def test_a_replaced_parameter_stays_frozen():
    model, _ = pair(0)
    (held, *_) = (layer.flexlora_P for layer in adapters(model))
    held["default"].requires_grad_(False)
    held["default"] = held["default"].double()
    assert not held["default"].requires_grad
    assert held["default"].dtype == torch.float64


# --- other clients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_of_weights_keeps_masks(use_buffers):
    model, _ = pair(0)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=use_buffers
    )
    average.update_parameters(model)
    before_step = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    average.update_parameters(model)
    for name, parameter in average.module.named_parameters():
        moved = dict(model.named_parameters())[name]
        torch.testing.assert_close(parameter, (before_step[name] + moved) / 2)
    for mine, theirs in zip(adapters(model), adapters(average.module), strict=True):
        assert torch.equal(mine.flexlora_active["default"], theirs.flexlora_active["default"])


def test_the_trainer_decays_what_it_decayed_before(tmp_path):
    model, _ = pair(0)
    args = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, report_to=[], use_cpu=True)
    decayed = set(Trainer(model=model, args=args).get_decay_parameter_names(model))
    factors = {name for name, p in model.named_parameters() if p.requires_grad}
    assert factors <= decayed
    assert len(factors) == 3 * len(SHAPES)


def test_lora_plus_finds_every_lora_b():
    model = low_rank_helpers.adapted("moslora", "bert")
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1.0, loraplus_lr_ratio=16)
    fast = {id(p) for group in optimizer.param_groups if group["lr"] == 16 for p in group["params"]}
    assert {id(p) for name, p in model.named_parameters() if ".lora_B." in name} <= fast
    assert not {id(p) for name, p in model.named_parameters() if ".lora_A." in name} & fast


def test_pefts_policy_for_fsdp_does_not_wrap_single_parameters():
    """A parameter in a unit of its own would be gathered in that unit's forward only, which never runs."""
    model = low_rank_helpers.adapted("moslora", "bert")
    policy = fsdp_auto_wrap_policy(model)
    wrapped = [
        name for name, module in model.named_modules() if policy(module=module, recurse=False, nonwrapped_numel=1)
    ]
    assert wrapped
    assert not [name for name in wrapped if ".lora_" in name]


def test_selected_adapters_are_saved_each_with_its_own_weights(tmp_path):
    """One adapter's name begins with the other's."""
    model, _ = pair(0)
    model.add_adapter("default2", moving())
    scramble(model, 5, "default2")
    model.save_pretrained(tmp_path, selected_adapters=["default2"])
    loaded = PeftModel.from_pretrained(pair(0)[1], tmp_path / "default2")
    same_adapter(model, loaded, "default2", "default")
    assert not (tmp_path / "adapter_model.safetensors").exists()
