"""Measure two ways to add the orthogonality gradient, looped and batched, with the shapes of the paper's backbones.

    python scripts/bench_penalty.py                 # why flexlora/tuner/orthogonality.py has LARGE_ON_CPU
    python scripts/bench_penalty.py --device cuda

The two ways run in turn on one P (or Q) of each layer. A ratio below 1 means that the batched way is faster.
"""

import argparse
import statistics
import time

import torch

from flexlora.tuner.orthogonality import LARGE_ON_CPU, add_batched, add_looped

# The width of one side of a matrix, and the number of matrices of that shape in a model.
SIDES = {"MiniLM 384": (384, 6), "DeBERTa 768": (768, 48), "DeBERTa 3072": (3072, 12), "ViT qkv 2304": (2304, 12),
         "LLaMA k, v 1024": (1024, 64), "LLaMA 4096": (4096, 64), "LLaMA 14336": (14336, 32)}  # fmt: skip
WAYS = {"looped": add_looped, "batched": add_batched}


def seconds(width: int, count: int, capacity: int, device: str, rounds: int) -> dict[str, float]:
    """Return the median seconds of each way for `count` matrices of (width × capacity)."""
    members = []
    for _ in range(count):
        tensor = torch.randn(width, capacity, device=device).mul_(0.02).requires_grad_()
        tensor.grad = torch.zeros_like(tensor)
        members.append((tensor, torch.ones(capacity, dtype=torch.bool, device=device)))
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    with torch.no_grad():
        for _ in range(rounds + 2):
            for name, way in WAYS.items():
                start = time.perf_counter()
                way(True, members, 1e-3, 1, 1.0)
                if device == "cuda":
                    torch.cuda.synchronize()
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[2:]) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(f"{options.device}, {torch.get_num_threads()} threads; large on a CPU: {LARGE_ON_CPU:,} entries and more\n")
    print("| matrices | capacity | entries | looped (ms) | batched (ms) | batched / looped |")
    print("|---|---|---|---|---|---|")
    for name, (width, count) in SIDES.items():
        for capacity in (8, 24, 64):
            taken = seconds(width, count, capacity, options.device, options.rounds)
            looped, batched = 1000 * taken["looped"], 1000 * taken["batched"]
            size = f"{width * capacity:,}"
            print(f"| {count} x {name} | {capacity} | {size} | {looped:.2f} | {batched:.2f} | {batched / looped:.2f} |")


if __name__ == "__main__":
    main()
