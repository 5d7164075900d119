"""conf/method/flexlora.yaml says what FlexLoraConfig says."""

import dataclasses
from pathlib import Path

import yaml

from flexlora import FlexLoraConfig

FILE = Path(__file__).parent.parent / "conf" / "method" / "flexlora.yaml"
# PEFT's own fields, those the runner fills in, and those of a base model's layout: set with +method.<field>=.
BEYOND = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "total_step", "seed", "exclude_modules", "fan_in_fan_out", "bias", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "init_weights",
}  # fmt: skip


def test_every_field_of_the_method_is_a_setting() -> None:
    keys = yaml.safe_load(FILE.read_text()).keys() - {"defaults", "name", "kind", "peft_type"}
    assert keys == {field.name for field in dataclasses.fields(FlexLoraConfig)} - BEYOND


def test_the_defaults_are_the_library_s() -> None:
    values = yaml.safe_load(FILE.read_text())
    config = FlexLoraConfig(total_step=100)
    given = {key: value for key, value in values.items() if value != "???" and hasattr(config, key)}
    assert len(given) > 20
    assert {key: getattr(config, key) for key in given} == given
