"""Estimate how long the paper's Table 1 takes on one GPU, from counted operations. Nothing is trained or timed.

    python scripts/estimate_table1.py

A training step of LoRA on DeBERTaV3-base (12 layers, exact shapes, 32 rows) is run on torch's meta device, which
computes shapes only. That counts the floating point operations, and the operations that the CPU starts on the GPU. A
step takes at least the time that the GPU needs to compute and at least the time that the CPU needs to start everything:

    time = max(FLOP / throughput, started operations * time to start one)

The ranges of throughput and of the time to start an operation are assumptions; the page
docs/how-to/make-the-papers-tables.md gives their sources."""

from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import flexlora
from flexlora.architectures import ENCODERS
from flexlora.models.random_init import random_init

ROWS = 32
# Mean tokens of a training row, padding to a multiple of 8 included; approximate, of BERT-like tokenizers.
TOKENS = {"cola": 16, "mnli": 48, "mrpc": 64, "qnli": 64, "qqp": 40, "rte": 88, "sst2": 16, "stsb": 40}
PADDING = 1.15  # batches by length: docs/explanation/measurements.md has 6 to 29 % of padding
STARTING = (5e-6, 15e-6)  # seconds of the CPU for one operation in eager PyTorch


class Machine(NamedTuple):
    """A GPU and the share of its peak that fine-tuning an encoder reaches."""

    name: str
    throughput: tuple[float, float]
    """Slow and fast, in FLOP a second."""


MACHINES = (
    Machine("A100, fp32", (8e12, 15e12)),
    Machine("A100, TF32 or bf16", (40e12, 90e12)),
    Machine("H200, TF32 or bf16", (80e12, 250e12)),
)


class Started(TorchDispatchMode):
    """Counts the operations that are started."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Views and reading of shapes start nothing on the GPU.
        if not func.is_view and "detach" not in str(func):
            self.count += 1
        return func(*args, **(kwargs or {}))


def step(length: int) -> tuple[float, int]:
    """Return the FLOP and the started operations of a training step of 32 rows of this length."""
    base = random_init("deberta_v3_base", device="meta")
    targets = ENCODERS["deberta-v2"].target_modules
    model = get_peft_model(base, LoraConfig(r=8, target_modules=targets, modules_to_save=["pooler", "classifier"]))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), foreach=True)
    rows = {
        "input_ids": torch.zeros(ROWS, length, dtype=torch.long, device="meta"),
        "attention_mask": torch.ones(ROWS, length, dtype=torch.long, device="meta"),
    }
    with FlopCounterMode(display=False) as flops, Started() as started:
        model(**rows).logits.float().sum().backward()
        optimizer.step()
    return float(flops.get_total_flops()), started.count


def main() -> None:
    """Print a line for each task and the hours of one method with one seed on each machine."""
    total_flop, total_started = 0.0, 0
    print("task    steps    TFLOP a step   started operations")
    for task, tokens in TOKENS.items():
        steps = flexlora.recipe(f"glue/{task}")["paper_steps"]
        flop, started = step(tokens)
        flop *= PADDING
        total_flop, total_started = total_flop + steps * flop, total_started + steps * started
        print(f"{task:6} {steps:7,}   {flop / 1e12:10.3f}   {started:12,}")
    print(f"in all: {total_flop / 1e18:.2f} EFLOP, {total_started / 1e9:.2f} billion operations")
    slowest, fastest = (total_started * seconds / 3600 for seconds in reversed(STARTING))
    print(f"starting the operations: {fastest:.1f} to {slowest:.1f} h, whatever the GPU")
    for machine in MACHINES:
        slow, fast = (total_flop / rate / 3600 for rate in machine.throughput)
        print(f"{machine.name}: computing {fast:.1f} to {slow:.1f} h; ", end="")
        print(f"one method with one seed {max(fast, fastest):.0f} to {max(slow, slowest):.0f} h")


if __name__ == "__main__":
    main()
