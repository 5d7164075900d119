"""Measure the cost of a FlexLoRA training step as a ratio to PEFT's LoRA, in turn in one process.

    python scripts/bench_step.py                                   # DeBERTaV3-base's exact shapes, random weights
    python scripts/bench_step.py --model vit_b16 --batch 32
    python scripts/bench_step.py --device cuda --dtype bfloat16 --length 256
    python scripts/bench_step.py --model llama3_8b --layers 4 --batch 1

Each round runs one step of every method in turn. Ratios are taken round by round and their median is printed, so that
they stay correct if the machine's speed changes slowly. On a GPU, the peak memory is torch's own peak. On a CPU, it is
the largest resident size of a process that runs only one method, minus that of a process that only builds the base
model. A step has five parts: forward, backward, "penalty" (FlexLoRA's orthogonality gradient; AdaLoRA's is a part of
its forward and backward), the optimizer (AdamW, foreach) and "after" (AdaLoRA's importance and mask, in every step).
FlexLoRA's rank event happens in few steps and is reported separately."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, get_peft_model
from torch import nn

import flexlora
from flexlora.models.random_init import random_init

PARTS = ("forward", "backward", "penalty", "optimizer", "after")
TARGETS = {
    "deberta_v3_base": (
        r".*encoder\.layer\.\d+\."
        r"(attention\.(self\.(query|key|value)_proj|output\.dense)|(intermediate|output)\.dense)"
    ),
    "vit_b16": r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))",
    "llama3_8b": r".*layers\.\d+\.(self_attn\.(q|k|v)_proj|mlp\.(up|down)_proj)",
}
# The schedule of the paper's CoLA run (Table 8). FlexLoRA then has the capacity of a real run: 24 at rank 8.
SCHEDULE = {"total_step": 5360, "tinit": 1000, "tfinal": 1000, "deltaT": 200}


def configurations(model: str, rank: int) -> dict[str, PeftConfig]:
    """Return the configs of the three methods at equal rank."""
    target = TARGETS[model]
    return {
        "lora": LoraConfig(r=rank, lora_alpha=16, target_modules=target),
        "adalora": AdaLoraConfig(
            init_r=rank, target_r=rank, lora_alpha=16, target_modules=target, orth_reg_weight=0.1, **SCHEDULE
        ),
        "flexlora": flexlora.FlexLoraConfig(r=rank, lora_alpha=16, target_modules=target, **SCHEDULE),
    }


class Bench:
    """One method on one model. `step()` runs a training step and returns the seconds of each part."""

    def __init__(self, name: str, config: PeftConfig | None, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.name, self.device = name, torch.device(options.device)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=options.autocast)
        base = random_init(options.model, layers=options.layers).to(self.device, getattr(torch, options.dtype))
        self.batch = make_batch(options, self.device)
        self.vision = options.model == "vit_b16"
        self.model: nn.Module = base
        if config is None:
            return
        self.model = get_peft_model(base, config).train()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)
        self.allocator = self.model.base_model.rank_allocator if name == "flexlora" else None
        self.steps = 0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def loss(self) -> torch.Tensor:
        with self.autocast:
            if self.vision:
                images, labels = self.batch["x"], self.batch["labels"]
                return nn.functional.cross_entropy(self.model(images).float(), labels)
            return self.model(**self.batch).loss

    def step(self) -> dict[str, float]:
        self.steps += 1
        marks = [self.now()]
        loss = self.loss()
        marks.append(self.now())
        loss.backward()
        marks.append(self.now())
        if self.allocator is not None:
            self.allocator.regularise()
        marks.append(self.now())
        self.optimizer.step()
        marks.append(self.now())
        if self.name == "adalora":
            self.model.base_model.update_and_allocate(self.steps)
        self.optimizer.zero_grad()
        marks.append(self.now())
        return dict(zip(PARTS, (b - a for a, b in pairwise(marks)), strict=True))

    def event(self) -> float:
        """Return the seconds of one rank event that moves b₀ = 4 matrices each way. Random λ give it scores."""
        assert self.allocator is not None
        with torch.no_grad():
            for layer in self.allocator.layers:
                layer.flexlora_lambda["default"].normal_()
        start = self.now()
        event = self.allocator.hold_event(SCHEDULE["tinit"] + SCHEDULE["deltaT"], self.optimizer)
        seconds = self.now() - start
        assert len(event.pruned) == len(event.grown) == min(4, len(event.ranks) // 2), event
        return seconds


def make_batch(options: argparse.Namespace, device: torch.device) -> dict[str, torch.Tensor]:
    """Make random tokens (batch × length) or images (batch × 3 × 224 × 224) with labels."""
    generator = torch.Generator().manual_seed(0)
    if options.model == "vit_b16":
        images = torch.randn(options.batch, 3, 224, 224, generator=generator)
        batch = {"x": images.to(getattr(torch, options.dtype)), "labels": torch.zeros(options.batch, dtype=torch.long)}
    else:
        tokens = torch.randint(1000, 32000, (options.batch, options.length), generator=generator)
        labels = tokens if options.model == "llama3_8b" else torch.zeros(options.batch, dtype=torch.long)
        batch = {"input_ids": tokens, "labels": labels, "attention_mask": torch.ones_like(tokens)}
    return {key: value.to(device) for key, value in batch.items()}


def measure_time(options: argparse.Namespace) -> None:
    benches = {
        name: Bench(name, config, options) for name, config in configurations(options.model, options.rank).items()
    }
    capacity = benches["flexlora"].allocator.limits[0]
    print(f"rank {options.rank} in all; FlexLoRA's capacity {capacity}; {options.rounds} rounds after one warm-up\n")
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in benches}
    for count in range(options.rounds + 1):
        for name, bench in benches.items():
            seconds = bench.step()
            if count:
                rounds[name].append(seconds)
    event = statistics.median(benches["flexlora"].event() for _ in range(5))
    total = {name: [sum(parts.values()) for parts in measured] for name, measured in rounds.items()}
    rows = []
    for name, measured in rounds.items():
        ratio = statistics.median(mine / lora for mine, lora in zip(total[name], total["lora"], strict=True))
        parts = [f"{1000 * statistics.median(parts[part] for parts in measured):.1f}" for part in PARTS]
        rows.append([name, f"{1000 * statistics.median(total[name]):.0f}", f"{ratio:.3f}", *parts])
    print_table(["method", "step (ms)", "ratio to lora", *PARTS], rows)
    step = statistics.median(total["flexlora"])
    print(f"\nFlexLoRA's rank event: {1000 * event:.1f} ms, {event / step:.3f} of its step")


def measure_memory(options: argparse.Namespace) -> None:
    """Print the peak memory of each method. Each is measured in its own process."""
    names = ["base", *configurations(options.model, options.rank)]
    peaks = {}
    for name in names:
        arguments = [sys.executable, __file__, *options.raw, "--only-memory-of", name]
        peaks[name] = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    rows = []
    for name in names[1:]:
        above, lora = peaks[name] - peaks["base"], peaks["lora"] - peaks["base"]
        ratio = f"{above / lora:.3f}" if lora > 0 else "n/a"  # building a model may need more memory than a short run
        rows.append([name, f"{above / 2**20:.0f}", ratio, f"{peaks[name] / peaks['lora']:.3f}"])
    print_table(["method", "peak above the base model (MiB)", "ratio to lora", "whole process, ratio"], rows)


def report_memory(options: argparse.Namespace) -> None:
    """Run three steps of one method (or only build the base model), and print the peak memory in bytes."""
    name = options.only_memory_of
    bench = Bench(name, configurations(options.model, options.rank).get(name), options)
    for _ in range(0 if name == "base" else 3):
        bench.step()
    if options.device == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(TARGETS), default="deberta_v3_base")
    parser.add_argument("--layers", type=int, default=None, help="fewer layers than the real model")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens in a sequence")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="float32", help="dtype of the base model")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast over the base's dtype")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--only-memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.raw = sys.argv[1:]
    if options.only_memory_of:
        report_memory(options)
        return
    shape = f"{options.batch} images" if options.model == "vit_b16" else f"{options.batch} x {options.length} tokens"
    threads = f", {torch.get_num_threads()} threads" if options.device == "cpu" else ""
    precision = f"{options.dtype}{' + bfloat16 autocast' if options.autocast else ''}"
    print(f"{options.model}, {shape}, {options.device}{threads}, {precision}")
    measure_time(options)
    if not options.no_memory:
        print()
        measure_memory(options)


if __name__ == "__main__":
    main()
