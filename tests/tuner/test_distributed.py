"""Two processes over gloo on a CPU change the same ranks as one process on the joint batch.

The processes get different data and communicate through a file, so that no port is needed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from marks import selected, slow_but
from process_helpers import start_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training_helpers import adapt_bert, adapted, assert_same, state_of, text_batches, tiny_bert, trainable

from flexlora import attach

STEPS, SIZE, PROCESSES = 14, 8, 2

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.xdist_group("gloo"),  # one worker, or each would start the processes
]


def train(rank: int, processes: int, case: dict[str, Any]) -> dict[str, Any]:
    """Train one process; a single process gets the whole batch."""
    torch.manual_seed(100 + rank)  # processes do not share torch's generator: events must not draw from it
    model = adapt_bert(tiny_bert(), total_step=STEPS, deltaT=2, tinit=1, **case["settings"])
    used: nn.Module = model
    if case["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if processes > 1:
        used = DistributedDataParallel(model, broadcast_buffers=case["broadcast_buffers"])
    used.train()
    torch.manual_seed(100 + rank)
    optimizer = torch.optim.AdamW(trainable(model), lr=0.02)
    attachment = attach(used, optimizer)
    share = SIZE // processes
    clean, losses = True, []
    for batch in text_batches(STEPS, size=SIZE):
        mine = {key: value[rank * share : (rank + 1) * share] for key, value in batch.items()}
        optimizer.zero_grad()
        loss = used(**mine).loss
        loss.backward()
        for _, layer in adapted(model):
            spare = ~layer.flexlora_active["default"]
            clean &= not layer.flexlora_P["default"].grad[:, spare].any()
            clean &= not layer.flexlora_lambda["default"].grad[spare].any()
            clean &= not layer.flexlora_Q["default"].grad[spare].any()
        nn.utils.clip_grad_norm_(trainable(model), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {
        "events": [dataclasses.asdict(event) for event in attachment.events],
        "state": state_of(model),
        "clean": clean,
        "losses": losses,
        "names": attachment.allocator.names,
    }


def process(rank: int, folder: str, cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    try:
        torch.save([train(rank, PROCESSES, case) for case in cases], f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


CASES: dict[str, dict[str, Any]] = {
    "entropy": {"settings": {}, "checkpointing": False, "broadcast_buffers": False},
    "checkpointing": {"settings": {}, "checkpointing": True, "broadcast_buffers": False},
    "sensitivity": {
        "settings": {"importance": "sensitivity", "growth_state": "surviving_second_moment"},
        "checkpointing": True,
        "broadcast_buffers": False,
    },
    "random": {
        "settings": {"importance": "random", "growth_init": "orthogonal"},
        "checkpointing": False,
        "broadcast_buffers": False,
    },
    "broadcast": {"settings": {}, "checkpointing": False, "broadcast_buffers": True},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, list]:
    """The results of both processes, by case. They start once, because a start costs more than a training."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    names = selected(request, "name")
    start_processes(process, (str(folder), [CASES[name] for name in names]), PROCESSES)
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    return {name: [found[rank][i] for rank in range(PROCESSES)] for i, name in enumerate(names)}


@pytest.mark.parametrize("name", slow_but({"entropy"}, CASES))
def test_all_processes_make_the_same_decisions(name: str, results: dict) -> None:
    first, second = results[name]
    assert first["losses"] != second["losses"], "the processes should have had different data"
    assert first["events"] == second["events"]
    assert sum(bool(event["pruned"]) for event in first["events"]) >= 4
    assert_same(first["state"], second["state"])


@pytest.mark.parametrize("name", slow_but({"entropy"}, CASES))
def test_masked_gradients_are_exactly_zero(name: str, results: dict) -> None:
    assert all(result["clean"] for result in results[name])


@pytest.mark.parametrize("name", slow_but({"entropy"}, CASES))
def test_equals_one_process_on_the_joint_batch(name: str, results: dict) -> None:
    alone = train(0, 1, CASES[name])
    joint = results[name][0]
    assert joint["names"] == alone["names"], "a wrapper's prefix must not show in the record"
    assert len(joint["events"]) == len(alone["events"]) == 6
    for ours, theirs in zip(joint["events"], alone["events"], strict=True):
        for key, value in theirs.items():
            if key in ("scores", "energy"):
                assert ours[key] == pytest.approx(value, rel=1e-8, abs=1e-10), key
            elif key == "singular_values":
                assert ours[key].keys() == value.keys()
                for module, spectrum in value.items():  # rounded to six digits
                    assert ours[key][module] == pytest.approx(spectrum, rel=2e-6, abs=1e-10), module
            elif key == "orthogonality_error":
                assert ours[key] == pytest.approx(value, rel=1e-8), key
            else:
                assert ours[key] == value, key
    assert_same(joint["state"], alone["state"], 1e-9)
    losses = torch.tensor([result["losses"] for result in results[name]], dtype=torch.float64).mean(0)
    assert losses.tolist() == pytest.approx(alone["losses"], abs=1e-9)
