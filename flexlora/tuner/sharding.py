"""A large base over several processes: its frozen parameters sharded (FSDP2), the adapter whole on each of them.

Rank events read and write single directions of P, λ and Q, of their gradients and of the optimizer's moments. Those
stay plain tensors here, alike on all processes, as under DDP. An adapter is a hundredth of an 8B base: sharding it too
would save little.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def shard_base(model: nn.Module, **options: Any) -> None:
    """Shard the frozen parameters of `model` over all processes, in place, block by block.

    Call it once the adapter is in `model`, and before the optimizer is made. `model` may lie on the CPU: no more than
    one block at a time is whole on the device. What trains is moved to the device, made alike on all processes, and
    stays whole; average its gradients with `average_gradients` before every optimizer step. All processes must make
    the same number of forward passes. Merging into a sharded base is not possible; save the adapter as ever.

    Args:
        model: a PeftModel, or a model with an adapter injected. The elements of its `ModuleList`s are its blocks.
        options: of `torch.distributed.fsdp.fully_shard`, such as `reshard_after_forward=False` or a `mesh`.

    Raises:
        RuntimeError: there is no process group.
        ValueError: the model has no frozen parameters of floating point.
    """
    from torch.distributed.fsdp import fully_shard

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("shard_base needs a process group: torch.distributed.init_process_group, or Accelerate's.")
    # Packed 4-bit weights are whole numbers, which cannot be sharded without the state that belongs to them.
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
    """Replace the gradients of `parameters` by their mean over all processes, in one exchange a dtype.

    Every process must give the same parameters in the same order; one without a gradient counts as zero.
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
    """The device that the process group's tensors live on."""
    if dist.get_backend() == "gloo" or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator().type, torch.accelerator.current_device_index())  # type: ignore[union-attr]
