"""The memory estimate against what a real training step holds, and against exact counts."""

import os

import memory_helpers
import pytest
import torch
from loop_helpers import training
from marks import slow_but
from memory_helpers import CONFIGS, FLEXLORA, LINEAR, LORA, adapted, batch, measure_a_step

from flexlora.doctor.findings import size
from flexlora.models.random_init import random_init
from flexlora.settings import Precision
from flexlora.testing.commands import server
from flexlora.training.memory import free_memory, step_memory


def estimate(config, fields, rows=32, tokens=64, eval_rows=1, precision=Precision.fp32):
    model, method = adapted(config, fields, "meta")
    settings = training(rows)
    settings.precision = precision
    return step_memory(
        model, lambda model, batch: model(**batch).logits, method, settings, batch(rows, tokens), batch(eval_rows, 8)
    )


MEASURED = [("bert", "LORA"), ("deberta", "LORA"), ("bert", "FULL")]


@pytest.mark.parametrize(("name", "fields"), slow_but(MEASURED[:1], MEASURED))
def test_the_peak_is_what_a_real_step_holds(name, fields, tmp_path):
    """Resident bytes above those before the step, in a process of its own."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not reset a process's peak of resident memory")
    process = server().Process(target=measure_a_step, args=(name, fields, tmp_path / "bytes"))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    measured = int((tmp_path / "bytes").read_text())
    told = estimate(CONFIGS[name], getattr(memory_helpers, fields))
    # Parameters and optimizer state were there before.
    rest = told.peak - told.frozen - told.trained - told.optimizer
    assert rest > 50 * 2**20
    assert measured == pytest.approx(rest, rel=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_what_autograd_saves(name):
    """Autograd's own hooks see every tensor that is kept for the backward."""
    model, _ = adapted(CONFIGS[name], LORA, "cpu")
    model.train()
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    kept = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    inputs = {key: value for key, value in batch(16, 32).items() if key != "labels"}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(**inputs).logits
    assert logits.requires_grad
    told = estimate(CONFIGS[name], LORA, rows=16, tokens=32)
    assert told.activations == pytest.approx(sum(saved.values()), rel=0.05)


def test_parts_are_counted_exactly():
    told = estimate(CONFIGS["bert"], LORA)
    model, _ = adapted(CONFIGS["bert"], LORA, "cpu")
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert told.trained == told.gradients == trained
    assert told.frozen == sum(t.nbytes for t in (*model.parameters(), *model.buffers())) - trained
    # Two moments, and a step count a tensor.
    assert 0 <= told.optimizer - 2 * trained < 64 * len(list(model.parameters()))


def test_memory_follows_batch_precision_and_method():
    bert = CONFIGS["bert"]
    lora = estimate(bert, LORA)
    assert estimate(bert, LORA, rows=64).activations == pytest.approx(2 * lora.activations, rel=0.02)
    assert estimate(bert, LORA, precision=Precision.bf16).activations < 0.8 * lora.activations
    assert estimate(bert, LINEAR).activations < 0.02 * lora.activations
    assert estimate(bert, FLEXLORA).trained > lora.trained


def test_an_evaluation_of_a_large_batch_decides():
    assert estimate(CONFIGS["bert"], LINEAR, rows=1, tokens=8, eval_rows=512).evaluation_decides
    assert not estimate(CONFIGS["bert"], LORA).evaluation_decides


@pytest.mark.parametrize(
    ("name", "total"), [("deberta_v3_base", 184_423_682), ("roberta_base", 124_647_170), ("llama3_8b", 8_030_261_248)]
)
def test_the_exact_shapes_have_the_published_counts(name, total):
    model = random_init(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_free_memory_is_of_this_machine():
    free, total = free_memory("cpu") or (0, 0)
    assert 0 < free < total < 2**50


def test_free_memory_of_a_gpu_is_the_drivers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3, 5) if device.type == "cuda" else None)
    assert free_memory("cuda:0") == (3, 5)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1024**2, "1.0 MiB"), (703 * 2**20, "703 MiB"), (3.84 * 2**30, "3.8 GiB")],
)
def test_sizes_are_read_at_a_glance(count, text):
    assert size(count) == text
