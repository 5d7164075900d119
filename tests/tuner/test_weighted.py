"""Weighted sums of adapters against sums of dense ΔW."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import SHAPES, Chain, Nested, adapters, delta, fixed, moving, scramble
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

from flexlora.tuner.packing import flexlora_layers, plain_name

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))
OPTIONS = {"one": {}, "two": {"r": 3, "lora_alpha": 5}, "three": {"r": 1, "lora_alpha": 2}}


def three(seed=0, base=None, options=None, **all_of_them):
    """Adapters one (trainable), two and three, with random directions."""
    torch.manual_seed(1)
    base = base if base is not None else Chain()
    options = options or OPTIONS
    model = get_peft_model(copy.deepcopy(base), moving(**(all_of_them | options["one"])), adapter_name="one")
    for name in list(options)[1:]:
        model.add_adapter(name, fixed(inference_mode=True, **(all_of_them | options[name])))
    for i, name in enumerate(options):
        scramble(model, seed + i, name)
    return model, base


def dense(model, name):
    return {plain_name(key): delta(layer, name) for key, layer in flexlora_layers(model, name)}


def summed(model, names, weights):
    total = {}
    for name, weight in zip(names, weights, strict=True):
        for key, matrix in dense(model, name).items():
            total[key] = total.get(key, 0) + weight * matrix
    return total


weights = st.lists(st.sampled_from([1.0, 0.5, -1.0, -0.3, 2.0, 0.0]), min_size=1, max_size=3)


@settings(max_examples=15)
@given(weights, st.integers(0, 999))
def test_cat_is_exact(weights, seed):
    model, _ = three(seed)
    names = list(OPTIONS)[: len(weights)]
    expected = summed(model, names, weights)
    ranks = {
        key: sum(
            layer.rank(name) for name in names for k, layer in flexlora_layers(model, name) if plain_name(k) == key
        )
        for key in SHAPES
    }
    model.add_weighted_adapter(names, weights, "sum")
    found = dense(model, "sum")
    assert found.keys() == expected.keys()
    for key, matrix in expected.items():
        torch.testing.assert_close(found[key], matrix, rtol=1e-5, atol=1e-5)
    assert {plain_name(k): layer.rank("sum") for k, layer in flexlora_layers(model, "sum")} == ranks


@settings(max_examples=15)
@given(weights, st.integers(0, 999), st.sampled_from([None, 1, 2, 5, 50]))
def test_svd_is_the_best_approximation(weights, seed, rank):
    model, _ = three(seed)
    names = list(OPTIONS)[: len(weights)]
    expected = summed(model, names, weights)
    highest = max(layer.rank(name) for name in names for _, layer in flexlora_layers(model, name))
    model.add_weighted_adapter(names, weights, "sum", combination_type="svd", svd_rank=rank)
    found = dense(model, "sum")
    for key, matrix in expected.items():
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        k = rank or highest
        torch.testing.assert_close(found[key], (u[:, :k] * s[:k]) @ vh[:k], rtol=1e-4, atol=1e-4)
    assert max(layer.rank("sum") for _, layer in flexlora_layers(model, "sum")) <= (rank or highest)


def test_the_output_is_the_sum():
    model, _ = three(0)
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum")
    model.base_model.set_adapter(["one", "two"])
    both = model(X)
    model.set_adapter("sum")
    torch.testing.assert_close(model(X), both, rtol=1e-4, atol=1e-4)


def test_subtracting_an_adapter_from_itself_gives_the_base():
    model, base = three(0)
    model.add_weighted_adapter(["one", "one"], [1.0, -1.0], "zero")
    model.set_adapter("zero")
    torch.testing.assert_close(model(X), base(X), rtol=1e-4, atol=1e-4)


def test_the_others_are_left_as_they_were():
    model, _ = three(0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    output = model(X)
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "sum")
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    assert model.active_adapters == ["one"]
    assert torch.equal(model(X), output)
    model.base_model.update_and_allocate(1)


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_save_and_load(tmp_path, kind):
    model, base = three(0)
    model.add_weighted_adapter(["one", "two", "three"], [1.0, -0.5, 2.0], "sum", combination_type=kind)
    model.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "sum"))
    model.set_adapter("sum")
    assert torch.equal(loaded(X), model(X))


@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize("order", [["one", "two"], ["two", "one"]])
def test_adapters_of_different_targets(kind, order):
    model, _ = three(
        0, options={"one": {"target_modules": ["q", "k"]}, "two": {"target_modules": ["k", "o"], "lora_alpha": 3}}
    )
    weights = [1.0, -0.5]
    expected = summed(model, order, weights)
    assert set(expected) == {"q", "k", "o"}
    model.add_weighted_adapter(order, weights, "sum", combination_type=kind, svd_rank=12)
    found = dense(model, "sum")
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # what the first adapter leaves out must not be left out of the sum
        ({"target_modules": ["q"], "exclude_modules": ["block.q"]}, {"target_modules": ["q"]}),
        ({"target_modules": ["block.q"]}, {"target_modules": ["q"]}),
        # "q" alone is adapted: its name is a suffix of "block.q", which is not
        (
            {"target_modules": ["q"], "exclude_modules": ["block.q"]},
            {"target_modules": ["q"], "exclude_modules": ["block.q"]},
        ),
        ({"target_modules": r"(block\.)?q"}, {"target_modules": "q"}),
    ],
)
@pytest.mark.parametrize("swap", [False, True])
def test_suffixes_and_exclusions(first, second, swap):
    pair = {"one": second, "two": first} if swap else {"one": first, "two": second}
    model, _ = three(0, Nested(), pair)
    expected = summed(model, ["one", "two"], [1.0, 0.5])
    model.add_weighted_adapter(["one", "two"], [1.0, 0.5], "sum")
    found = dense(model, "sum")
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_layers_to_transform_of_the_first_does_not_limit_the_sum():
    torch.manual_seed(0)
    base = torch.nn.Module()
    base.encoder = torch.nn.Module()
    base.encoder.layers = torch.nn.ModuleList([Chain(), Chain()])
    model, _ = three(
        0, base, {"one": {"target_modules": ["q"], "layers_to_transform": [0]}, "two": {"target_modules": ["q"]}}
    )
    expected = summed(model, ["one", "two"], [1.0, 0.5])
    assert len(expected) == 2
    model.add_weighted_adapter(["one", "two"], [1.0, 0.5], "sum")
    found = dense(model, "sum")
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


ERRORS = [
    ((["one", "two"], [1.0], "sum"), "there are 2 adapters but 1 weights"),
    (([], [], "sum"), "there are 0 adapters but 0 weights"),
    ((["one", "z"], [1.0, 1.0], "sum"), "no adapter 'z'. There are: one, two, three"),
    ((["one", "two"], [1.0, 1.0], "three"), "an adapter 'three' already"),
    ((["one", "two"], [1.0, 1.0], "sum", "linear"), "combination_type is 'linear'"),
    ((["one", "two"], [1.0, 1.0], "sum", "svd", 0), "svd_rank"),
    ((["one", "two"], [1.0, 1.0], "sum", "svd", -1), "svd_rank"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors_leave_the_model_as_it_was(arguments, message):
    model, _ = three(0)
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(*arguments)
    assert list(model.peft_config) == ["one", "two", "three"]
    assert not any("sum" in name for name in model.state_dict())


def test_deleting_the_sum_again():
    model, _ = three(0)
    before = model(X)
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum")
    model.delete_adapter("sum")
    assert torch.equal(model(X), before)
    assert len(adapters(model, "sum")) == 0
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum")


def with_heads(*owners):
    torch.manual_seed(1)
    model = get_peft_model(Chain(), moving(modules_to_save=["head"] if "one" in owners else None), adapter_name="one")
    second = fixed(inference_mode=True, modules_to_save=["head"] if "two" in owners else None)
    model.add_adapter("two", second)
    scramble(model, 0, "one")
    scramble(model, 1, "two")
    with torch.no_grad():
        for name in owners:
            model.base_model.model.head.modules_to_save[name].weight.add_(1.0 + len(name))
    return model


@pytest.mark.parametrize("owner", ["one", "two"])
def test_a_trained_classifier_goes_along(owner):
    """Silently, the sum would get the untrained one."""
    model = with_heads(owner)
    model.add_weighted_adapter(["one", "two"], [1.0, 0.0], "sum")
    heads = model.base_model.model.head.modules_to_save
    assert torch.equal(heads["sum"].weight, heads[owner].weight)
    assert heads["sum"].weight is not heads[owner].weight
    assert not heads["sum"].weight.requires_grad


def test_two_trained_classifiers_are_refused():
    model = with_heads("one", "two")
    with pytest.raises(ValueError, match="modules_to_save"):
        model.add_weighted_adapter(["one", "two"], [1.0, 0.0], "sum")
    model.add_weighted_adapter(["one", "one"], [1.0, 0.5], "sum")
