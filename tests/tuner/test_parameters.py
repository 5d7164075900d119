"""Counts against brute force and against the exact figures of the papers' backbones, and optimizer groups."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from builders import SHAPES, Chain, adapters, fixed, moving, scramble, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AdaLoraConfig, LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from flexlora import FlexLoraConfig, count_parameters, module_ranks, parameter_groups
from flexlora.tuner import ParameterCount

HEAD = 6 * 3 + 3
BASE = sum(out * width + out for out, width in SHAPES.values()) + HEAD


def by_hand(model):
    """(active, allocated) from masks and shapes, one direction at a time."""
    active = allocated = 0
    for layer in adapters(model):
        for bit in layer.flexlora_active["default"].tolist():
            cost = layer.out_features + layer.in_features + 1
            allocated += cost
            active += cost if bit else 0
    return active, allocated


@settings(max_examples=15)
@given(st.integers(0, 2**16), st.booleans())
def test_flexlora_by_brute_force(seed, head):
    model = wrapped(fixed(modules_to_save=["head"] if head else None))
    scramble(model, seed)
    active, allocated = by_hand(model)
    assert count_parameters(model) == ParameterCount(
        adapter_active=active,
        adapter_allocated=allocated,
        head=HEAD if head else 0,
        total=BASE + active + (HEAD if head else 0),
    )


def test_an_event_changes_the_active_count_by_what_moved():
    model = wrapped(moving(init_b=1))
    scramble(model, 3)
    before = count_parameters(model)
    event = model.base_model.update_and_allocate(1)
    after = count_parameters(model)
    cost = {name: out + width + 1 for name, (out, width) in SHAPES.items()}
    moved = sum(cost[n] for n in event.grown) - sum(cost[n] for n in event.pruned)
    assert after.adapter_active - before.adapter_active == moved
    assert after.adapter_active == event.active_parameters
    assert after.adapter_allocated == before.adapter_allocated


def test_biases_count_as_head():
    model = wrapped(fixed(bias="flexlora_only"))
    assert count_parameters(model).head == sum(out for out, _ in SHAPES.values())


def test_a_frozen_adapter():
    """For inference nothing trains; what is there still counts, without the inactive directions."""
    model = wrapped(fixed(inference_mode=True))
    scramble(model, 1)
    active, _ = by_hand(model)
    assert count_parameters(model) == ParameterCount(0, 0, 0, BASE + active)


def test_two_adapters():
    model = wrapped(moving())
    model.add_adapter("second", fixed(target_modules=["q"], inference_mode=True))
    scramble(model, 1)
    scramble(model, 2, "second")
    active, allocated = by_hand(model)
    second = adapters(model, "second")[0].rank("second") * (5 + 6 + 1)
    assert count_parameters(model) == ParameterCount(active, allocated, 0, BASE + active + second)


def test_injected_model():
    model = inject_adapter_in_model(moving(), Chain())
    scramble(model, 1)
    active, allocated = by_hand(model)
    assert count_parameters(model) == ParameterCount(active, allocated, 0, BASE + active)


def test_lora_and_adalora():
    lora = get_peft_model(Chain(), LoraConfig(r=3, target_modules=list(SHAPES), modules_to_save=["head"]))
    expected = sum(3 * (out + width) for out, width in SHAPES.values())
    assert count_parameters(lora) == ParameterCount(expected, expected, HEAD, BASE + expected + HEAD)
    adalora = get_peft_model(Chain(), AdaLoraConfig(init_r=3, target_r=2, target_modules=list(SHAPES), total_step=10))
    expected = sum(3 * (out + width + 1) for out, width in SHAPES.values())
    assert count_parameters(adalora).adapter_active == expected


def test_plain_modules():
    assert count_parameters(Chain()) == ParameterCount(0, 0, BASE, BASE)
    frozen = Chain().requires_grad_(False)
    assert count_parameters(frozen) == ParameterCount(0, 0, 0, BASE)
    frozen.head.requires_grad_(True)
    assert count_parameters(frozen) == ParameterCount(0, 0, HEAD, BASE)


def test_tied_parameters_count_once():
    model = Chain()
    model.o.weight = nn.Parameter(torch.zeros(6, 6))
    model.twin = model.o
    assert count_parameters(model).total == BASE


def test_trainable_parameters_as_peft_prints_them_are_the_allocated():
    model = wrapped(fixed())
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == count_parameters(model).adapter_allocated


# --- the papers' backbones, on the meta device ----------

DEBERTA_TARGETS = [
    "query_proj",
    "key_proj",
    "value_proj",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
VIT_TARGETS = r"blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"


def deberta_v3_base():
    config = DebertaV2Config(
        vocab_size=128100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        type_vocab_size=0,
        max_position_embeddings=512,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        max_relative_positions=-1,
        pooler_hidden_size=768,
        layer_norm_eps=1e-7,
        num_labels=2,
    )
    return DebertaV2ForSequenceClassification(config)


def llama3_8b():
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def vit_b16():
    return timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)


def schedule(r, **options):
    return FlexLoraConfig(r=r, total_step=10_000, tinit=1000, tfinal=1000, deltaT=200, **options)


@pytest.fixture
def meta():
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("meta")
def test_debertav3_base():
    base = deberta_v3_base()
    assert count_parameters(base).total == 184_423_682
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(r=8, target_modules=DEBERTA_TARGETS))
    assert count_parameters(lora).adapter_active == 1_327_104
    model = get_peft_model(base, schedule(8, target_modules=DEBERTA_TARGETS, modules_to_save=["pooler", "classifier"]))
    count = count_parameters(model)
    assert count.adapter_active == 1_327_680
    assert count.adapter_allocated == 4 * 1_327_680  # max_rank 32 = 4r
    assert count.head == 592_130
    assert count.adapter_active + count.head == 1_919_810, "Table 1's 1.9M"
    assert len(module_ranks(model)) == 72
    assert set(module_ranks(model).values()) == {8}


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("r", "expected"), [(32, 56_628_224), (12, 21_235_584)])
def test_llama3_8b(r, expected):
    base = llama3_8b()
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, schedule(r, target_modules=targets))
    count = count_parameters(model)
    assert count.adapter_active == expected  # at r = 12: Table 2's 21.2M, though its row says r = 8
    assert count.head == 0


@pytest.mark.usefixtures("meta")
def test_vit_b16():
    base = vit_b16()
    assert count_parameters(base).total == 85_798_656
    model = get_peft_model(base, schedule(8, target_modules=VIT_TARGETS))
    assert count_parameters(model).adapter_active == 1_180_032
    assert len(module_ranks(model)) == 48
    assert not any("patch_embed" in name for name in module_ranks(model))


# --- ranks ----------


def test_module_ranks_in_module_order():
    model = wrapped(fixed(rank_pattern={"k": 4}))
    assert list(module_ranks(model).items()) == [("q", 2), ("k", 4), ("v", 2), ("o", 2)]
    model.add_adapter("second", fixed(target_modules=["o"], r=3, inference_mode=True))
    assert module_ranks(model, "second") == {"o": 3}
    assert module_ranks(model, "default") == {"q": 2, "k": 4, "v": 2, "o": 2}
    assert module_ranks(Chain()) == {}


# --- groups ----------


def names_of(model, group):
    wanted = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("argument", [None, 3.0])
def test_groups_are_disjoint_complete_and_have_the_right_rates(injected, argument):
    config = moving(lambda_lr_ratio=20.0, modules_to_save=None if injected else ["head"], bias="flexlora_only")
    model = inject_adapter_in_model(config, Chain()) if injected else wrapped(config)
    groups = parameter_groups(model, 1e-3, argument)
    assert [group["name"] for group in groups] == ["others", "lambda"]
    others, lambdas = groups
    assert others["lr"] == 1e-3
    assert lambdas["lr"] == pytest.approx(1e-3 * (argument or 20.0))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names_of(model, lambdas) == {name for name in trainable if "flexlora_lambda" in name}
    assert names_of(model, others) | names_of(model, lambdas) == trainable
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(trainable)
    torch.optim.AdamW(groups)


def test_the_papers_rule_is_one_rate():
    others, lambdas = parameter_groups(wrapped(moving()), 8e-4)
    assert others["lr"] == lambdas["lr"] == 8e-4


def test_frozen_adapters_are_left_out():
    model = wrapped(moving())
    model.add_adapter("second", fixed(inference_mode=True, lambda_lr_ratio=50.0))
    groups = parameter_groups(model, 1e-3)
    assert not any("second" in name for group in groups for name in names_of(model, group))
    assert groups[1]["lr"] == 1e-3


def test_the_ratio_is_that_of_the_adapter_that_trains():
    """The first configuration may belong to a frozen adapter, loaded before the one that trains."""
    model = wrapped(moving(lambda_lr_ratio=50.0, inference_mode=True))
    model.add_adapter("second", moving(lambda_lr_ratio=2.0))
    model.set_adapter("second")
    others, lambdas = parameter_groups(model, 1e-3)
    assert lambdas["lr"] == pytest.approx(2e-3)
    assert all("second" in name for name in names_of(model, others) | names_of(model, lambdas))


def test_other_models_get_one_group():
    for model in (Chain(), get_peft_model(Chain(), LoraConfig(target_modules=["q"]))):
        (group,) = parameter_groups(model, 1e-3)
        assert group["lr"] == 1e-3
        assert group["name"] == "others"


@pytest.mark.parametrize("ratio", [0, -1.0])
def test_a_bad_ratio(ratio):
    with pytest.raises(ValueError, match="lambda_lr_ratio"):
        parameter_groups(wrapped(moving()), 1e-3, ratio)


def first_movement(config, out_features: int, in_features: int, seed: int) -> float:
    """How far the first Adam step moves ΔW, in Frobenius norm and learning rates, for a random gradient of W."""
    torch.manual_seed(seed)
    model = get_peft_model(nn.Sequential(nn.Linear(in_features, out_features, bias=False)), config).double()
    rate = 1e-7  # so small that P and Q, whose λ is then not 0 any more, add nothing
    optimizer = torch.optim.Adam(parameter_groups(model, rate), eps=1e-12)
    (model(torch.eye(in_features, dtype=torch.float64)) * torch.randn(in_features, out_features)).sum().backward()
    optimizer.step()
    layer = model.base_model.model[0]
    return float(layer.get_delta_weight("default").detach().norm()) / rate


@pytest.mark.parametrize("vectors", ["gaussian", "orthonormal"])
@pytest.mark.parametrize(("out_features", "in_features"), [(64, 256), (256, 64), (768, 768), (96, 1024)])
@pytest.mark.parametrize("r", [2, 8])
def test_the_automatic_rate_of_lambda_moves_as_far_as_lora(vectors, out_features, in_features, r):
    """Independent of the formula: both are trained for a step, from 16 seeds."""
    shape = {"r": r, "lora_alpha": 16, "target_modules": ["0"]}
    ours = FlexLoraConfig(init_b=0, vector_init=vectors, lambda_lr_ratio="auto", orth_reg_weight=0, **shape)
    moved, loras = (
        torch.tensor([first_movement(config, out_features, in_features, seed) for seed in range(16)]).square().mean()
        for config in (ours, LoraConfig(**shape))
    )
    assert float(moved.sqrt()) == pytest.approx(float(loras.sqrt()), rel=0.07)


def test_automatic_rates_of_lambda_have_a_group_for_each_shape():
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 4))
    config = FlexLoraConfig(
        r=2, init_b=0, target_modules=["0", "1", "2"], vector_init="orthonormal", lambda_lr_ratio="auto"
    )
    model = get_peft_model(base, config)
    others, small, large = parameter_groups(model, 3e-3)
    assert [small["lr"], large["lr"]] == pytest.approx([3e-3 * (4 / 3) ** 0.5, 3e-3 * (5 / 3) ** 0.5])
    assert {name.split(".")[2] for name in names_of(model, small)} == {"1", "2"}
    assert [group["name"] for group in (others, small, large)] == ["others", "lambda ×1.1547", "lambda ×1.29099"]
    (_, given) = parameter_groups(model, 3e-3, 2.0)
    assert (given["name"], given["lr"]) == ("lambda", 6e-3)


@pytest.mark.parametrize("value", ["fast", "", None, True, 0])
def test_the_ratio_is_a_positive_number_or_auto(value):
    with pytest.raises(ValueError, match="`lambda_lr_ratio` must be a"):
        FlexLoraConfig(target_modules=["0"], init_b=0, lambda_lr_ratio=value)


def test_ranks_are_named_as_in_the_base_model_also_below_a_wrapper() -> None:
    class Wrapper(nn.Module):  # what DistributedDataParallel adds to names
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), FlexLoraConfig(r=2, init_b=0, target_modules=["0", "1"])
    )
    assert module_ranks(Wrapper(model)) == module_ranks(model) == {"0": 2, "1": 2}


def test_the_tuner_prints_active_and_allocated_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    model = get_peft_model(base, FlexLoraConfig(r=2, max_rank=3, init_b=0, target_modules=["0", "1"]))
    active = 2 * (6 + 5 + 1) + 2 * (5 + 4 + 1)
    assert model.base_model.get_nb_trainable_parameters() == (active, active + 6 * 5 + 5 + 5 * 4 + 4)
    model.base_model.print_trainable_parameters()
    assert "adapter: 44 active of 66 allocated" in capsys.readouterr().out


@pytest.mark.parametrize("rate", [-1e-3, float("nan")])
def test_a_bad_learning_rate(rate):
    with pytest.raises(ValueError, match="`learning_rate` must not be negative"):
        parameter_groups(wrapped(moving()), rate)
