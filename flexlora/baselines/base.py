"""What the tuners share that are no low-rank update of linears: branches, prompts, scales beside or inside a module."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import NoMatchingPeftModuleError
from torch import nn

from flexlora.tuner.adapter_layer import AdapterLayer
from flexlora.tuner.base import Tuner
from flexlora.tuner.base_config import TunerConfig, setting
from flexlora.tuner.checks import require

__all__ = ["BaselineConfig", "BaselineLayer", "BaselineModel", "setting"]


@dataclass
class BaselineConfig(TunerConfig):
    """Fields of a method that knows itself where it belongs.

    Raises:
        ValueError: a value is out of range.
    """

    default_targets: ClassVar[str]
    """Where it sits unless `target_modules` says otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_modules is None:
            self.target_modules = self.default_targets

    def require_all_blocks(self) -> None:
        """Refuse a choice of modules, where prompts go through all blocks."""
        name = "exclude_modules" if self.exclude_modules else "target_modules"
        is_default = self.target_modules == self.default_targets and not self.exclude_modules
        require(self, name, is_default, "left out: prompts go through all blocks")


class BaselineLayer(AdapterLayer):
    """Merging by new parameters of the base; those that were there are kept, so that unmerging gives them back."""

    def fold(self, adapter_name: str, safe_merge: bool) -> None:
        """Put the adapter into the base's parameters.

        Raises:
            ValueError: under `safe_merge`, the result is not finite; or the base is quantised. The base stays as it is.
        """
        base = self.get_base_layer()
        with torch.no_grad():
            merged = self.merged_parameters(adapter_name)
            if not all(getattr(base, name).is_floating_point() for name in merged):
                raise ValueError(
                    f"a quantised {type(base).__name__} takes no merged weights: load the backbone unquantised."
                )
            if safe_merge:
                self.refuse_not_finite(adapter_name, merged.values())
            self.before_merge.append({name: getattr(base, name).detach().clone() for name in merged})
            for name, value in merged.items():
                getattr(base, name).copy_(value)  # rounded once, to the base's dtype

    def merged_parameters(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """The base's parameters with this adapter in them, by name."""
        raise NotImplementedError

    @property
    def before_merge(self) -> list[dict[str, torch.Tensor]]:
        """What merging replaced, oldest first: unmerging gives the base back bit for bit."""
        return self.__dict__.setdefault("_before_merge", [])

    @torch.no_grad()
    def unfold(self, adapter_name: str) -> None:
        """Give the base the parameters back that it had before the last merge."""
        for name, value in self.before_merge.pop().items():
            getattr(self.get_base_layer(), name).copy_(value)


class BaselineModel(Tuner):
    """A tuner with places of its own."""

    made_for: ClassVar[str]
    """Which modules of which backbones it adapts, for the line that says a model has none of them."""
    not_mergeable: ClassVar[str | None] = None
    """Why the adapter cannot be folded into the base; None where it can."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # A copy: what is read off this model is not for the next one that the same configuration is given to.
        config = self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        self.look_at(model, config)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            if config.target_modules != config.default_targets:
                raise
            raise NoMatchingPeftModuleError(
                f"{self.title} adapts {self.made_for}; {type(model).__name__} has none of them under the names known "
                "here. Name them in target_modules."
            ) from error

    def look_at(self, model: nn.Module, config: Any) -> None:
        """Look at the model before anything of it is replaced.

        Raises:
            ValueError: the method cannot work on it.
        """

    def _check_merge_allowed(self) -> None:
        if self.not_mergeable is not None:
            raise ValueError(f"{self.title} cannot be merged into the backbone: {self.not_mergeable}.")
        super()._check_merge_allowed()
