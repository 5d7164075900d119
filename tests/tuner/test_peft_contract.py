"""The parts of PEFT that the tuner needs. If PEFT changes one of them, a test here names it."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import peft
import pytest
import torch
from packaging.specifiers import SpecifierSet
from peft import PeftConfig
from peft.utils.peft_types import PeftType
from torch import nn

import flexlora
from flexlora import FlexLoraConfig, FlexLoraModel

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

NAMES = [
    ("peft", "NoMatchingPeftModuleError"),
    ("peft", "get_peft_model_state_dict"),
    ("peft", "set_peft_model_state_dict"),
    ("peft", "inject_adapter_in_model"),
    ("peft.mapping", "PEFT_TYPE_TO_TUNER_MAPPING"),
    ("peft.mapping", "PEFT_TYPE_TO_CONFIG_MAPPING"),
    ("peft.tuners._buffer_dict", "BufferDict"),
    ("peft.tuners.tuners_utils", "BaseTuner"),
    ("peft.tuners.tuners_utils", "BaseTunerLayer"),
    ("peft.tuners.tuners_utils", "_get_in_out_features"),
    ("peft.tuners.tuners_utils", "_maybe_include_all_linear_layers"),
    ("peft.tuners.tuners_utils", "check_adapters_to_merge"),
    ("peft.utils", "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"),
    ("peft.utils", "get_quantization_kwargs"),
    ("peft.utils", "load_peft_weights"),
    ("peft.utils", "quantization_extra_repr"),
    ("peft.utils", "register_peft_method"),
    ("peft.utils", "resolve_quantization_backend"),
    ("peft.utils.other", "get_pattern_key"),
    ("peft.utils.peft_types", "PeftType"),
    ("transformers.pytorch_utils", "Conv1D"),
]


def peft_range() -> SpecifierSet:
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    (entry,) = [line for line in dependencies if line.startswith("peft")]
    return SpecifierSet(entry.removeprefix("peft"))


def test_the_installed_peft_is_in_the_declared_range():
    assert version("peft") in peft_range(), f"peft {version('peft')} is outside {peft_range()}"


def test_the_declared_range_has_an_upper_bound():
    assert "99.0" not in peft_range(), "an open range breaks with the next PEFT"


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda value: value)
def test_the_names_we_import_exist(module, name):
    assert hasattr(importlib.import_module(module), name), f"PEFT {peft.__version__} moved {module}.{name}"


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


HOOKS = {
    "_get_adapter_state_dict": ["model", "config", "adapter_name", "state_dict", "unwanted_adapter_names"],
    "_remap_adapter_state_dict_for_load": ["model", "config", "adapter_name", "state_dict"],
}


@pytest.mark.parametrize("hook", HOOKS)
def test_saving_and_loading_call_our_hooks(hook):
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import save_and_load

    assert hook in vars(BaseTuner), f"BaseTuner has no {hook}"
    assert parameters(getattr(BaseTuner, hook)) == HOOKS[hook]
    assert parameters(getattr(FlexLoraModel, hook)) == HOOKS[hook]
    assert f"tuner_cls.{hook}(" in inspect.getsource(save_and_load), f"save_and_load no longer calls {hook}"


@pytest.mark.parametrize("hook", HOOKS)
def test_the_hooks_run(hook, monkeypatch):
    calls = []
    original = vars(FlexLoraModel)[hook].__func__

    def spy(cls, *args, **kwargs):
        calls.append(hook)
        return original(cls, *args, **kwargs)

    monkeypatch.setattr(FlexLoraModel, hook, classmethod(spy))
    model = peft.get_peft_model(nn.Sequential(nn.Linear(3, 3)), FlexLoraConfig(target_modules=["0"], r=1, init_b=0))
    state = peft.get_peft_model_state_dict(model)
    peft.set_peft_model_state_dict(model, state)
    assert calls


def test_methods_that_the_layer_and_the_model_override_or_call():
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    layer = [
        "get_base_layer", "get_base_weight", "set_base_weight", "_cast_input_dtype", "set_adapter",
        "_get_base_layer_device_and_dtype", "_move_adapter_to_device_of_base_layer", "supports_lora_conversion",
        "merged", "disable_adapters", "active_adapters", "_get_available_adapters",
    ]  # fmt: skip
    model = [
        "inject_adapter", "_prepare_adapter_config", "_check_new_adapter_config", "_create_and_replace",
        "_replace_module", "set_adapter", "active_adapters", "merge_and_unload", "_check_merge_allowed",
        "_check_target_module_exists",
    ]  # fmt: skip
    assert [name for name in layer if not hasattr(BaseTunerLayer, name)] == []
    assert [name for name in model if not hasattr(BaseTuner, name)] == []
    assert parameters(BaseTunerLayer._move_adapter_to_device_of_base_layer) == ["self", "adapter_name", "device"]
    create = ["self", "peft_config", "adapter_name", "target", "target_name", "parent", "current_key"]
    assert parameters(BaseTuner._create_and_replace)[:7] == create
    injected = ["self", "model", "adapter_name", "autocast_adapter_dtype", "low_cpu_mem_usage", "state_dict"]
    assert parameters(BaseTuner.inject_adapter) == injected


# --- the enum ----------


def test_flexlora_is_a_member_of_the_enum():
    member = PeftType.FLEXLORA
    assert isinstance(member, PeftType)
    assert member == "FLEXLORA"
    assert member.name == member.value == "FLEXLORA"
    assert PeftType("FLEXLORA") is member
    assert PeftType["FLEXLORA"] is member
    assert member in list(PeftType)
    assert "FLEXLORA" in PeftType.__members__
    assert list(PeftType).count(member) == 1
    assert PeftType.LORA in list(PeftType), "the others are still there"
    assert hash(member) == hash(PeftType("FLEXLORA"))


def test_extending_twice_does_nothing():
    from flexlora.tuner.peft_type import extend_peft_types

    before = list(PeftType)
    assert extend_peft_types("FLEXLORA") is PeftType.FLEXLORA
    assert list(PeftType) == before


def test_the_member_pickles_and_copies():
    import copy
    import pickle

    assert pickle.loads(pickle.dumps(PeftType.FLEXLORA)) is PeftType.FLEXLORA
    assert copy.deepcopy(PeftType.FLEXLORA) is PeftType.FLEXLORA


def test_registration():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.FLEXLORA] is FlexLoraConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.FLEXLORA] is FlexLoraModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.FLEXLORA] == "flexlora_" == FlexLoraModel.prefix


def test_importing_again_does_not_register_twice():
    importlib.reload(importlib.import_module("flexlora.tuner.peft_type"))
    assert PeftType.FLEXLORA in list(PeftType)
    assert flexlora.FlexLoraConfig is FlexLoraConfig


def test_registering_refuses_names_outside_the_enum():
    """This is the reason for extending the enum. If this test fails, the extension can be removed."""
    with pytest.raises(ValueError, match="Unknown PEFT type"):
        peft.utils.register_peft_method(name="nosuchmethod", config_cls=FlexLoraConfig, model_cls=FlexLoraModel)


def test_a_saved_configuration_is_found_by_its_type(tmp_path):
    FlexLoraConfig(target_modules=["q"], init_b=0).save_pretrained(str(tmp_path))
    assert isinstance(PeftConfig.from_pretrained(str(tmp_path)), FlexLoraConfig)


# --- behaviour ----------


def test_buffer_dict_holds_named_buffers():
    from peft.tuners._buffer_dict import BufferDict

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.masks = BufferDict({}, persistent=True)

    holder = Holder()
    holder.masks["default"] = torch.tensor([True, False])
    assert list(holder.state_dict()) == ["masks.default"]
    assert "default" in holder.masks
    assert holder.to(torch.float16).masks["default"].dtype == torch.bool
    del holder.masks["default"]
    assert not holder.state_dict()


def test_a_pattern_matches_as_a_suffix_and_the_first_one_wins():
    from peft.utils.other import get_pattern_key

    assert get_pattern_key(["q", "block.q"], "block.q") == "q"
    assert get_pattern_key(["block.q", "q"], "block.q") == "block.q"
    assert get_pattern_key(["block.q"], "q") == "q"


def test_a_plain_linear_has_no_quantisation_backend():
    from peft.utils import resolve_quantization_backend

    assert resolve_quantization_backend(nn.Linear(3, 3)) is None


def test_a_missed_target_raises_the_error_we_catch():
    from peft import LoraConfig, NoMatchingPeftModuleError, get_peft_model

    assert issubclass(NoMatchingPeftModuleError, ValueError)
    with pytest.raises(NoMatchingPeftModuleError):
        get_peft_model(nn.Sequential(nn.Linear(3, 3)), LoraConfig(target_modules=["nothing"]))
    # PEFT is content when one of several matches: why FlexLoRA checks each entry.
    get_peft_model(nn.Sequential(nn.Linear(3, 3)), LoraConfig(target_modules=["0", "nothing"]))
