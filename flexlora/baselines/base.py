"""The common parts of tuners other than low-rank updates: branches, prompts and scales of modules."""

from __future__ import annotations

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
    """The fields of a method with its own default targets.

    Raises:
        ValueError: a value is out of range.
    """

    default_targets: ClassVar[str]
    """The default of `target_modules`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_modules is None:
            self.target_modules = self.default_targets

    def require_all_blocks(self) -> None:
        """Check that no modules are chosen, because prompts go through all blocks."""
        name = "exclude_modules" if self.exclude_modules else "target_modules"
        is_default = self.target_modules == self.default_targets and not self.exclude_modules
        require(self, name, is_default, "left out: prompts go through all blocks")


class BaselineLayer(AdapterLayer):
    """A layer that merges by replacing parameters of the base. It keeps the old ones, so unmerging restores them."""

    @property
    def in_features(self) -> int:
        """The number of inputs of the base, if it is a linear."""
        found: int = self.get_base_layer().in_features  # type: ignore[assignment]
        return found

    @property
    def out_features(self) -> int:
        """The number of outputs of the base, if it is a linear."""
        found: int = self.get_base_layer().out_features  # type: ignore[assignment]
        return found

    def fold(self, adapter_name: str, safe_merge: bool) -> None:
        """Merge the adapter into the base's parameters.

        Raises:
            ValueError: `safe_merge` is set and the result is not finite, or the base is quantised. The base is then
                unchanged.
        """
        base = self.get_base_layer()
        with torch.no_grad():
            merged = self.merged_parameters(adapter_name)
            if not all(getattr(base, name).is_floating_point() for name in merged):
                raise ValueError(
                    f"a quantised {type(base).__name__} cannot take merged weights: load the backbone unquantised."
                )
            if safe_merge:
                self.refuse_not_finite(adapter_name, merged.values())
            self.before_merge.append({name: getattr(base, name).detach().clone() for name in merged})
            for name, value in merged.items():
                getattr(base, name).copy_(value)  # rounded once, to the base's dtype

    def merged_parameters(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """Compute the base's parameters with this adapter merged, by name."""
        raise NotImplementedError

    @property
    def before_merge(self) -> list[dict[str, torch.Tensor]]:
        """The parameters that merging replaced, oldest first. Unmerging restores the base exactly."""
        return self.__dict__.setdefault("_before_merge", [])

    @torch.no_grad()
    def unfold(self, adapter_name: str) -> None:
        """Restore the base's parameters from before the last merge."""
        for name, value in self.before_merge.pop().items():
            getattr(self.get_base_layer(), name).copy_(value)


class BaselineModel(Tuner):
    """A tuner with its own default targets."""

    made_for: ClassVar[str]
    """The modules that it adapts, for the message about a model without them."""
    not_mergeable: ClassVar[str | None] = None
    """The reason why the adapter cannot be merged into the base; None if it can."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            if config.target_modules != config.default_targets:
                raise
            raise NoMatchingPeftModuleError(
                f"{self.title} adapts {self.made_for}, but {type(model).__name__} has none under the known names. "
                "Name them in target_modules."
            ) from error

    def _check_merge_allowed(self) -> None:
        if self.not_mergeable is not None:
            raise ValueError(f"{self.title} cannot be merged into the backbone: {self.not_mergeable}.")
        super()._check_merge_allowed()
