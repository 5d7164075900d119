"""torch.compile: one graph for a training, whatever the ranks do, with the results of eager mode."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from training_helpers import (
    adapt,
    adapt_bert,
    assert_same,
    make_net,
    moves,
    regression_batches,
    state_of,
    text_batches,
    tiny_bert,
    train,
    train_bert,
    trainable,
)

from flexlora import attach

HAS_COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))
INDUCTOR = pytest.param(
    "inductor",
    marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_COMPILER, reason="inductor needs a C++ compiler")],
)
BACKENDS = ["eager", "aot_eager", INDUCTOR]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_recompile_across_events(backend: str) -> None:
    def run(compiled: bool) -> tuple:
        model = adapt(make_net(), total_step=20, deltaT=2)
        optimizer = torch.optim.AdamW(trainable(model), lr=0.02)
        used = torch.compile(model, backend=backend, fullgraph=True) if compiled else model
        attachment = attach(used, optimizer)
        losses = train(used, optimizer, regression_batches(20))
        return losses, moves(attachment.events), state_of(model)

    eager = run(compiled=False)
    compiled = run(compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert sum(bool(event[2]) for event in eager[1]) >= 8
    assert compiled[1] == eager[1]
    assert compiled[0] == pytest.approx(eager[0], rel=0, abs=1e-9)
    assert_same(compiled[2], eager[2], 1e-9)


def test_one_graph_of_a_transformer() -> None:
    counter = CompileCounter()
    bert = tiny_bert()
    bert.config.problem_type = "single_label_classification"  # else BERT sets it in its first forward pass: a recompile
    model = adapt_bert(bert, total_step=8, deltaT=2)
    optimizer = torch.optim.AdamW(trainable(model), lr=0.02)
    compiled = torch.compile(model, backend=counter)
    attachment = attach(compiled, optimizer)
    batches = text_batches(8)
    train_bert(compiled, optimizer, batches[:1])
    frames, calls = counter.frame_count, counter.op_count
    assert frames >= 1
    train_bert(compiled, optimizer, batches[1:])
    assert (counter.frame_count, counter.op_count) == (frames, calls)
    assert any(event.pruned for event in attachment.events)


def test_names_are_those_of_the_uncompiled_model() -> None:
    model = adapt(make_net(), total_step=4, deltaT=2)
    compiled = torch.compile(model, backend="eager")
    attachment = attach(compiled, torch.optim.SGD(trainable(model), lr=0.1))
    assert attachment.allocator.names == ["one", "two", "three", "four"]
