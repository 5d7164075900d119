"""Small models of real classes, adapted as a run adapts them, for tests of the memory estimate."""

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, DebertaV2Config

from flexlora.architectures import ENCODERS
from flexlora.methods import RunContext, build_method
from flexlora.models.random_init import DEBERTA_V3_BASE
from flexlora.settings import MethodSettings, Schedule

SHAPE = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024}

CONFIGS = {
    "bert": BertConfig(**SHAPE, vocab_size=500),
    "deberta": DebertaV2Config(**(DEBERTA_V3_BASE | SHAPE | {"pooler_hidden_size": 256, "vocab_size": 500})),
}

LORA = MethodSettings("lora", "peft", {"peft_type": "LORA", "r": 8, "lora_alpha": 16})
FLEXLORA = MethodSettings("flexlora", "peft", {"peft_type": "FLEXLORA", "tinit": 10, "tfinal": 10, "deltaT": 5})
LINEAR = MethodSettings("linear", "mask", {"trainable": []})
FULL = MethodSettings("full", "mask", {"trainable": [".*"]})


def adapted(config, fields, device):
    """A model as the doctor has it (on meta) or as a run has it, and its method."""
    architecture = ENCODERS[config.model_type]
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(config)
    context = RunContext(
        total_steps=100,
        schedule=Schedule.absolute,
        paper_steps=None,
        seed=0,
        target_modules=architecture.target_modules,
        head_modules=list(architecture.head_modules),
        task_type="SEQ_CLS",
    )
    method = build_method(fields, context)
    return method.wrap(model), method


def batch(rows, tokens):
    ids = torch.ones(rows, tokens, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": ids, "labels": torch.zeros(rows, dtype=torch.long)}
