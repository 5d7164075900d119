"""Methods as the command composes them, on backbones of two layers and random weights, trained by the real loop."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from compose_helpers import composed
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from flexlora.architectures import CAUSAL_LM, ENCODERS
from flexlora.conf_path import conf_dir
from flexlora.methods import Method, RunContext, build_method
from flexlora.models.random_init import DEBERTA_V3_BASE
from flexlora.settings import RunSettings, Schedule, resolve
from flexlora.tasks import Split, Task
from flexlora.training.loop import Loop

METHODS = sorted(file.stem for file in (conf_dir() / "method").glob("*.yaml"))
# A second stage, over what only the user has: they are settings here, and tested in a file of their own.
SECOND_STAGE = {"adapter_fusion": {"adapters": ["a", "b"]}}
# Of a training of six steps: masks or rank events at 2, 3 and 4.
WINDOWS = {"tinit": 1, "tfinal": 1, "deltaT": 1}
TOTAL_STEPS = 6
SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 40, "initializer_range": 0.2, "hidden_dropout_prob": 0.1, "num_labels": 2,
}  # fmt: skip

OF_LLAMA = [key for key in SIZES if not key.endswith("_dropout_prob") and key != "num_labels"]
# For what two optimizer steps move. LoRI's B begins again at 0 where its calibration ends; MLAE leaves half of its
# experts out of every step.
IN_TWO_STEPS = {
    "lori": ("method.tinit=3",),
    "e2_lori": ("method.tinit=3",),
    "mlae": ("method.expert_dropout=0.05",),
}


def settings_of(method: str, *overrides: str, schedule: str = "absolute") -> RunSettings:
    """The settings of `flexlora-run task=glue/cola method=<method> <overrides>`, with windows for a short training."""
    return copy.deepcopy(_composed(method, overrides, schedule))


@cache
def _composed(method: str, overrides: tuple[str, ...], schedule: str) -> RunSettings:
    """The settings that `settings_of` copies."""
    config = composed("task=glue/cola", f"method={method}", f"schedule={schedule}")
    for key, value in WINDOWS.items():
        if key in config.method:
            config.method[key] = value
    config.method.update(SECOND_STAGE.get(method, {}))
    config.training.learning_rate = 0.01
    config.training.warmup_ratio = 0.0
    config.training.batch_size = 4
    config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
    return resolve(config)[0]


def tiny(architecture: str) -> PreTrainedModel:
    """An encoder with a head for two classes, or a LLaMA; the same weights at every call."""
    torch.manual_seed(0)
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**{key: SIZES[key] for key in OF_LLAMA}, num_key_value_heads=1))
    if architecture == "bert":
        return BertForSequenceClassification(BertConfig(**SIZES))
    if architecture == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**SIZES, pad_token_id=0))
    layout = {key: DEBERTA_V3_BASE[key] for key in DEBERTA_V3_BASE if key not in SIZES and "hidden_size" not in key}
    return DebertaV2ForSequenceClassification(DebertaV2Config(**{**layout, "pooler_hidden_size": 32}, **SIZES))


def context(architecture: str, total_steps: int = TOTAL_STEPS, **values: Any) -> RunContext:
    """What a run tells its method."""
    layout = CAUSAL_LM if architecture == "llama" else ENCODERS[architecture]
    given: dict[str, Any] = {
        "total_steps": total_steps, "schedule": Schedule.absolute, "paper_steps": None, "seed": 0,
        "target_modules": layout.target_modules, "head_modules": list(layout.head_modules),
        "task_type": "CAUSAL_LM" if architecture == "llama" else "SEQ_CLS",
    }  # fmt: skip
    return RunContext(**{**given, **values})


def wrapped(method: str, architecture: str, *overrides: str, base: nn.Module | None = None) -> tuple[Method, nn.Module]:
    """The method, and the model it made of `base` (a copy, tiny(architecture) by default)."""
    built = build_method(settings_of(method, *overrides).method, context(architecture))
    model = copy.deepcopy(base) if base is not None else tiny(architecture)
    return built, built.wrap(configured(built, model, Texts() if architecture == "llama" else Sentences()))


def configured(method: Method, model: nn.Module, task: Task) -> nn.Module:
    """The model, on whose gradients the method has chosen its configuration if it does that."""
    if method.configures:
        examples = task.train.examples
        method.configure(model, [task.collate(examples[at : at + 5]) for at in range(0, 20, 5)], task.loss)
    return model


class Sentences(Task):
    """Twenty rows of token ids in two classes; implements what the loop asks of a task."""

    name, main_metric, num_labels, provenance, subset = "sentences", "accuracy", 2, {}, False

    def __init__(self, with_loss: bool = True) -> None:
        draw = torch.Generator().manual_seed(3)
        rows = []
        for number in range(20):
            ids = torch.randint(2, 40, (8,), generator=draw)
            rows.append({"input_ids": ids, "labels": torch.tensor(number % 2)})
        self.train = Split("train", rows, [8] * len(rows))
        self.evaluation = [Split("validation", rows[:8], [8] * 8)]
        self.with_loss = with_loss

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.with_loss:
            return model(**batch).loss
        logits = model(input_ids=batch["input_ids"]).logits
        return nn.functional.cross_entropy(logits.float(), batch["labels"])

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(**batch)
        return output.loss, output.logits.argmax(-1)

    def score(self, split: Split, predictions: Any) -> dict[str, float]:
        return {"accuracy": sum(p == i % 2 for i, p in enumerate(predictions)) / len(predictions)}


class Texts(Sentences):
    """The same rows for a language model, which is to foretell each of their ids."""

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = super().collate(examples)
        return {**batch, "labels": batch["input_ids"]}

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(**batch)
        return output.loss, output.logits[:, -1].argmax(-1)


def rows_for(model: nn.Module) -> Sentences:
    """What this model can be trained on."""
    is_llama = any(isinstance(module, LlamaForCausalLM) for module in model.modules())
    return Texts() if is_llama else Sentences()


def make_loop(
    method: Method,
    model: nn.Module,
    settings: RunSettings,
    total_steps: int = TOTAL_STEPS,
    task: Any = None,
    **arguments: Any,
) -> Loop:
    """The loop of a run on the CPU."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    torch.manual_seed(1)
    return Loop(
        model, task or rows_for(model), method, settings.training, Accelerator(cpu=True),
        total_steps=total_steps, data_seed=0, **arguments,
    )  # fmt: skip


def train(name: str, architecture: str, *overrides: str, total_steps: int = TOTAL_STEPS) -> tuple[Method, nn.Module]:
    """The method and its model after a training of `total_steps` steps."""
    method, model = wrapped(name, architecture, *overrides)
    outcome = make_loop(method, model, settings_of(name, *overrides), total_steps).run()
    assert outcome.status == "done"
    return method, model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    """Of the evaluation's rows, without dropout."""
    was_training = model.training
    model.eval()
    rows = Sentences().evaluation[0].examples
    out = model(input_ids=torch.stack([row["input_ids"] for row in rows])).logits
    model.train(was_training)
    return out


def load_saved(base: PreTrainedModel, folder: Path) -> nn.Module:
    """What docs/reference/methods.md says a user does with `adapter/`, by what lies in it."""
    if (folder / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(base, str(folder))
    if (folder / "config.json").is_file():
        return type(base).from_pretrained(folder)
    strange = base.load_state_dict(load_file(folder / "trained.safetensors"), strict=False).unexpected_keys
    assert not strange
    return base
