"""Notices optimizers that train an adapter whose schedule nothing drives, as in a Trainer without the callback.

A hook on all torch optimizers looks at adapters that are not attached yet. It is removed when there are none.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from .layer import FlexLoraLayer

# The first layer of every watched adapter: the adapters' names, and the steps that their schedules had counted.
_watched: WeakKeyDictionary[FlexLoraLayer, dict[str, int]] = WeakKeyDictionary()
# Optimizers that train none of the watched adapters.
_others: WeakSet[torch.optim.Optimizer] = WeakSet()
_handle: RemovableHandle | None = None
# The file whose `wrapper` calls the hooks around every optimizer's step.
_TORCH_FILE = register_optimizer_step_post_hook.__code__.co_filename


def watch(layer: FlexLoraLayer, adapter_name: str) -> None:
    """Warn when an optimizer takes two steps on this adapter and its schedule counts none of them."""
    global _handle
    _watched.setdefault(layer, {})[adapter_name] = layer.history[adapter_name].step
    _others.clear()
    if _handle is None:
        _handle = register_optimizer_step_post_hook(_after_step)


def forget(layer: FlexLoraLayer | None = None, adapter_name: str = "") -> None:
    """Stop watching an adapter, whose schedule is driven, and all that are gone."""
    global _handle
    if layer is not None and layer in _watched:
        _watched[layer].pop(adapter_name, None)
        if not _watched[layer]:
            del _watched[layer]
    if not _watched and _handle is not None:
        _handle.remove()
        _handle = None


def running_steps() -> list[torch.optim.Optimizer]:
    """List the optimizers whose steps are running, innermost first.

    An optimizer is in the list twice if its step calls that of its base class: torch then calls every hook twice.
    """
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_code.co_filename == _TORCH_FILE:
            found.append(frame.f_locals["args"][0])
        frame = frame.f_back
    return found


def _after_step(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
    if optimizer in _others or len(running_steps()) > 1:  # a part of the step of an optimizer that wraps this one
        return
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    strange = True
    for layer, name, counted in [(layer, *row) for layer, rows in _watched.items() for row in rows.items()]:
        history = layer.history.get(name)
        if history is None or history.step != counted or "uncounted" in history.told:
            forget(layer, name)
        elif id(layer.flexlora_lambda[name]) in trained:
            strange = False
            if layer.flexlora_lambda[name].requires_grad:
                history.count_uncounted(layer.settings[name])
    if strange:
        _others.add(optimizer)
    if not _watched:
        forget()
