"""Settings: every bad value is refused by name, every good one survives a round trip."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from builders import Nested, adapters, fixed, moving, wrapped
from peft import NoMatchingPeftModuleError, PeftConfig, PeftType, get_peft_model
from torch import nn

from flexlora import FlexLoraConfig
from flexlora.tuner.config import CHOICES

GOOD = {"target_modules": ["q"], "total_step": 100, "tinit": 10, "tfinal": 10, "deltaT": 5}

WORDS = [(name, word) for name in (*CHOICES, "bias") for word in ("nonsense", None, 3)]
COUNTS = [(name, value) for name in ("r", "deltaT") for value in (0, -1, 1.5, "8", None, True)]
COUNTS += [(name, value) for name in ("init_b", "tinit", "tfinal") for value in (-1, 1.5, "8", None, True)]
COUNTS += [("total_step", value) for value in (0, -5, 100.5, "100", True)]
COUNTS += [("max_rank", value) for value in (0, -8, 8.5, "16", True)]
POSITIVES = [
    (name, value)
    for name in ("init_std", "lambda_lr_ratio", "lora_alpha", "growth_std")
    for value in (0, -1.0, math.inf, math.nan, "a")
]
RANGES = [
    *(("lora_dropout", value) for value in (-0.1, 1.0, math.nan, "a", None)),
    *(("orth_reg_weight", value) for value in (-0.1, math.inf, math.nan, "a", None)),
    *(("orth_reg_power", value) for value in (0, 3, 1.5, "1", None)),
    *((name, value) for name in ("beta1", "beta2") for value in (0.0, 1.0, -0.1, math.nan, "a", None)),
    *(("growth_lambda", value) for value in (math.nan, math.inf, "a", None)),
    *(("seed", value) for value in (1.5, "a", None)),
    *(("rank_pattern", value) for value in ({"q": 0}, {"q": -1}, {"q": 2.5}, {"q": "4"})),
    *(("alpha_pattern", value) for value in ({"q": 0}, {"q": -1.0}, {"q": math.nan}, {"q": "4"})),
]


@pytest.mark.parametrize(("name", "value"), WORDS + COUNTS + POSITIVES + RANGES)
def test_a_bad_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"`{name}[`.]"):
        FlexLoraConfig(**(GOOD | {name: value}))


@pytest.mark.parametrize(("name", "word"), [(name, word) for name, words in CHOICES.items() for word in words])
def test_every_choice_is_accepted(name, word):
    assert getattr(FlexLoraConfig(**(GOOD | {name: word})), name) == word


def test_a_bad_choice_lists_the_good_ones():
    with pytest.raises(ValueError, match="must be one of both, prune_only, expand_only, not 'grow_only'"):
        FlexLoraConfig(**(GOOD | {"direction": "grow_only"}))


def test_max_rank_below_r():
    with pytest.raises(ValueError, match=r"`max_rank` \(7\) is below the starting rank \(8\)"):
        FlexLoraConfig(**(GOOD | {"r": 8, "max_rank": 7}))
    FlexLoraConfig(**(GOOD | {"r": 8, "max_rank": 8}))


def test_max_rank_below_a_pattern():
    with pytest.raises(ValueError, match=r"`max_rank` \(16\) is below the starting rank \(20\)"):
        FlexLoraConfig(**(GOOD | {"max_rank": 16, "rank_pattern": {"q": 20}}))


def test_missing_total_step_says_what_to_do():
    with pytest.raises(ValueError, match=r"`total_step` is missing.*init_b=0"):
        FlexLoraConfig(target_modules=["q"])
    assert FlexLoraConfig(target_modules=["q"], init_b=0).total_step is None


UNREACHABLE = [
    {"total_step": 100, "tinit": 100},
    {"total_step": 100, "tinit": 50, "tfinal": 50},
    {"total_step": 100, "tinit": 0, "tfinal": 0, "deltaT": 100},
    {"total_step": 100, "tinit": 500, "tfinal": 500},
    {"total_step": 1},
    # one event at p = 0.9, where 1 - p³ = 0.27 rounds to 0
    {"total_step": 100, "deltaT": 90, "init_b": 1},
]


@pytest.mark.parametrize("schedule", UNREACHABLE, ids=str)
def test_a_schedule_without_an_event_is_refused(schedule):
    with pytest.raises(ValueError, match="no rank event is possible") as error:
        FlexLoraConfig(target_modules=["q"], **schedule)
    for name, value in schedule.items():
        assert f"{name}={value}" in str(error.value)
    FlexLoraConfig(target_modules=["q"], **(schedule | {"init_b": 0}))


def test_the_last_possible_event_step_is_accepted():
    FlexLoraConfig(target_modules=["q"], total_step=100, deltaT=99, budget_schedule="constant")
    with pytest.raises(ValueError, match="no rank event is possible"):
        FlexLoraConfig(target_modules=["q"], total_step=100, deltaT=100, budget_schedule="constant")


def test_layers_pattern_needs_layers_to_transform():
    with pytest.raises(ValueError, match="layers_pattern"):
        FlexLoraConfig(**(GOOD | {"layers_pattern": "layer"}))
    FlexLoraConfig(**(GOOD | {"layers_pattern": "layer", "layers_to_transform": 0}))
    with pytest.raises(ValueError, match="layers_to_transform"):
        FlexLoraConfig(**(GOOD | {"target_modules": "q", "layers_to_transform": [1]}))


def test_every_field_has_a_help_text():
    own = {f.name: f for f in dataclasses.fields(FlexLoraConfig)}
    inherited = {f.name for f in dataclasses.fields(PeftConfig)}
    assert [name for name, f in own.items() if name not in inherited and not f.metadata.get("help")] == []


def test_paper_defaults():
    config = FlexLoraConfig(**GOOD)
    expected = {
        "r": 8,
        "lora_alpha": 16,
        "init_std": 0.02,
        "init_b": 4,
        "budget_schedule": "cubic",
        "budget_by": "schedule",
        "budget_unit": "rank",
        "growth_energy_quantile": 0.0,
        "direction": "both",
        "importance": "entropy",
        "spectrum": "lambda",
        "rank_one": "grow",
        "all_zero": "keep",
        "selection": "disjoint",
        "prune_by": "magnitude",
        "growth_init": "zero_impact",
        "growth_std": None,
        "orth_reg_weight": 0.1,
        "orth_reg_power": 1,
        "vector_init": "gaussian",
        "lambda_lr_ratio": 1.0,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.peft_type == "FLEXLORA" == PeftType.FLEXLORA


def test_json_round_trip(tmp_path):
    config = moving(
        exclude_modules=["o"], rank_pattern={"q": 3}, alpha_pattern={"k": 4.0}, growth_std=1.0, importance="nuclear"
    )
    config.save_pretrained(str(tmp_path))
    text = json.loads((tmp_path / "adapter_config.json").read_text())
    assert text["peft_type"] == "FLEXLORA"
    for loaded in (FlexLoraConfig.from_pretrained(str(tmp_path)), PeftConfig.from_pretrained(str(tmp_path))):
        assert isinstance(loaded, FlexLoraConfig)
        for field in dataclasses.fields(FlexLoraConfig):
            if field.name not in ("inference_mode", "peft_version"):
                assert getattr(loaded, field.name) == getattr(config, field.name), field.name


# --- targets ----------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_proj = nn.Linear(6, 6)
        self.key_proj = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.key_proj(self.query_proj(x)))


def test_if_no_target_matches_the_error_lists_the_nearest_names():
    with pytest.raises(NoMatchingPeftModuleError, match=r"Nearest names.*query_proj"):
        get_peft_model(Attention(), fixed(target_modules=["query"]))


def test_if_one_target_does_not_match_the_error_lists_the_nearest_names():
    with pytest.raises(NoMatchingPeftModuleError, match=r"key_poj match no module.*key_proj"):
        get_peft_model(Attention(), fixed(target_modules=["query_proj", "key_poj"]))


@pytest.mark.parametrize("targets", [["query"], ["query_proj", "key_poj"], "(query"])
def test_a_refused_target_leaves_the_base_as_it_was(targets):
    """In a notebook one corrects the name and wraps the same model again."""
    model = Attention()
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(Exception):  # noqa: B017 - a broken regex raises re.error
        get_peft_model(model, fixed(target_modules=targets))
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    again = get_peft_model(model, fixed(target_modules=["query_proj", "key_proj"]))
    assert len(adapters(again)) == 2


def test_a_regex_without_a_match_is_refused():
    with pytest.raises(NoMatchingPeftModuleError, match="Nearest names"):
        get_peft_model(Attention(), fixed(target_modules=r".*\.query"))


def test_a_model_without_linears_is_refused():
    with pytest.raises(NoMatchingPeftModuleError, match="no linear layer"):
        get_peft_model(nn.Sequential(nn.LayerNorm(4)), fixed(target_modules=["query"]))


def test_a_target_that_is_not_a_linear_is_refused():
    with pytest.raises(ValueError, match="norm is a LayerNorm"):
        get_peft_model(Attention(), fixed(target_modules=["norm"]))


def test_excluded_modules_are_not_missing():
    model = get_peft_model(Nested(), fixed(target_modules=["q"], exclude_modules=["block.q"]))
    assert len(adapters(model)) == 1


def test_regex_all_linear_and_full_names():
    assert len(adapters(wrapped(fixed(target_modules="[qk]")))) == 2
    assert len(adapters(wrapped(fixed(target_modules="all-linear")))) == 5
    assert len(adapters(wrapped(fixed(target_modules=["block.q"]), Nested()))) == 1
    assert len(adapters(wrapped(fixed(target_modules=["q"]), Nested()))) == 2


def test_patterns_set_rank_and_scale():
    config = fixed(target_modules=["q", "k"], r=2, lora_alpha=8, rank_pattern={"q": 4}, alpha_pattern={"k": 2})
    model = wrapped(config)
    q, k = adapters(model)
    assert (q.rank("default"), k.rank("default")) == (4, 2)
    # s = lora_alpha / r₀, with r₀ the configuration's r for every module
    assert (q.scaling["default"], k.scaling["default"]) == (4.0, 1.0)


def test_max_rank_is_written_down_when_the_model_is_made():
    config = FlexLoraConfig(target_modules=["q"], r=2, total_step=100, deltaT=10)
    assert config.max_rank is None
    assert wrapped(config).peft_config["default"].max_rank == config.resolved_max_rank() == 8
    assert config.max_rank is None, "the user's own object can serve another model"
