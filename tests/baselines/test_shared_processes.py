"""Parameters that layers share work with torch.compile, with DDP, and beside a base that is sharded over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from low_rank_helpers import BACKBONES, adapted
from marks import slow_but
from process_helpers import start_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flexlora import average_gradients, shard_base

PROCESSES, STEPS = 2, 3
CASES = [(method, way) for method in ("e2lora", "e2_sharelora", "e2_vera") for way in ("ddp", "sharded")]


@pytest.mark.parametrize("method", slow_but({"e2_dora", "e2_vera"}, ["e2lora", "e2_sharelora", "e2_dora", "e2_vera"]))
def test_a_compiled_model_has_one_graph_and_the_same_gradients(method: str) -> None:
    model = adapted(method, "bert", init_weights=False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(BACKBONES["bert"].loss(model), trained)
    compiled = torch.compile(model, backend="aot_eager")
    found = torch.autograd.grad(BACKBONES["bert"].loss(compiled), trained)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def trained(method: str, way: str, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """The trained tensors after some steps. A single process gets the rows of all."""
    model = adapted(method, "bert", init_weights=False)
    used: nn.Module = model
    if processes > 1 and way == "ddp":
        used = DistributedDataParallel(model)
    elif processes > 1:
        shard_base(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    ids = BACKBONES["bert"].inputs["input_ids"]
    share = len(ids) // processes
    rows = slice(rank * share, (rank + 1) * share)
    for _ in range(STEPS):
        logits = used(input_ids=ids[rows]).logits
        nn.functional.cross_entropy(logits, torch.arange(len(ids))[rows] % 2).backward()
        if processes > 1 and way == "sharded":
            average_gradients(parameters)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    try:
        found: dict[Any, Any] = {case: trained(*case, rank, PROCESSES) for case in CASES}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.xdist_group("gloo")
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_train_what_one_trains_on_all_rows(tmp_path: Path) -> None:
    """All cases in one start: starting two processes costs more than their trainings."""
    start_processes(process, (str(tmp_path),), PROCESSES)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    for method, way in CASES:
        expected = trained(method, way, 0, 1)
        for results in found:
            values = results[method, way]
            assert values.keys() == expected.keys()
            for name, value in values.items():
                torch.testing.assert_close(
                    value, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, at=(method, way, name): f"{at}: {m}"
                )


def test_a_training_moves_what_the_test_above_compares() -> None:
    model = adapted("e2lora", "bert", init_weights=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    after = trained("e2lora", "ddp", 0, 1)
    assert all(not torch.equal(before[name], value) for name, value in after.items())
