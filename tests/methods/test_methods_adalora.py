"""AdaLoRA: PEFT's method with its penalty once per step, its masks recorded, and a resumable training."""

import copy
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from method_helpers import Sentences, context, load_saved, logits, make_loop, settings_of, tiny, train, wrapped
from peft import AdaLoraConfig, PeftModel, get_peft_model
from peft.tuners.adalora.layer import AdaLoraLayer
from runner_helpers import one_line
from torch import nn

from flexlora.architectures import ENCODERS
from flexlora.errors import UserError
from flexlora.methods import build_method
from flexlora.methods.adalora import AdaLoraMethod
from flexlora.training.loop import Loop
from flexlora.training.rank_alarms import rank_alarms

WEIGHT = 0.3


def peft_s_own(**values) -> PeftModel:
    """PEFT's own AdaLoRA with the weights of `wrapped("adalora", "bert")`."""
    layout = ENCODERS["bert"]
    given = {
        "init_r": 12, "target_r": 8, "lora_alpha": 16, "target_modules": layout.target_modules, "tinit": 1, "tfinal": 1,
        "deltaT": 1, "total_step": 6, "orth_reg_weight": WEIGHT, "task_type": "SEQ_CLS",
        "modules_to_save": list(layout.head_modules),
    }  # fmt: skip
    return get_peft_model(tiny("bert"), AdaLoraConfig(**{**given, **values}))


