"""Small models of real classes, adapted as a run adapts them, for tests of the memory estimate."""

import ctypes
from pathlib import Path

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


def measure_a_step(name, fields, file):
    """Write to `file` how many bytes of resident memory steps take at most. For a process of its own."""
    torch.set_num_threads(1)
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    malloc = ctypes.CDLL(None)  # it returns memory at once
    assert malloc.mallopt(M_MMAP_THRESHOLD, 65536)
    assert malloc.mallopt(M_TRIM_THRESHOLD, 0)

    def resident(key):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    model, method = adapted(CONFIGS[name], globals()[fields], "cpu")
    optimizer = method.optimizer(method.parameter_groups(model, 1e-3), 1e-3, 0.0)
    small, big = batch(1, 8), batch(32, 64)

    def step(inputs):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    step(small)  # what libraries allocate once
    before = resident("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        step(big)
    file.write_text(str(resident("VmHWM:") - before))
