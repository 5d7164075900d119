"""`adapter=DIR`: an adapter is loaded only into settings under which it is the same update."""

import copy
import itertools
import json
import typing
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import vit_helpers
from marks import slow_but
from method_helpers import METHODS, SECOND_STAGE, Sentences, configured, context, logits, settings_of, tiny
from torch import nn

from flexlora.errors import UserError
from flexlora.methods import Method, build_method
from flexlora.methods.fields import fits
from flexlora.methods.peft import PeftMethod
from flexlora.saved_adapter import ORIGIN, refuse_other_update

OF_VIT = {"adaptformer", "fact_tk", "fact_tt", "noah", "ssf", "vpt_deep", "vpt_shallow"}
# No adapter of these can be loaded: AdaLoRA's masked directions are not saved, the others change the backbone.
REFUSE_ALL = {"adalora", "adalora_r8", "lora_ga", "pissa"}
# noah_supernet saves the subnet that its search found.
ADAPTERS = sorted(set(METHODS) - {"bitfit", "full", "linear", "noah_supernet"} - REFUSE_ALL - SECOND_STAGE.keys())
# Values that a field of some type may have.
POOL: list[Any] = [
    True, False, 1, 2, 3, 8, 24, 0.05, 0.3, 0.7, 2.5, "gaussian", "orthonormal", "all", "lora_only", "flexlora_only",
    "grow", "both", "exact", "signed", "zero", "constant", ["query"], {"query": 3}, {"query": 2.5}, {"query": 12},
    "relu", "tanh", "tk", "tt", "rank", "interval",
]  # fmt: skip


def built(name: str, **changes: Any) -> PeftMethod:
    if name in OF_VIT:
        told = context("bert", target_modules=vit_helpers.LINEARS, head_modules=["head"], task_type=None)
    else:
        told = context("bert")
    method = build_method(settings_of(name).method.with_fields(**changes), told)
    assert isinstance(method, PeftMethod)
    return method


def backbone(name: str) -> nn.Module:
    return vit_helpers.vit() if name in OF_VIT else tiny("bert")


def adapted(name: str, method: Method, seed: int = 0) -> nn.Module:
    """The adapted backbone. The method has its configuration already, if it needs one from data."""
    base = backbone(name)
    torch.manual_seed(seed)
    return method.wrap(base)


def wrapped(name: str, method: Method, seed: int = 0) -> nn.Module:
    configured(method, backbone(name), vit_helpers.Pictures() if name in OF_VIT else Sentences())
    return adapted(name, method, seed)


def outputs(name: str, model: nn.Module) -> torch.Tensor:
    return vit_helpers.logits(model) if name in OF_VIT else logits(model.eval())


@pytest.fixture
def saved(name: str, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """An adapter with random values, and the outputs of its model."""
    method = built(name)
    model = wrapped(name, method)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    expected = outputs(name, model)
    method.save(model, tmp_path)
    return tmp_path, expected


def variants(name: str) -> Iterator[tuple[str, PeftMethod]]:
    """Methods whose configurations differ in one field: each field, with the first two values that it may have."""
    config = built(name).config
    hints = typing.get_type_hints(type(config))
    for field in fields(config):
        if not field.init or field.name in ORIGIN:
            continue
        hint = hints[field.name]
        literals = [a for a in typing.get_args(hint) if isinstance(a, str)]
        values = [v for v in [*POOL, *literals] if fits(v, hint) and v != getattr(config, field.name)]
        yield from itertools.islice(
            ((field.name, method) for method in map(partial(varied, name, field.name), values) if method), 2
        )


def varied(name: str, field: str, value: Any) -> PeftMethod | None:
    """The method with another value of a field; None if the field cannot have it."""
    try:
        return built(name, **{field: copy.deepcopy(value)})
    except UserError:
        return None


@pytest.mark.parametrize("name", slow_but({"lora", "flexlora"}, ADAPTERS))
def test_a_field_that_changes_the_update_is_refused_by_its_name(name, saved):
    """Every field of the configuration, also those that later versions of PEFT add: the outputs decide."""
    folder, expected = saved
    values = json.loads((folder / "adapter_config.json").read_text())
    refused, loaded = set(), set()
    for field, method in variants(name):
        try:
            if method.configures:  # as a run does with an adapter: the configuration is complete only then
                method.take_configuration(method.configuration_of(folder))
            refuse_other_update(values, method.config, folder)
            model = adapted(name, method, seed=1)
            method.load(model, folder)
        except (UserError, ValueError):
            refused.add(field)
            continue
        loaded.add(field)
        assert torch.allclose(outputs(name, model), expected, atol=1e-5), field
    assert "seed" not in refused
    assert loaded, "nothing could be changed"
    assert {"lora_alpha", "scale", "magnitude"} & (refused | loaded) <= refused


@pytest.mark.parametrize("name", slow_but({"lora", "flexlora"}, ADAPTERS))
def test_the_same_settings_load_it_whatever_was_drawn(name, saved):
    folder, expected = saved
    method = built(name)
    model = wrapped(name, method, seed=1)
    assert not torch.allclose(outputs(name, model), expected, atol=1e-3)
    method.load(model, folder)
    assert torch.allclose(outputs(name, model), expected, atol=1e-5)


def test_a_field_that_this_peft_does_not_know_is_refused_unless_it_is_off(tmp_path):
    values = {"peft_type": "LORA", "lora_alpha": 16, "r": 8}
    ours = built("lora", r=8, lora_alpha=16).config
    refuse_other_update(values | {"use_newlora": False, "new_config": None, "new_list": []}, ours, tmp_path)
    with pytest.raises(ValueError, match=r"with the field use_newlora, which this version of PEFT does not have"):
        refuse_other_update(values | {"use_newlora": True}, ours, tmp_path)


def test_the_message_names_both_values_and_what_to_set(tmp_path):
    ours = built("lora", r=8, lora_alpha=16).config
    values = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "use_rslora": True}
    with pytest.raises(ValueError, match="was saved with") as caught:
        refuse_other_update(values, ours, tmp_path)
    assert str(caught.value).endswith(
        "was saved with lora_alpha=32, use_rslora=True, but this run has lora_alpha=16, use_rslora=False: "
        "its update would be another. Set method.lora_alpha=32 method.use_rslora=True"
    )
