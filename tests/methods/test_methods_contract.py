"""The contract of every method: each YAML file in conf/method is tested here automatically.

A new method only needs its exact parameter count for DeBERTaV3-base's shape.
"""

import copy
import shutil

import pytest
import torch
from marks import slow_but
from method_helpers import (
    IN_TWO_STEPS,
    METHODS,
    SECOND_STAGE,
    TOTAL_STEPS,
    context,
    load_saved,
    logits,
    make_loop,
    settings_of,
    tiny,
    train,
    wrapped,
)

from flexlora.errors import UserError
from flexlora.methods import build_method
from flexlora.methods.base import ConfiguredByData, refuse_half_precision
from flexlora.methods.chosen_ranks import ChosenRanksMethod
from flexlora.methods.e2 import E2Method
from flexlora.models.random_init import random_init
from flexlora.sharing import unshared_plan
from flexlora.sharing.plan import adapted_linears
from flexlora.training.checkpoint import Checkpoints, restore
from flexlora.training.journal import Journal

ARCHITECTURES = ("bert", "roberta", "deberta-v2", "llama")
QUERY = {"bert": "query", "roberta": "query", "deberta-v2": "query_proj", "llama": "q_proj"}
HEAD = 592_130  # pooler and classifier of DeBERTaV3-base with two classes
BACKBONE = 184_423_682
# Trainable parameters outside the head: 165,888 a unit of rank for two factors, and 72 more for λ or E.
ADAPTER = {
    "adaptformer": 156_768,
    "adalora": 12 * (165_888 + 72),
    "adalora_r8": 1_327_680,
    "bitfit": 102_912,
    "fact_tk": 86_528,
    "fact_tt": 61_440,
    "flexlora": 1_327_680,
    "flexlora_released": 1_327_680,
    "full": BACKBONE - HEAD,
    "houlsby": 1_198_848,
    "linear": 0,
    "lora": 1_327_104,
    "dora": 1_410_048,
    "dynamic_dora": 12 * (165_888 + 72),
    # With a plan in which no layers share.
    "e2lora": 1_327_104,
    "e2_sharelora": 718_848,
    "e2_dora": 1_410_048,
    "e2_vera": 101_376,
    "e2_lori": 663_552,
    "flora": 1_331_712,
    "gora": 1_327_104,  # with rank 8 everywhere
    "hira": 1_327_104,
    "liera": 1_327_104,
    "lora_dash": 1_327_680,
    "lora_fa": 663_552,
    "lora_ga": 1_327_104,
    "lori": 663_552,
    "milora": 1_327_104,
    "mlae": 1_327_680,
    "moslora": 1_331_712,
    "nora_plus": 1_327_104,
    "pissa": 1_327_104,
    "prec_lora": 1_327_104,
    "randlora": 1_382_400,
    "ralora": 1_327_104,
    "ralora_pro": 1_327_104,  # with rank 8 everywhere
    "rasa": 1_327_104 + 12 * 6 * 19,
    "rslora": 1_327_104,
    "sharelora": 718_848,
    "sora": 1_327_680,
    "vera": 101_376,
    "pfeiffer": 1_189_632,
    "ssf": 204_288,
}
# Not near it: SSF draws its scales. Near it: weights of 1e-3 on both sides of a bottleneck; PiSSA up to rounding.
STARTS_NEAR = {"houlsby", "pfeiffer", "pissa"}
STARTS_ELSEWHERE = {"gora", "ssf"}
# PEFT's own unloading fails on a fully trained pooler; merging in place works.
NOT_UNLOADED = {"randlora", "vera"}
NOT_LINEAR = {"adaptformer", "houlsby", "pfeiffer"}
NOTHING_HOLDS_THE_SHIFT = {("ssf", "llama")}
# They change the backbone's weights, and what they save gives the change back: up to rounding.
REWRITES = {"lora_ga", "pissa"}
# Nothing to adapt in a text model.
IMAGES_ONLY = {"noah", "noah_supernet", "vpt_deep", "vpt_shallow"}
TEXT = [name for name in METHODS if name not in IMAGES_ONLY and name not in SECOND_STAGE]
MASKS = {name for name in METHODS if "trainable" in settings_of(name).method.fields}
ADAPTERS = [name for name in TEXT if "target_modules" in settings_of(name).method.fields]

