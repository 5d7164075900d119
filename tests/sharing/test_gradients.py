"""`mean_gradients`: one pass over a few batches that hands out gradients one by one. LoRA-GA is built on it."""

import copy
import weakref

import pytest
import torch
from method_helpers import Sentences, make_loop, settings_of, tiny, wrapped
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn

from flexlora.errors import UserError
from flexlora.methods.gradients import task_gradients
from flexlora.sharing.gradients import mean_gradients


def stack(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 5), nn.Linear(5, 1)).to(dtype)


def batches(count: int = 3, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(4, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_gradients_are_the_means_over_the_batches_in_the_models_order(passes):
    model = stack().train()
    found = list(mean_gradients(model, weights_of(model), batches(), loss, passes=passes))
    model.eval()
    total = sum(loss(model, batch) for batch in batches()) / 3
    expected = torch.autograd.grad(total, list(weights_of(model).values()))
    assert [name for name, _ in found] == list(weights_of(model))
    for (_, gradient), reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-15)


def test_gradients_of_a_half_precision_model_are_summed_in_float32():
    model, given = stack(torch.bfloat16), batches(5, torch.bfloat16)
    found = dict(mean_gradients(model, weights_of(model), given, loss))
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    model.eval()
    for name, weight in weights_of(model).items():
        parts = [torch.autograd.grad(loss(model, batch), weight)[0].float() for batch in given]
        torch.testing.assert_close(found[name], sum(parts) / 5, rtol=1e-6, atol=1e-9)


def test_a_gradient_is_freed_when_the_caller_drops_it():
    model = stack()
    held: list[weakref.ref[torch.Tensor]] = []

    def watched(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        assert all(reference() is None for reference in held)
        return loss(model, batch)

    for _, gradient in mean_gradients(model, weights_of(model), batches(), watched, passes=3):
        held.append(weakref.ref(gradient))
        del gradient
    assert len(held) == 3
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_caller_that_stops_early_leaves_the_model_as_before():
    model = stack().train()
    model[0].weight.requires_grad_(False)
    trains = [parameter.requires_grad for parameter in model.parameters()]
    gradients = mean_gradients(model, weights_of(model), batches(), loss, passes=3)
    next(gradients)
    assert not any(module.training for module in model.modules())
    gradients.close()
    assert [parameter.requires_grad for parameter in model.parameters()] == trains
    assert all(module.training for module in model.modules())


def test_a_method_takes_its_first_batches_only():
    model, drawn = stack(), iter(batches(5))
    found = dict(task_gradients("mine", model, weights_of(model), drawn, loss, 2))
    expected = dict(mean_gradients(model, weights_of(model), batches(5)[:2], loss))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(list(drawn)) == 3


@pytest.mark.parametrize(
    ("given", "wrong", "message"),
    [
        ([], loss, r"^method=mine: the gradients need at least one batch\.$"),
        (batches(), lambda *of: loss(*of) * torch.nan, r"^method=mine: the gradient of 0 is not finite: set model\.dt"),
        (
            batches(),
            lambda model, batch: model[4](model[3](batch.new_ones(2, 8))).sum(),
            r"does not depend on 0: leave",
        ),
    ],
)
def test_what_prevents_gradients_is_one_line(given, wrong, message):
    model = stack()
    with pytest.raises(UserError, match=message):
        list(task_gradients("mine", model, weights_of(model), given, wrong, 2))


def test_quantised_weights_are_refused():
    weights = {"0": torch.zeros(2, 2, dtype=torch.uint8)}
    with pytest.raises(UserError, match=r"^method=mine needs gradients of the backbone: set model\.quantization=null$"):
        list(task_gradients("mine", stack(), weights, batches(), loss, 2))


@pytest.mark.filterwarnings("ignore:Full backward hook")  # PEFT's counting
@pytest.mark.parametrize("options", [{}, {"direction": "ArBr", "scale": "unit"}], ids=["default", "other"])
def test_lora_ga_starts_as_pefts_own_preparation_does(options):
    """PEFT computes the gradients before it wraps the model, and LoRA-GA here through the wrapped model.

    With r = 4, no singular vector of a singular value of 0 is taken: such vectors are arbitrary.
    """
    words = [f"method.{name}={value}" for name, value in options.items()]
    method, model = wrapped("lora_ga", "bert", "method.batches=3", "method.r=4", *words)
    loop = make_loop(method, model, settings_of("lora_ga"))
    given = [loop.loader.first_batches() for _ in range(2)]
    ours = {name: value for name, value in model.named_parameters() if ".lora_" in name}

    plain = tiny("bert").eval()
    config = copy.deepcopy(method.config)
    config.lora_ga_config = LoraGAConfig(**options)
    assert isinstance(config, LoraConfig)

    def train_step() -> None:
        plain.eval()  # PEFT would take dropout's noise too
        for batch, _ in zip(given[0], range(3), strict=False):
            Sentences().loss(plain, batch).backward()

    preprocess_loraga(plain, config, train_step)
    torch.manual_seed(1)
    theirs = dict(get_peft_model(plain, config).named_parameters())
    assert len(ours) == 24
    for name, value in ours.items():  # a singular vector has no sign, and the SVD begins with random numbers
        torch.testing.assert_close(value.detach().abs(), theirs[name].detach().abs(), rtol=1e-3, atol=1e-4)