def batch(rows: slice) -> dict[str, torch.Tensor]:
    task = Sentences()
    return task.collate(task.train.examples[rows])


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def copy_factors(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in factors(target).items():
            parameter.copy_(factors(source)[name])


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_penaltys_gradient_equals_autograds_of_pefts_penalty(accumulation):
    """It is not multiplied by the number of accumulated batches, as it is in PEFT's loss."""
    method, model = wrapped("adalora", "bert", f"method.orth_reg_weight={WEIGHT}")
    reference = peft_s_own()
    copy_factors(model, reference)
    for each in (model, reference):
        each.eval()  # no dropout: the two would draw different masks
    reference(**batch(slice(0, 4))).loss.backward()
    for number in range(accumulation):
        rows = slice(number * 4 // accumulation, (number + 1) * 4 // accumulation)
        (model(**batch(rows)).loss / accumulation).backward()
    method.regularise(model)
    for name, parameter in factors(model).items():
        torch.testing.assert_close(parameter.grad, factors(reference)[name].grad, rtol=1e-4, atol=1e-7)
    # At the start E = 0, so that all the gradient of A and B is the penalty's.
    assert all(p.grad.norm() > 0 for name, p in factors(model).items() if "lora_E" not in name)


def with_scaler(loop: Loop) -> torch.amp.GradScaler:
    """Accelerate's setup for fp16 on a GPU, run on the CPU without fp16's rounding."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loop.accelerator.scaler = scaler
    loop.accelerator.native_amp = True
    loop.accelerator.state._mixed_precision = "fp16"
    loop.stepper = AcceleratedOptimizer(loop.optimizer, scaler=scaler)
    loop.accelerator._optimizers = [loop.stepper]
    return scaler


@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_training_with_a_gradient_scaler_equals_training_without(clip):
    """The penalty and the sensitivities therefore use unscaled gradients."""
    ends = []
    for scaled in (False, True):
        method, model = wrapped("adalora", "bert")
        loop = make_loop(method, model, settings_of("adalora", f"training.max_grad_norm={clip}"))
        if scaled:
            with_scaler(loop)
        assert loop.run().status == "done"
        ends.append((factors(model), loop.outcome.events))
    for name, parameter in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], parameter, rtol=1e-3, atol=1e-5)
    assert [event["ranks"] for event in ends[0][1]] == [event["ranks"] for event in ends[1][1]]


def test_a_step_skipped_by_the_scaler_does_not_count():
    """Its infinite gradient must not enter the smoothed sensitivities, and the mask must still be frozen."""
    method, model = wrapped("adalora", "bert", "method.tfinal=0")
    loop = make_loop(method, model, settings_of("adalora"))
    with_scaler(loop)
    calls = itertools.count(1)
    first = next(iter(factors(model).values()))
    first.register_hook(lambda gradient: gradient * (math.inf if next(calls) == 3 else 1.0))
    assert loop.run().status == "done"
    assert method.state_dict()["step"] == 5
    assert all(score.isfinite().all() for score in method.state_dict()["exp_avg_unc"].values())
    # Step 6 of 6 would have been the last mask; it comes in `finish`.
    assert sum(method.ranks(model).values()) == 8 * len(method.ranks(model))
    assert kept_directions(model) == method.ranks(model)


def kept_directions(model: nn.Module) -> dict[str, int]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, AdaLoraLayer)}
    return {
        name.removeprefix("base_model.model."): int((layer.lora_E["default"] != 0).sum())
        for name, layer in layers.items()
    }


def test_the_loss_does_not_contain_the_penalty():
    _, model = wrapped("adalora", "bert", "method.orth_reg_weight=0.5")
    base = tiny("bert")
    for each in (model, base):
        each.eval()
    rows = batch(slice(0, 4))
    assert torch.equal(model(**rows).loss, base(**rows).loss)
    assert peft_s_own().eval()(**rows).loss > base(**rows).loss + 0.1  # what PEFT reports


def test_the_penalty_does_not_need_a_loss_in_the_output():
    """A timm model's output has no loss, and PEFT then silently drops the penalty."""
    ends = []
    for with_loss in (True, False):
        method, model = wrapped("adalora", "bert")
        make_loop(method, model, settings_of("adalora"), task=Sentences(with_loss=with_loss)).run()
        ends.append(factors(model))
    assert all(torch.equal(parameter, ends[1][name]) for name, parameter in ends[0].items())


def test_a_training_equals_pefts_own():
    """Masks and weights equal those of PEFT's loop: loss with penalty, step, `update_and_allocate`, zero_grad."""
    settings = settings_of("adalora", f"method.orth_reg_weight={WEIGHT}", "training.max_grad_norm=null")
    method = build_method(settings.method, context("bert"))
    model, reference = method.wrap(tiny("bert")), peft_s_own()
    copy_factors(model, reference)
    for each in (model, reference):
        for module in each.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    loop = make_loop(method, model, settings)
    groups = [p for p in reference.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (6 - step) / 6)
    masks = []
    reference.train()
    for step, (_, (rows,)) in enumerate(itertools.islice(itertools.chain(epoch(loop, 0), epoch(loop, 1)), 6), start=1):
        reference(**rows).loss.backward()
        optimizer.step()
        schedule.step()
        before = reference.peft_config["default"].rank_pattern
        reference.base_model.update_and_allocate(step)
        after = reference.peft_config["default"].rank_pattern
        if after is not before:
            masks.append({name.partition(".lora_E")[0]: sum(kept) for name, kept in after.items()})
        optimizer.zero_grad()
    events = loop.run().events
    assert [event["step"] for event in events] == [2, 3, 4, 5]
    assert [event["ranks"] for event in events] == masks
    for name, parameter in factors(model).items():
        torch.testing.assert_close(parameter, factors(reference)[name], rtol=1e-3, atol=1e-5)


def epoch(loop: Loop, number: int):
    return loop.loader.epoch_steps(number)


def test_recorded_events_have_the_right_values():
    method, model = wrapped("adalora", "bert")
    outcome = make_loop(method, model, settings_of("adalora")).run()
    modules = len(method.ranks(model))
    # cubic: 48 (1 - (t - 1)/4)³ above 96
    assert [event["budget"] for event in outcome.events] == [116, 102, 96, 96]
    for event in outcome.events:
        assert event["total_rank"] == sum(event["ranks"].values()) == event["budget"]
        assert len(event["ranks"]) == len(event["energy"]) == modules
        assert not set(event["pruned"]) & set(event["grown"])
    first, last = outcome.events[0], outcome.events[-1]
    assert set(first["pruned"]) == {name for name, rank in first["ranks"].items() if rank < 12}
    assert last["ranks"] == method.ranks(model) == kept_directions(model)
    counted = method.parameters(model)
    assert last["active_parameters"] == counted["adapter_active"] < counted["adapter_allocated"]
    assert json.loads(json.dumps(outcome.events)) == outcome.events
    assert rank_alarms(outcome.events, outcome.losses) == []


def test_without_an_event_the_ranks_do_not_change():
    method, model = wrapped("adalora", "bert")
    assert set(method.ranks(model).values()) == {12}
    counted = method.parameters(model)
    assert counted["adapter_active"] == counted["adapter_allocated"]
    # PEFT keeps the rank itself as a parameter, which no count takes for one.
    assert counted["adapter_allocated"] == sum(p.numel() for p in factors(model).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_constant_rank_number_never_trains(dtype):
    """PEFT converts it to the backbone's type and returns a trainable parameter. The scale s would then change."""
    _, model = wrapped("adalora", "bert", base=tiny("bert").to(dtype))
    numbers = [p for name, p in model.named_parameters() if "ranknum" in name]
    assert len(numbers) == 12
    assert not any(p.requires_grad for p in numbers)
    assert {float(p) for p in numbers} == {12.0}


def test_modules_with_rank_0_are_saved_and_loaded(tmp_path):
    method, model = train("adalora", "bert", "method.target_r=1")
    ranks = method.ranks(model)
    assert min(ranks.values()) == 0
    method.save(model, tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {name.removesuffix(".lora_E"): sum(kept) for name, kept in saved["rank_pattern"].items()} == ranks
    assert saved["orth_reg_weight"] == 0.1
    assert torch.allclose(logits(load_saved(tiny("bert"), tmp_path)), logits(model), atol=1e-6)


def save_after_each_step(method: AdaLoraMethod, model: nn.Module, folder: Path) -> None:
    after_step = method.after_step

    def then_save(step: int, optimizer: torch.optim.Optimizer) -> None:
        after_step(step, optimizer)
        method.save(model, folder)

    method.after_step = then_save


def test_saving_during_training_keeps_the_mask(tmp_path):
    """PEFT's saving rewrites the mask's names in place."""
    ends = []
    for saved in (False, True):
        method, model = wrapped("adalora", "bert")
        if saved:
            save_after_each_step(method, model, tmp_path)
        make_loop(method, model, settings_of("adalora")).run()
        ends.append((factors(model), method.ranks(model)))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(parameter, ends[1][0][name]) for name, parameter in ends[0][0].items())


REFUSED = {
    "target above start": ("method.target_r=12", "method.target_r=12 must be below method.init_r=12"),
    "target of nothing": ("method.target_r=0", "method.target_r must be a whole number of at least 1"),
    "smoothing of 1": ("method.beta1=1.0", "method.beta1 must be a number above 0 and below 1"),
    "smoothing of 0": ("method.beta2=0.0", "method.beta2 must be a number above 0 and below 1"),
    "dropout of 1": ("method.lora_dropout=1.0", r"method.lora_dropout must be a probability below 1, not 1.0"),
    "negative penalty": ("method.orth_reg_weight=-1.0", "orth_reg_weight"),
    "no step between the windows": ("method.tinit=5", "method.tinit=5 and method.tfinal=1 leave no step"),
    "negative window": ("method.tfinal=-1", "method.tfinal must be at least 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_out_of_range_is_refused_in_one_line(case):
    override, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as refused:
        build_method(settings_of("adalora", override).method, context("bert"))
    assert "\n" not in str(refused.value)


def test_the_command_refuses_before_it_loads_anything(flexlora_run, tmp_path):
    """The folders of data and model are there, but neither could be loaded."""
    (tmp_path / "CoLA").mkdir()
    for name in ("CoLA/train.tsv", "CoLA/dev.tsv"):
        (tmp_path / name).touch()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    words = ["task=glue/cola", "method=adalora", "model=local", f"model.path={tmp_path}", f"task.data_dir={tmp_path}"]
    result = flexlora_run(*words, "method.target_r=20", f"output_root={tmp_path}")
    assert result.returncode == 2
    assert one_line(result).startswith("method.target_r=20 must be below method.init_r=12")


def test_adalora_r8_starts_with_the_parameters_of_flexlora():
    counts = []
    for name in ("adalora_r8", "flexlora"):
        method, model = wrapped(name, "deberta-v2")
        counts.append(method.parameters(model)["adapter_active"])
    assert counts[0] == counts[1]
    method, model = train("adalora_r8", "bert")
    assert isinstance(method, AdaLoraMethod)
    assert sum(method.ranks(model).values()) == 4 * len(method.ranks(model))


def test_a_deep_copy_of_the_model_is_independent():
    """The tuner's `forward` is replaced on the object. A deep copy must not run the original's layers."""
    _, model = train("adalora", "bert")
    before = logits(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in factors(model).values():
            parameter.zero_()
    assert torch.equal(logits(other), before)
    assert not torch.equal(logits(model), before)
