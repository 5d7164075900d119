"""A large base on several processes: its frozen parameters are sharded (FSDP2), and the adapter is replicated.

Rank events read and write single directions of P, λ and Q, of their gradients and of the optimizer's moments. These
stay plain tensors, identical on all processes, as under DDP. An adapter has about 1% of the parameters of an 8B base,
so sharding it would save little.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def shard_base(model: nn.Module, **options: Any) -> None:
    """Shard the frozen parameters of `model` over all processes, in place, block by block.

    Call it after the adapter is added to `model` and before the optimizer is made. `model` may be on the CPU: at most
    one complete block at a time is on the device. Trainable parameters are moved to the device, made identical on all
    processes and not sharded. Average their gradients with `average_gradients` before every optimizer step. All
    processes must run the same number of forward passes. The adapter cannot be merged into a sharded base. It is saved
    as usual.

    Args:
        model: a PeftModel, or a model with an adapter injected. The elements of its `ModuleList`s are its blocks.
        options: options of `torch.distributed.fsdp.fully_shard`, such as `reshard_after_forward=False` or a `mesh`.

    Raises:
        RuntimeError: there is no process group.
        ValueError: the model has no frozen floating-point parameters.
    """
    from torch.distributed.fsdp import fully_shard

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "shard_base needs a process group: call torch.distributed.init_process_group, or use Accelerate."
        )
    # Packed 4-bit weights are integers, which cannot be sharded without their quantisation state.
    whole = {p for p in model.parameters() if p.requires_grad or not p.is_floating_point()}
    if all(p in whole for p in model.parameters()):
        raise ValueError("the model has no frozen parameters to shard.")
    device = _device()
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        dist.broadcast(parameter.data, src=0)
    for block in _blocks(model):
        if any(p not in whole for p in block.parameters()):
            fully_shard(block, ignored_params=whole, **options)
    fully_shard(model, ignored_params=whole, **options)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of `parameters` by their mean over all processes, in one exchange for each dtype.

    Every process must pass the same parameters in the same order. A missing gradient counts as zero.
    """
    with torch.no_grad():
        groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            groups.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter.grad)
        for gradients in groups.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            parts = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The elements of the outermost `ModuleList`s: a transformer's layers."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else _blocks(child)
    return found


def _device() -> torch.device:
    """The device of the process group's tensors."""
    if dist.get_backend() == "gloo" or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator().type, torch.accelerator.current_device_index())  # type: ignore[union-attr]
