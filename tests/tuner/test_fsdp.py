"""Two processes over gloo with a sharded base (FSDP2): ranks and losses of one process on the joint batch.

A tiny LLaMA on a CPU replaces the 8B one. The tests prove the arithmetic and the placement of the parameters.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from marks import selected, slow_but
from peft import PeftModel, get_peft_model
from process_helpers import start_processes
from torch import nn
from torch.distributed.tensor import DTensor
from training_helpers import trainable
from transformers import LlamaConfig, LlamaForCausalLM

import flexlora
from flexlora import average_gradients, shard_base

STEPS, SIZE, PROCESSES = 24, 8, 2
CASES: dict[str, dict[str, Any]] = {
    "entropy": {},
    "sensitivity": {"importance": "sensitivity", "growth_state": "surviving_second_moment"},
    "checkpointing": {},
    "bfloat16": {},
}

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.xdist_group("fsdp"),  # one worker, or each would start the processes
]


def tiny_llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).to(dtype)


def adapted_llama(name: str, rank: int = 0) -> PeftModel:
    torch.manual_seed(1 + rank)  # the adapter of the first process is everyone's
    config = flexlora.FlexLoraConfig(
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        r=4,
        max_rank=8,
        total_step=STEPS,
        tinit=2,
        tfinal=2,
        deltaT=4,
        init_b=4,
        **CASES[name],
    )
    model = get_peft_model(tiny_llama(torch.bfloat16 if name == "bfloat16" else torch.float32), config)
    if name == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def frozen_bytes(model: nn.Module) -> int:
    """The part of the base on this process."""
    held = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters() if not p.requires_grad)
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def probe() -> torch.Tensor:
    return torch.arange(24).view(2, 12) * 7 % 96


def train(name: str, rank: int, processes: int, folder: Path) -> dict[str, Any]:
    model = adapted_llama(name, rank)
    if processes > 1:
        shard_base(model)
    trained = trainable(model)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    handle = flexlora.attach(model, optimizer)
    draw, losses = torch.Generator().manual_seed(3), []
    for _ in range(STEPS):
        ids = torch.randint(0, 96, (SIZE, 16), generator=draw).chunk(processes)[rank]
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if processes > 1:
            average_gradients(trained)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    plain = not any(isinstance(p, DTensor) for p in trained)
    sharded = frozen_bytes(model)
    if processes > 1 and rank == 0:
        model.save_pretrained(folder / name)
    with torch.no_grad():
        logits = model.eval()(input_ids=probe()).logits
    return {
        "losses": losses,
        "events": [dataclasses.asdict(event) for event in handle.events],
        "frozen": sharded,
        "plain": plain,
        "logits": logits,
        "adapter": {key: value.detach().clone() for key, value in model.named_parameters() if value.requires_grad},
    }


def process(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    try:
        torch.save({name: train(name, rank, PROCESSES, Path(folder)) for name in names}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The folder with the results of both processes. They start once, because a start costs more than a training."""
    folder = tmp_path_factory.mktemp("fsdp")
    start_processes(process, (str(folder), selected(request, "name")), PROCESSES)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", slow_but({"entropy"}, CASES))
def test_a_sharded_base_equals_one_process_on_the_joint_batch(name: str, folder: Path, results: list) -> None:
    first, second = (found[name] for found in results)
    alone = train(name, 0, 1, folder)
    assert first["events"] == second["events"]
    assert sum(bool(event["pruned"]) for event in first["events"]) >= 4
    tolerance = 2e-2 if name == "bfloat16" else 1e-5
    losses = torch.tensor([first["losses"], second["losses"]]).mean(0)
    assert losses.tolist() == pytest.approx(alone["losses"], abs=tolerance)
    if name != "bfloat16":  # two halves of a batch round otherwise than the whole
        assert [event["ranks"] for event in first["events"]] == [event["ranks"] for event in alone["events"]]
    assert alone["losses"][-1] != pytest.approx(alone["losses"][0], abs=1e-2), "it should have learned something"


@pytest.mark.parametrize("name", slow_but({"entropy"}, CASES))
def test_each_process_holds_half_of_the_base_and_the_whole_adapter(name: str, results: list) -> None:
    whole = frozen_bytes(adapted_llama(name))
    for found in results:
        assert found[name]["frozen"] == pytest.approx(whole / PROCESSES, rel=0.02)
        assert found[name]["plain"]
    first, second = (found[name]["adapter"] for found in results)
    assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize("name", slow_but({"entropy"}, CASES))
def test_its_adapter_loads_into_an_unsharded_base(name: str, folder: Path, results: list) -> None:
    base = tiny_llama(torch.bfloat16 if name == "bfloat16" else torch.float32)
    before = base(input_ids=probe()).logits
    loaded = PeftModel.from_pretrained(base, str(folder / name)).eval()
    with torch.no_grad():
        logits = loaded(input_ids=probe()).logits
    assert not torch.allclose(before.float(), logits.float(), atol=1e-2)
    torch.testing.assert_close(logits, results[0][name]["logits"])
    expected = results[0][name]["events"][-1]["ranks"]
    assert {key.removeprefix("model."): rank for key, rank in flexlora.module_ranks(loaded).items()} == {
        key.removeprefix("model."): rank for key, rank in expected.items()
    }


def test_sharding_without_a_process_group_is_refused() -> None:
    with pytest.raises(RuntimeError, match="needs a process group"):
        shard_base(nn.Linear(2, 2))


def test_a_fully_trainable_model_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="no frozen parameters"):
            shard_base(nn.Linear(2, 2))
    finally:
        dist.destroy_process_group()
