"""After a resume the moments of every direction are those of before: a stopped training equals one that went on.

Bit for bit. An adapter is saved packed (active directions and their slots), an optimizer's state at full capacity.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from training_helpers import (
    adapt,
    adapted,
    assert_same,
    make_net,
    masks,
    moves,
    regression_batches,
    state_of,
    train,
    trainable,
    twin,
)

from flexlora import attach

STEPS, CUT = 40, 23
OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.05),
    "adamw-fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, fused=True),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def stop_and_resume(
    folder: Path, name: str, dtype: torch.dtype, **settings: Any
) -> tuple[tuple[Any, torch.optim.Optimizer, list], tuple[Any, torch.optim.Optimizer, list]]:
    """(model, optimizer, events after the cut) of a training that never stopped, and of one resumed from files."""
    batches = regression_batches(STEPS, dtype=dtype)
    model = adapt(make_net(dtype=dtype), total_step=STEPS, deltaT=3, **settings)
    optimizer = OPTIMIZERS[name](trainable(model))
    attachment = attach(model, optimizer)
    train(model, optimizer, batches[:CUT])
    assert any(slots != list(range(len(slots))) for slots in masks(model).values()), "slots should have holes by now"

    model.save_pretrained(folder)
    archive = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "flexlora": attachment.state_dict()}, archive)
    held = len(attachment.events)
    train(model, optimizer, batches[CUT:])

    archive.seek(0)
    saved = torch.load(archive, weights_only=True)
    torch.manual_seed(999)  # whatever a new process would draw must not matter
    again = PeftModel.from_pretrained(make_net(dtype=dtype), folder, is_trainable=True)
    optimizer_again = OPTIMIZERS[name](trainable(again))
    optimizer_again.load_state_dict(saved["optimizer"])
    resumed = attach(again, optimizer_again, step=CUT)
    resumed.load_state_dict(saved["flexlora"])
    assert resumed.step == CUT
    train(again, optimizer_again, batches[CUT:])
    return (model, optimizer, attachment.events[held:]), (again, optimizer_again, resumed.events)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *[(name, {}) for name in OPTIMIZERS],
        ("adamw", {"importance": "sensitivity"}),
        ("adamw", {"growth_state": "surviving_second_moment"}),
        ("adamw", {"importance": "random", "growth_init": "orthogonal"}),
        ("adamw", {"budget_unit": "parameters"}),
        ("adamw", {"budget_by": "spread", "importance": "nuclear", "growth_energy_quantile": 0.3}),
    ],
    ids=[*OPTIMIZERS, "sensitivity", "second-moment", "random-orthogonal", "parameters", "spread-energy"],
)
def test_equals_never_having_stopped(tmp_path: Path, name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    straight, resumed = stop_and_resume(tmp_path, name, dtype, **settings)
    assert len(straight[2]) >= 5
    assert any(event.pruned for event in straight[2])
    assert [event.to_dict() for event in straight[2]] == [event.to_dict() for event in resumed[2]]
    assert_same(state_of(straight[0]), state_of(resumed[0]))
    assert moments(*straight[:2]).keys() == moments(*resumed[:2]).keys()
    assert_same(moments(*straight[:2]), moments(*resumed[:2]))


def test_the_moments_are_on_the_rows_of_their_directions(tmp_path: Path) -> None:
    """Right after loading, before any further step: every direction has the vectors and the moments it had."""
    model = adapt(make_net(), total_step=STEPS, deltaT=3)
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    attach(model, optimizer)
    train(model, optimizer, regression_batches(CUT))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_net(), tmp_path, is_trainable=True)
    optimizer_again = OPTIMIZERS["adamw"](trainable(again))
    optimizer_again.load_state_dict(optimizer.state_dict())
    directions, directions_again = per_direction(model, optimizer), per_direction(again, optimizer_again)
    assert directions.keys() == directions_again.keys()
    assert sum(len(slots) for slots in masks(model).values()) == len(directions)
    for key, values in directions.items():
        for a, b in zip(values, directions_again[key], strict=True):
            assert torch.equal(a, b), key
    assert any(values[3].any() for values in directions.values())


def test_the_file_holds_active_directions_only(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = adapt(make_net(), total_step=STEPS, deltaT=3)
    attach(model, optimizer := OPTIMIZERS["adamw"](trainable(model)))
    train(model, optimizer, regression_batches(CUT))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    rows = sum(value.numel() for key, value in saved.items() if "lambda" in key)
    assert rows == sum(len(slots) for slots in masks(model).values())


def test_regrown_is_counted_across_a_resume(tmp_path: Path) -> None:
    straight, resumed = stop_and_resume(tmp_path, "adamw", torch.float64)
    assert sum(event.regrown for event in resumed[2]) == sum(event.regrown for event in straight[2]) > 0


def test_step_alone_resumes_the_schedule() -> None:
    """`attach(step=…)` without a state: events go on where the schedule is."""
    model = adapt(make_net(), total_step=STEPS, deltaT=3)
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    attachment = attach(model, optimizer, step=CUT)
    train(model, optimizer, regression_batches(STEPS)[CUT:])
    assert [event.step for event in attachment.events] == [24, 27, 30, 33, 36, 39]


def test_a_second_load_over_a_living_model(tmp_path: Path) -> None:
    """`load_adapter` over a model that went on: masks, vectors and configuration are those of the file again."""
    model = adapt(make_net(), total_step=STEPS, deltaT=3)
    optimizer = OPTIMIZERS["adamw"](trainable(model))
    attachment = attach(model, optimizer)
    batches = regression_batches(STEPS)
    train(model, optimizer, batches[:CUT])
    model.save_pretrained(tmp_path)
    kept = state_of(model), twin(optimizer.state_dict()), attachment.state_dict()
    held = len(attachment.events)
    train(model, optimizer, batches[CUT:])
    later, events = state_of(model), attachment.events[held:]
    attachment.remove()

    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert_same(state_of(model), kept[0])
    optimizer.load_state_dict(kept[1])
    attachment = attach(model, optimizer)
    attachment.load_state_dict(kept[2])
    train(model, optimizer, batches[CUT:])
    assert moves(attachment.events) == moves(events)
    assert_same(state_of(model), later)


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    found = {}
    for name, layer in adapted(model):
        for part in ("P", "lambda", "Q"):
            for key, value in optimizer.state[getattr(layer, f"flexlora_{part}")["default"]].items():
                found[f"{name}.{part}.{key}"] = torch.as_tensor(value)
    return found


def per_direction(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[tuple[str, int], list[torch.Tensor]]:
    """(module, slot) → the direction's column, λ and row, and their first and second moments."""
    found: dict[tuple[str, int], list[torch.Tensor]] = {}
    for name, layer in adapted(model):
        for slot in layer.flexlora_active["default"].nonzero().flatten().tolist():
            values = found[name, slot] = []
            for part, dim in (("P", 1), ("lambda", 0), ("Q", 0)):
                parameter = getattr(layer, f"flexlora_{part}")["default"]
                state = optimizer.state[parameter]
                values += [t.detach().select(dim, slot) for t in (parameter, state["exp_avg"], state["exp_avg_sq"])]
    return found
