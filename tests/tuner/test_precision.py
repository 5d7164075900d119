"""What trains is float32 on a base of any type, or there is one error or warning before the first step."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import Chain, fixed
from page_helpers import readme_script
from peft import PeftModel, get_peft_model
from torch import nn
from training_helpers import adapt_bert, text_batches, tiny_bert, train_bert, trainable
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

import flexlora
from flexlora import FlexLoraConfig, attach, save_as_lora

HALF = [torch.float16, torch.bfloat16]
STEPS = 8
every_half = pytest.mark.parametrize("dtype", HALF, ids=["float16", "bfloat16"])


def adapted_bert(dtype: torch.dtype, **settings: Any) -> Any:
    changes = {"modules_to_save": ["pooler", "classifier"], "total_step": STEPS, "deltaT": 2}
    return adapt_bert(tiny_bert(dtype=torch.float32).to(dtype), **(changes | settings))


def types(model: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in trainable(model)}


@pytest.mark.parametrize(
    "modules",
    [["pooler", "classifier"], ["word_embeddings"], ["LayerNorm"], ["layer.1"]],
    ids=["head", "embeddings", "norms", "a whole block"],
)
@every_half
def test_modules_to_save_train_in_float32_anywhere_in_the_model(dtype: torch.dtype, modules: list[str]) -> None:
    targets = r".*layer\.0.*(query|value)"
    model = adapted_bert(dtype, modules_to_save=modules, target_modules=targets)
    reference = adapted_bert(torch.float32, modules_to_save=modules, target_modules=targets)
    reference.load_state_dict(model.state_dict())
    assert types(model) == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {dtype}
    losses = []
    for each in (model, reference):
        optimizer = torch.optim.AdamW(trainable(each), lr=1e-3)
        attach(each, optimizer)
        losses.append(train_bert(each, optimizer, text_batches(STEPS)))
        assert all(p.isfinite().all() for p in trainable(each))
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert model(**text_batches(1)[0]).logits.dtype == dtype


def test_a_float64_or_float32_base_is_left_alone() -> None:
    for dtype in (torch.float32, torch.float64):
        model = adapted_bert(dtype)
        assert types(model) == {dtype}
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@every_half
def test_a_head_of_a_language_model_and_its_tied_embedding(dtype: torch.dtype) -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    ids = text_batches(1)[0]["input_ids"]
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"], "init_b": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about tied weights
        model = get_peft_model(LlamaForCausalLM(config).to(dtype), FlexLoraConfig(**settings))
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-3)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert types(model) == {torch.float32}
    assert model(input_ids=ids, labels=ids).loss.isfinite()


@every_half
def test_a_saved_head_loads_exactly_in_every_way(dtype: torch.dtype, tmp_path: Path) -> None:
    model = adapted_bert(dtype)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-3)
    attach(model, optimizer)
    train_bert(model, optimizer, text_batches(STEPS))
    model.eval().save_pretrained(tmp_path / "flexlora")
    save_as_lora(tmp_path / "lora", model)
    batch = text_batches(1)[0]
    expected = model(**batch).logits
    base = tiny_bert(dtype=torch.float32).to(dtype)
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "flexlora", **options).eval()
        assert torch.equal(loaded(**batch).logits, expected)
    assert torch.equal(copy.deepcopy(model)(**batch).logits, expected)
    lora = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora").eval()
    torch.testing.assert_close(lora(**batch).logits, expected, rtol=0, atol=0.02)
    with model.disable_adapter():
        assert torch.equal(model(**batch).logits, base.eval()(**batch).logits)
    merged = copy.deepcopy(model).merge_and_unload().eval()
    torch.testing.assert_close(merged(**batch).logits, expected, rtol=0, atol=0.02)


@every_half
@pytest.mark.parametrize("bias", ["all", "flexlora_only"])
def test_biases_of_a_half_precision_base_are_refused(bias: str, dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"parameters are {kind} \(the first: .*bias\): load the model with"):
        adapted_bert(dtype, bias=bias)
    assert types(adapted_bert(torch.float32, bias=bias)) == {torch.float32}
    adapted_bert(dtype, bias=bias, inference_mode=True)  # to use it is no training


def test_a_model_cast_after_the_adapter_is_refused_by_attach() -> None:
    model = adapted_bert(torch.float32).half()
    with pytest.raises(ValueError, match=r"are float16 \(the first: base_model.*\), in which the first step of Adam"):
        attach(model, torch.optim.AdamW(trainable(model)))


def test_a_bfloat16_parameter_of_the_users_own_gives_one_warning() -> None:
    model = adapted_bert(torch.float32)
    optimizer = torch.optim.AdamW(trainable(model))
    own = nn.Linear(2, 2, dtype=torch.bfloat16)
    optimizer.add_param_group({"params": own.parameters()})
    with pytest.warns(UserWarning, match="bfloat16") as caught:
        attach(model, optimizer)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"2 of {len(trainable(model)) + 2} trainable parameters are bfloat16 (the first: ")


def test_the_script_of_the_readme_trains_a_half_precision_checkpoint(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's own lines, with a real checkpoint in float16 in place of the small model, for two steps."""
    monkeypatch.chdir(tmp_path)
    folder = str(shared / "models" / "minilm-l6-h384")
    load = AutoModelForSequenceClassification.from_pretrained
    for dtype in (", dtype=torch.float32", ""):
        loaded, count = re.subn(r"from_config\(.*\)", f"from_pretrained({folder!r}{dtype})", readme_script())
        assert count == 1
        names: dict[str, Any] = {}
        exec(loaded.replace("range(40)", "range(2)"), names)
        model = names["model"]
        assert types(model) == {torch.float32}
        assert load(folder).dtype == torch.float16
        assert all(parameter.isfinite().all() for parameter in trainable(model))
        assert flexlora.module_ranks(model)


# --- autocast_adapter_dtype=False -----------------------------------------------------------------------------------


def half_model(**settings: Any) -> Any:
    torch.manual_seed(0)
    base = Chain().to(torch.bfloat16)
    return get_peft_model(base, fixed(modules_to_save=["head"], init_weights=False), **settings)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_without_autocast_the_adapter_has_the_type_of_the_base(autocast, low_cpu_mem_usage, tmp_path):
    wanted = torch.float32 if autocast else torch.bfloat16
    model = half_model(autocast_adapter_dtype=autocast)
    model.add_adapter("second", fixed(), autocast_adapter_dtype=autocast)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(
        Chain().to(torch.bfloat16), tmp_path, autocast_adapter_dtype=autocast, low_cpu_mem_usage=low_cpu_mem_usage
    )
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    for held in (model, loaded):
        added = {p.dtype for name, p in held.named_parameters() if ".flexlora_" in name or ".modules_to_save." in name}
        assert added == {wanted}
        assert {buffer.dtype for name, buffer in held.named_buffers() if "active" in name} == {torch.bool}
        assert held(x).dtype == torch.bfloat16
        assert held(x).isfinite().all()
    assert torch.equal(model(x), loaded(x))


def test_what_trains_in_bfloat16_by_choice_is_told_at_attach():
    model = half_model(autocast_adapter_dtype=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with pytest.warns(UserWarning, match="trainable parameters are bfloat16"):
        attach(model, optimizer)