# One method of each kind of names: linears, layers, parameters.
ON_ALL = {"flexlora", "lora", "houlsby", "bitfit", "e2lora"}

# Of no use to a LLaMA, for what reason.
NOT_LLAMA = {
    "bitfit": r"does not match the full name of any parameter",
    "fact_tk": r"Narrow target_modules, or set width",
    "fact_tt": r"Narrow target_modules, or set width",
    "linear": r"this model has none: choose another method",
}

every_method = pytest.mark.parametrize("name", TEXT)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def everywhere(names: list[str]) -> pytest.MarkDecorator:
    """Each of these methods on each of the backbones that it can work on.

    A RoBERTa and a DeBERTa have other names than a BERT, but the same linears. Most methods on them are slow tests.
    """
    pairs = [(name, at) for at in ARCHITECTURES for name in names if at != "llama" or name not in NOT_LLAMA]
    quick = {(name, at) for name, at in pairs if at in ("bert", "llama") or name in ON_ALL}
    return pytest.mark.parametrize(("name", "architecture"), slow_but(quick, pairs))


@everywhere(TEXT)
def test_the_initial_output_is_the_backbones(name, architecture):
    base = tiny(architecture)
    _, model = wrapped(name, architecture, base=base)
    if name in STARTS_NEAR:
        torch.testing.assert_close(logits(model), logits(base), rtol=0, atol=1e-3)
    assert torch.equal(logits(model), logits(base)) is (name not in STARTS_NEAR | STARTS_ELSEWHERE)


@everywhere(TEXT)
def test_two_steps_change_all_trainable_parameters_and_nothing_else(name, architecture):
    """Two steps are needed: in the first, a factor of 0 gives its partner no gradient."""
    method, model = wrapped(name, architecture, *IN_TWO_STEPS.get(name, ()))
    loop = make_loop(method, model, settings_of(name), total_steps=2)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    loop.run()
    trains = {key for key, value in model.named_parameters() if value.requires_grad}
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == trains
    counted = method.parameters(model)
    assert counted["adapter_allocated"] + counted["head"] == sum(before[key].numel() for key in trains)


@everywhere(TEXT)
def test_a_saved_adapter_loads_into_a_fresh_backbone_and_merging_keeps_the_output(name, architecture, tmp_path):
    """Merging is refused by methods that cannot."""
    method, model = train(name, architecture)
    method.save(model, tmp_path)
    before = logits(model)
    assert not before.allclose(logits(tiny(architecture)), atol=1e-3)  # there was something to save
    loaded = load_saved(tiny(architecture), tmp_path)
    torch.testing.assert_close(logits(loaded), before, rtol=1e-5, atol=1e-5 if name in REWRITES else 1e-6)
    files = {file.suffix for file in tmp_path.iterdir()}
    assert ".safetensors" in files
    assert files <= {".safetensors", ".json", ".md"}
    if name not in ADAPTERS:
        return
    if name in NOT_LINEAR or (name, architecture) in NOTHING_HOLDS_THE_SHIFT:
        with pytest.raises(ValueError, match="cannot be merged into the backbone"):
            model.merge_and_unload()
        return
    if name in NOT_UNLOADED:
        model.merge_adapter()
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
        return
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(IMAGES_ONLY))
@every_architecture
def test_a_method_for_images_is_refused_in_one_line(name, architecture):
    with pytest.raises(UserError, match="needs a model with one timm VisionTransformer") as refused:
        wrapped(name, architecture)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", NOT_LLAMA)
def test_a_method_without_targets_in_a_llama_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=NOT_LLAMA[name]) as refused:
        wrapped(name, "llama")
    assert "\n" not in str(refused.value)


@everywhere([name for name in ADAPTERS if name != "adaptformer"])  # it takes whole MLPs
def test_target_modules_can_be_set(name, architecture):
    _, model = wrapped(name, architecture, f"method.target_modules=[{QUERY[architecture]}]")
    head = settings_head(architecture)
    adapted = {key for key, value in model.named_parameters() if value.requires_grad and not head & set(key.split("."))}
    assert len(adapted) >= (1 if name == "e2_lori" else 2)  # both layers can share the one tensor
    assert all(f".{QUERY[architecture]}." in key for key in adapted)


def settings_head(architecture: str) -> set[str]:
    return set(context(architecture).head_modules)


