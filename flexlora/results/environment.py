"""What a run ran on: versions, hardware, the state of the code."""

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("flexlora", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "hydra-core", "numpy")


@cache
def versions() -> Mapping[str, str]:
    """Python's version and that of every package a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_state() -> Mapping[str, Any]:
    """The commit of the checkout this package lies in and whether it was changed; both null outside of one.

    As it was when this process first asked: the process goes on with the code that it has imported.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"sha": None, "dirty": None}
    try:
        sha = _git(root, "rev-parse", "HEAD")
        return {"sha": sha, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"sha": None, "dirty": None}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def hardware(device: str, processes: int) -> dict[str, Any]:
    """The machine as far as a step's time depends on it; `device` is torch's name of the device used."""
    import torch

    on_gpu = device.startswith("cuda")
    return {
        "device": device,
        "accelerator": torch.cuda.get_device_name(torch.device(device)) if on_gpu else None,
        "accelerator_memory_bytes": torch.cuda.get_device_properties(torch.device(device)).total_memory
        if on_gpu
        else None,
        "processes": processes,
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def reset_peak_memory() -> None:
    """Begin the peaks anew, as several runs of a sweep share one process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: `peak_memory` then reports the process's lifetime or null


def peak_memory(device: str) -> dict[str, int | None]:
    """Bytes: the most the accelerator held since the reset, and the most resident memory of the process."""
    import torch

    on_device = torch.cuda.max_memory_allocated(torch.device(device)) if device.startswith("cuda") else None
    return {"device_bytes": on_device, "process_bytes": _resident_peak()}


def _resident_peak() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return int(line.split()[1]) * 1024 if line else None
