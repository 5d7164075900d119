"""`flexlora.sharing_plan`: gradients of a real model, the plan they give, and what it refuses."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from flexlora import SharingPlan, sharing_plan
from flexlora.sharing import gradient_statistics

OPTIONS = {"similarity": "rmi_scale_free", "rank_entropy": "information"}


class Stack(nn.Module):
    """Three layers of two linears with dropout; the loss has a gradient of another scale in each layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(6, 8), "down": nn.Linear(8, 6), "norm": nn.LayerNorm(6)}) for _ in range(3)
        )
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer["norm"](x + layer["down"](self.dropout(layer["up"](x).tanh())))
        return x


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randn(4, 6, generator=generator) for _ in range(2)) for _ in range(count)]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("passes", [1, 2, 4, 99])
def test_statistics_are_those_of_the_mean_gradient(passes):
    model = Stack().train()
    found = gradient_statistics(model, weights_of(model), batches(), loss, passes=passes, keep=True)
    model.eval()
    expected = torch.autograd.grad(sum(loss(model, batch) for batch in batches()) / 3, list(weights_of(model).values()))
    assert list(found) == list(weights_of(model))
    for statistics, gradient in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(statistics.gradient, gradient)
        assert statistics.elements == gradient.numel()
        assert statistics.sigma == pytest.approx(float(gradient.double().std()), rel=1e-5)
        assert statistics.mean == pytest.approx(float(gradient.double().mean()), rel=1e-4, abs=1e-8)


def test_the_model_is_as_before():
    model = Stack()
    model.layers[0].eval()
    model.layers[1]["up"].weight.requires_grad_(False)
    loss(model, batches()[0]).backward()
    modes = [module.training for module in model.modules()]
    before = [
        (p.requires_grad, p.grad if p.grad is None else p.grad.clone(), p.detach().clone()) for p in model.parameters()
    ]
    sharing_plan(model, batches(), ["up", "down"], loss=loss, **OPTIONS)
    assert [module.training for module in model.modules()] == modes
    for parameter, (requires_grad, gradient, value) in zip(model.parameters(), before, strict=True):
        assert parameter.requires_grad == requires_grad
        assert torch.equal(parameter, value)
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_a_failing_batch_leaves_the_model_as_before():
    model = Stack()
    with pytest.raises(RuntimeError):
        sharing_plan(model, [(torch.ones(2, 5), torch.ones(2, 6))], loss=loss, **OPTIONS)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_plan_covers_each_type_in_order_and_survives_json():
    model = Stack()
    plan = sharing_plan(model, iter(batches()), ["up", "down"], 4, loss=loss, **OPTIONS)
    assert [kind.name for kind in plan.types] == ["layers.*.up", "layers.*.down"]
    assert [(kind.in_features, kind.out_features) for kind in plan.types] == [(6, 8), (8, 6)]
    for kind, short in zip(plan.types, ("up", "down"), strict=True):
        modules = [module for interval in kind.intervals for module in interval.modules]
        assert modules == [f"layers.{layer}.{short}" for layer in range(3)]
    assert plan.batches == 3
    assert set(plan.ranks) == set(weights_of(model))
    assert SharingPlan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    assert str(plan).startswith(f"r 4, batches 3, parameters as E²LoRA {plan.parameters():,}\n")


def test_a_losss_scale_changes_nothing_in_scale_free_plans():
    model = Stack()
    plain = sharing_plan(model, batches(), loss=loss, **OPTIONS)
    scaled = sharing_plan(model, batches(), loss=lambda *given: 1024 * loss(*given), **OPTIONS)
    assert [kind.intervals for kind in scaled.types] == [kind.intervals for kind in plain.types]


@pytest.mark.parametrize("similarity", ["cosine", "l1", "l2", "kl"])
@pytest.mark.parametrize("partition", ["greedy", "dynamic_programming"])
def test_every_similarity_gives_a_plan(similarity, partition):
    options = {"similarity": similarity, "partition": partition, "rank_entropy": "information", "rank_pool": "all"}
    plan = sharing_plan(Stack(), batches(), loss=loss, **options)
    assert len(plan.ranks) == 6
    assert all(math.isfinite(value) for kind in plan.types for row in kind.similarities for value in row)


def test_large_gradients_are_refused_by_rmi_with_the_module_and_the_option():
    with pytest.raises(ValueError, match=r"layers\.\d\.(up|down) has proxy entropy .*similarity=rmi_scale_free"):
        sharing_plan(Stack(), batches(), loss=lambda *given: 1e4 * loss(*given))


def test_refusals():
    model = Stack()
    with pytest.raises(ValueError, match="at least one batch"):
        sharing_plan(model, [], loss=loss)
    with pytest.raises(ValueError, match=r"no linear of the model matches target_modules=\['query'\]"):
        sharing_plan(model, batches(), ["query"], loss=loss)
    with pytest.raises(ValueError, match=r"the gradient of layers\.0\.up is not finite"):
        sharing_plan(model, batches(), loss=lambda *given: loss(*given) * math.nan, **OPTIONS)
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="the loss does not depend on unused"):
        sharing_plan(model, batches(), loss=loss, **OPTIONS)
    with pytest.raises(ValueError, match="`similarity`"):
        sharing_plan(model, batches(), loss=loss, similarity="cosin")


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.pop("types"),
        lambda plan: plan.update(more=1),
        lambda plan: plan["types"][0].pop("thresholds"),
        lambda plan: plan["types"][0]["intervals"][0].update(rank=0),
        lambda plan: plan["types"].append(plan["types"][0]),
        lambda plan: plan.update(types=3),
        lambda plan: plan["options"].update(similarity="typo"),
    ],
)
def test_values_that_are_not_a_plan_are_refused(change):
    values = json.loads(json.dumps(sharing_plan(Stack(), batches(), loss=loss, **OPTIONS).as_dict()))
    change(values)
    with pytest.raises(ValueError, match=r"not a sharing plan|`similarity`"):
        SharingPlan.from_dict(values)


def _plan_of_rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    plan = sharing_plan(Stack(), batches(4)[rank::2], loss=loss, **OPTIONS)
    Path(folder, f"{rank}.json").write_text(json.dumps(plan.as_dict()), encoding="utf-8")
    dist.destroy_process_group()


@pytest.mark.xdist_group("processes")
def test_two_processes_make_the_plan_of_one(tmp_path):
    """Two real processes, because each must see the mean over the batches of both."""
    import socket

    from process_helpers import start_processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_plan_of_rank, (port, str(tmp_path)), 2)
    plans = [SharingPlan.from_dict(json.loads((tmp_path / f"{rank}.json").read_text())) for rank in range(2)]
    single = sharing_plan(Stack(), batches(4), loss=loss, **OPTIONS)
    assert plans[0] == plans[1]
    assert [kind.intervals for kind in plans[0].types] == [kind.intervals for kind in single.types]
    for kind, alone in zip(plans[0].types, single.types, strict=True):
        assert kind.entropies == pytest.approx(alone.entropies, abs=1e-5)
