"""What has happened to an adapter in this process, so that a training that is not FlexLoRA's does not stay silent."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from dataclasses import dataclass, field

from .config import FlexLoraConfig

HOW_TO_ATTACH = (
    "call flexlora.attach(model, optimizer) before the training, give a Trainer "
    "callbacks=[flexlora.FlexLoraCallback()], or set init_b=0 for fixed ranks."
)


@dataclass
class History:
    """The training of one adapter. All layers of the adapter share the object.

    Attributes:
        step: the optimizer steps that the schedule has counted.
        uncounted: the optimizer steps that nothing counted.
        loaded: whether the weights come from a file.
        told: the kinds of warnings given so far. Each is given once for a training.
    """

    step: int = 0
    uncounted: int = 0
    loaded: bool = False
    told: set[str] = field(default_factory=set)

    def begin(self, step: int = 0, loaded: bool = False) -> None:
        """Begin a training at `step`, or mark the weights as loaded."""
        self.step, self.uncounted, self.loaded = step, 0, loaded
        self.told.clear()

    def tell(self, kind: str, message: str) -> None:
        """Warn, unless this training has had a warning of this kind."""
        if kind not in self.told:
            self.told.add(kind)
            warnings.warn(message, stacklevel=3)

    def count_uncounted(self, config: FlexLoraConfig) -> None:
        """Note an optimizer step that the schedule does not know, and warn at the second one.

        The first may become known: `update_and_allocate` is called after it.
        """
        self.uncounted += 1
        planned = config.event_steps()
        left = len(planned) - bisect_right(planned, self.step)
        if self.uncounted > 1 and left:
            self.tell(
                "uncounted",
                f"an optimizer trains this FlexLoRA adapter, but nothing counts its steps: {left} of "
                f"{len(planned)} rank events will not happen, and the ranks stay as they are. To change "
                f"them, {HOW_TO_ATTACH}",
            )

    def check_saved(self, config: FlexLoraConfig, trained: bool) -> None:
        """Warn if a trained adapter is saved before all its rank events have happened.

        Args:
            trained: whether a λ is not 0.
        """
        planned = config.event_steps()
        if not planned or config.inference_mode:
            return
        happened = bisect_right(planned, self.step)
        if self.step == 0 and (self.uncounted or (trained and not self.loaded)):
            self.tell(
                "uncounted",
                f"0 of {len(planned)} rank events happened to the saved adapter, because nothing counted its "
                f"optimizer steps: {HOW_TO_ATTACH}",
            )
        elif self.step > 0 and happened < len(planned):
            self.tell(
                "schedule",
                f"{happened} of {len(planned)} rank events happened to the saved adapter: it is at optimizer step "
                f"{self.step} of total_step={config.total_step}. This is right for a checkpoint. If the training is "
                "over, set total_step to its number of optimizer steps.",
            )
