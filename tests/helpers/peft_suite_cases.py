"""The cases of PEFT's common tests: every tuner of this package, LoRA and AdaLoRA, and what is expected to fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from low_rank_helpers import plan_for
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_suite_helpers import VIT, Case
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from flexlora import FlexLoraConfig
from flexlora.baselines import PfeifferConfig
from flexlora.tuner.base_config import LowRankConfig, TunerConfig

LINEARS = {"target_modules": ["lin0", "lin1"]}
BERT_LINEARS = {"target_modules": ["query", "value"]}
LLAMA_LINEARS = {"target_modules": ["q_proj", "v_proj"]}


def with_defaults(config: type, **defaults: Any) -> type:
    """A subclass with other defaults: PEFT's tests make some configurations from the targets alone."""
    return dataclasses.make_dataclass(config.__name__, [(n, Any, v) for n, v in defaults.items()], bases=(config,))


OURS = {
    str(kind.value).lower(): config
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if issubclass(config, TunerConfig) and config.__module__.startswith("flexlora.")
}
# Fields without which a configuration is not complete.
NEEDED: dict[str, dict[str, Any]] = {
    "dynamic_dora": {"total_step": 100, "r": 8, "target_r": 4},
    "lori": {"tinit": 50},
    "e2_lori": {"tinit": 50},
    "fact": {"width": 2, "r": 2},
}
# Tuners that adapt whole blocks of a transformer: on BERT or a ViT instead of PEFT's MLP.
ON_BERT = ("adaptformer", "adapter_fusion")
ON_VIT = ("vpt", "noah")
TUNERS = (
    "lora", "adalora", "flexlora_moving", "flexlora_fixed",
    *sorted(set(OURS) - {"flexlora"}),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Models:
    """Folders of small models."""

    bert: Path
    llama: Path
    adapters: tuple[Path, Path]


def write_models(folder: Path) -> Models:
    """Write a BERT and a LLaMA with random weights, and two Pfeiffer adapters for the BERT."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertForSequenceClassification(BertConfig(vocab_size=100, intermediate_size=64, **small))
    bert.save_pretrained(folder / "bert")
    LlamaForCausalLM(
        LlamaConfig(vocab_size=100, intermediate_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **small)
    ).save_pretrained(folder / "llama")
    adapters = (folder / "first", folder / "second")
    for number, adapter in enumerate(adapters):
        torch.manual_seed(number)
        model = get_peft_model(bert.bert, PfeifferConfig(bottleneck=4, init_std=0.5))
        model.save_pretrained(adapter)
        model.unload()
    return Models(folder / "bert", folder / "llama", adapters)


def cases(tuner: str, models: Models, mlp: Callable[[], nn.Module], whole: bool) -> list[Case]:
    """The cases of a tuner. `whole`: all of them, instead of those that take a few seconds."""
    if tuner == "lora":
        return _linear_cases(Case(LoraConfig, LINEARS), models, whole)
    if tuner == "adalora":
        return [Case(AdaLoraConfig, LINEARS | {"total_step": 1})]  # it has one trainable adapter only
    if tuner.startswith("flexlora_"):
        fields = {"total_step": 100} if tuner == "flexlora_moving" else {"init_b": 0}
        away = {"init_weights": False, "init_std": 0.5}
        case = Case(with_defaults(FlexLoraConfig, **fields), LINEARS, not_identity=away)
        return _linear_cases(case, models, whole)
    config = OURS[tuner]
    if tuner in ON_BERT:
        settings = {} if tuner == "adaptformer" else {"adapters": [str(path) for path in models.adapters]}
        return [
            Case(config, settings | {"task_type": task}, str(models.bert), family, not_identity={}, noise=0.05)
            for family, task in (("features", "FEATURE_EXTRACTION"), ("classes", "SEQ_CLS"))[: 2 if whole else 1]
        ]
    if tuner in ON_VIT:
        return [Case(config, {}, VIT, not_identity={})]
    if tuner in NEEDED:
        config = with_defaults(config, **NEEDED[tuner])
    settings = dict(LINEARS)
    if "plan" in {field.name for field in dataclasses.fields(config)}:
        r = next(field.default for field in dataclasses.fields(config) if field.name == "r")
        settings = {"target_modules": "lin0|lin1", "plan": plan_for(mlp(), "lin0|lin1", r).as_dict()}
        return [Case(config, settings, noise=0.05), Case(config, settings, family="active", noise=0.05)]
    away = None if issubclass(config, LowRankConfig) else {}
    return _linear_cases(Case(config, settings, not_identity=away, noise=0.05), models, whole)


def _linear_cases(case: Case, models: Models, whole: bool) -> list[Case]:
    """The cases of a tuner of linears."""

    def other(family: str = "custom", model: str = "MLP", **settings: Any) -> Case:
        return dataclasses.replace(case, family=family, model=model, settings=case.settings | settings)

    found = [case, other("active"), other("mixed")]
    if whole:
        found += [
            other(modules_to_save=["lin1"], target_modules=["lin0"]),
            other("decoder", str(models.llama), task_type="CAUSAL_LM", **LLAMA_LINEARS),
            other("features", str(models.bert), task_type="FEATURE_EXTRACTION", **BERT_LINEARS),
            other("classes", str(models.bert), task_type="SEQ_CLS", **BERT_LINEARS),
        ]
    return found
