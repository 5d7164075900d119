"""A batch whose rows use different adapters: `model(**batch, adapter_names=["default", "other", "__base__"])`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .adapter_layer import AdapterLayer

BASE = "__base__"
"""PEFT's name for rows without an adapter."""


@contextmanager
def mixed_batch(tuner: BaseTuner, of_rows: list[str], num_beams: int | None = None) -> Iterator[None]:
    """Pass `adapter_names` to all adapter layers and `modules_to_save` of a model while the block runs.

    Args:
        tuner: the tuner on the model.
        of_rows: the adapter of each row.
        num_beams: the beams of a generation. Every row is repeated for them, except in an encoder.

    Raises:
        ValueError: the model is in training mode, or there is no adapter with one of the names.
    """
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    unknown = sorted(set(of_rows) - {BASE, *tuner.peft_config})
    if unknown:
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
    beams = num_beams if isinstance(num_beams, int) else 1
    repeated = [name for name in of_rows for _ in range(beams)]
    encoder = tuner.model.get_encoder() if beams > 1 and hasattr(tuner.model, "get_encoder") else None
    # A decoder may return itself as its encoder.
    once = set(encoder.modules()) if isinstance(encoder, nn.Module) and encoder is not tuner.model else set()
    with ExitStack() as hooks:
        for module in tuner.modules():
            if isinstance(module, AdapterLayer | AuxiliaryTrainingWrapper):
                names = of_rows if module in once else repeated
                handle = module.register_forward_pre_hook(partial(_with_names, names), with_kwargs=True)
                hooks.callback(handle.remove)
        yield


def _with_names(names: list[str], module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    return args, {**kwargs, "adapter_names": names}
