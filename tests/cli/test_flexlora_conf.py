"""conf/method/*.yaml says what the library and PEFT say, and every key is explained."""

import dataclasses
from typing import Any

import pytest
from method_helpers import METHODS, settings_of
from peft import AdaLoraConfig, LoraConfig

from flexlora import FlexLoraConfig
from flexlora.baselines import (
    AdapterFusionConfig,
    AdaptFormerConfig,
    FactConfig,
    HoulsbyConfig,
    PfeifferConfig,
    SsfConfig,
    VptConfig,
)
from flexlora.conf_path import conf_dir
from flexlora.methods.flexlora_released import BEHAVIOURS
from flexlora.settings.recipes import method_fields

FOLDER = conf_dir() / "method"
# PEFT's own fields, those the runner fills in, and those of a base model's layout: set with +method.<field>=.
BEYOND = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "total_step", "seed", "exclude_modules", "fan_in_fan_out", "bias", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "init_weights",
}  # fmt: skip
# Where AdaLoRA's YAML leaves PEFT's defaults: the scale and the penalty are the paper's and the authors' scripts'.
OURS = {"lora_alpha", "orth_reg_weight"}


def values_of(name: str) -> dict[str, Any]:
    """The YAML's plain values; of `${recipe:KEY,DEFAULT}` the default."""
    fields = method_fields(name, [conf_dir()])
    return {key: value for key, value in fields.items() if not str(value).startswith("${")}


def test_every_field_of_the_method_is_a_setting() -> None:
    keys = method_fields("flexlora", [conf_dir()]).keys() - {"name", "kind", "peft_type", "ranks_from"}
    assert keys == {field.name for field in dataclasses.fields(FlexLoraConfig)} - BEYOND


def test_the_defaults_are_the_library_s() -> None:
    values = values_of("flexlora")
    config = FlexLoraConfig(total_step=100)
    given = {key: value for key, value in values.items() if hasattr(config, key)}
    assert len(given) > 20
    assert {key: getattr(config, key) for key in given} == given


def test_what_is_released_differs_from_flexlora_in_these_settings_only() -> None:
    ours, released = settings_of("flexlora").method.fields, settings_of("flexlora_released").method.fields
    differing = {key for key in released if released[key] != ours.get(key, ...)}
    assert differing == {
        "prune_by", "all_zero", "selection", "growth_std", "budget_schedule", "orth_reg_weight",
        *BEHAVIOURS,
    }  # fmt: skip
    assert set(ours) < set(released)


@pytest.mark.parametrize(("name", "config"), [("adalora", AdaLoraConfig(total_step=9)), ("lora", LoraConfig())])
def test_the_defaults_are_peft_s(name: str, config: Any) -> None:
    values = {key: value for key, value in values_of(name).items() if value is not None and key not in OURS}
    given = {key: value for key, value in values.items() if hasattr(config, key) and key != "peft_type"}
    assert len(given) >= 5
    assert {key: getattr(config, key) for key in given} == given


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("houlsby", HoulsbyConfig()),
        ("pfeiffer", PfeifferConfig()),
        ("adapter_fusion", AdapterFusionConfig(adapters=["a", "b"])),
        ("adaptformer", AdaptFormerConfig()),
        ("fact_tt", FactConfig()),
        ("fact_tk", FactConfig(factorization="tk", r=32)),
        ("ssf", SsfConfig()),
        ("vpt_deep", VptConfig()),
        ("vpt_shallow", VptConfig(deep=False)),
    ],
)
def test_the_defaults_are_the_baseline_s(name: str, config: Any) -> None:
    """And every field that is the method's own is a setting."""
    values = {key: value for key, value in values_of(name).items() if value is not None}
    own = {field.name for field in dataclasses.fields(config)} - BEYOND - {"bottleneck", "non_linearity"}
    assert own <= method_fields(name, [conf_dir()]).keys()
    given = {key: value for key, value in values.items() if key not in ("name", "kind", "adapters")}
    assert {key: getattr(config, key) for key in given} == given


@pytest.mark.parametrize("name", METHODS)
def test_the_file_begins_with_what_the_method_is_and_has_its_name(name: str) -> None:
    assert (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")
    assert values_of(name)["name"] == name