@every_method
def test_parameters_at_the_shape_of_deberta_v3_base(name):
    assert name in ADAPTER, f"add the exact number of trainable parameters of {name} to ADAPTER"
    method = build_method(settings_of(name).method, context("deberta-v2"))
    base = random_init("deberta_v3_base", device="meta")
    if isinstance(method, E2Method):
        with pytest.raises(ConfiguredByData):
            method.parameters(method.wrap(copy.deepcopy(base)))
        targets = str(context("deberta-v2").target_modules)
        method.take_configuration(unshared_plan(base, targets, method.config.r).as_dict())
    if isinstance(method, ChosenRanksMethod):
        chosen = {name: {"rank": 8, "blocks": 4} for name in adapted_linears(base, method.config)}
        method.take_configuration({"modules": chosen})
    model = method.wrap(base)
    counted = method.parameters(model)
    assert (counted["adapter_active"], counted["head"]) == (ADAPTER[name], HEAD)
    # PEFT trains a copy of the head and keeps the original.
    frozen = 663_552 if name == "lora_fa" else 0  # its A is a parameter all the same
    assert counted["total"] == BACKBONE + (0 if name in MASKS else ADAPTER[name] + HEAD + frozen)


@pytest.mark.parametrize("name", sorted(set(TEXT) - MASKS))
def test_a_bfloat16_backbone_trains_a_float32_adapter(name):
    method, model = wrapped(name, "bert", base=tiny("bert").to(torch.bfloat16))
    head = settings_head("bert")
    trains = {key: p.dtype for key, p in model.named_parameters() if p.requires_grad and not head & set(key.split("."))}
    assert set(trains.values()) == {torch.float32}
    assert make_loop(method, model, settings_of(name)).run().status == "done"
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("name", sorted(MASKS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_train_must_be_float32(name, dtype):
    """At a learning rate of 1e-5 nearly every step on a bfloat16 weight would round to nothing."""
    _, model = wrapped(name, "bert", base=tiny("bert").to(dtype))
    with pytest.raises(UserError, match=r"set model\.dtype=float32") as refused:
        refuse_half_precision(model)
    assert "\n" not in str(refused.value)


@every_method
def test_a_resumed_training_equals_an_uninterrupted_one(name, tmp_path):
    """The training stops between two rank events, in the middle of the random numbers of dropout and data."""
    settings = settings_of(name, "training.checkpoint_every=3", "training.eval_every=6")
    checkpoints = Checkpoints(tmp_path)
    method, straight = wrapped(name, "bert")
    whole = make_loop(method, straight, settings, checkpoints=checkpoints, journal=Journal(tmp_path))
    whole.run()
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{TOTAL_STEPS:09d}")

    method, model = wrapped(name, "bert")
    loaded = checkpoints.load()
    assert loaded is not None
    journal = Journal(tmp_path, loaded[1]["files"])
    resumed = make_loop(method, model, settings, checkpoints=checkpoints, journal=journal)
    with torch.no_grad():  # nothing may be left of a fresh start
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    restore(resumed, loaded)
    assert resumed.outcome.steps == 3
    resumed.run()
    assert resumed.outcome.steps == TOTAL_STEPS
    expected = dict(straight.named_parameters())
    assert [key for key, value in model.named_parameters() if not torch.equal(value, expected[key])] == []
    assert resumed.outcome.events == whole.outcome.events
    assert resumed.outcome.losses == whole.outcome.losses
    assert resumed.method.ranks(model) == whole.method.ranks(straight)
    assert resumed.outcome.last is not None
    assert resumed.outcome.last["eval_loss"] == whole.outcome.last["eval_loss"]


def test_the_resumed_training_had_rank_events_on_both_sides() -> None:
    """Otherwise the test above would not test a method's own state."""
    for name in ("adalora", "adalora_r8", "flexlora", "flexlora_released"):
        method, model = wrapped(name, "bert")
        outcome = make_loop(method, model, settings_of(name)).run()
        steps = [event["step"] for event in outcome.events]
        assert min(steps) <= 3 < max(steps), name


def test_the_methods_of_issue_b_are_there() -> None:
    wanted = {"flexlora", "flexlora_released", "lora", "adalora", "adalora_r8", "full", "linear", "bitfit"}
    assert wanted <= set(METHODS)
