"""The environment of a run: versions, hardware and the commit of the code."""

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
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_state() -> Mapping[str, Any]:
    """Return the commit of this checkout and whether files differ from it; both None outside a checkout.

    The answer is from this process's first call: the process continues with the code that it has imported.
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
    """Return the hardware on which the time of a step depends; `device` is the name of the device in torch."""
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
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def session(first_step: int, started: str | None, hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about this process on which the results of a training depend, for `sessions` of the record."""
    return {
        "first_step": first_step,
        "started": started,
        "versions": dict(versions()),
        "git": dict(git_state()),
        "hardware": dict(hardware),
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two sessions of one run, such as `torch 2.8.0 → 2.9.0`."""
    pairs = []
    for part in ("versions", "git", "hardware"):
        old, new = before[part], now[part]
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        prefix = "commit " if part == "git" else ""
        pairs += [f"{prefix}{name} {old.get(name)} → {new.get(name)}" for name in names]
    return pairs


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def reset_peak_memory() -> None:
    """Reset the peaks of memory use: several runs of a sweep share one process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not permitted: `peak_memory` then reports the whole process's peak, or None


def peak_memory(device: str) -> dict[str, int | None]:
    """Return the peaks since the reset, in bytes: memory of the accelerator and resident memory of the process."""
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
