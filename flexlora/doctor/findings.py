"""The findings of a check of a run, as the page of `flexlora-doctor` shows them."""

from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """The meaning of a finding for the run."""

    good = "✓"
    told = " "
    warning = "!"
    problem = "✗"


@dataclass(frozen=True)
class Finding:
    """One line of the page."""

    section: str
    name: str
    text: str
    mark: Mark = Mark.told


def size(count: float) -> str:
    """Format bytes, such as `21.3 GiB` or `703 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}" if count < 100 and unit in ("MiB", "GiB") else f"{count:.0f} {unit}"
