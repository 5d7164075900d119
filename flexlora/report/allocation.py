"""Read how a run spread its ranks over the matrices: `ranks.jsonl` has each event, `adapter/` the final state."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flexlora.reading import regular
from flexlora.results.collect import Run
from flexlora.results.files import read_json_lines

Array = npt.NDArray[np.float64]
# The endings of the names of singular values in a saved adapter: FlexLoRA's and AdaLoRA's.
SPECTRA = (".flexlora_lambda", ".lora_E")
PEFT_PREFIX = "base_model.model."
UNDEFINED = 1e300
"""A larger score means infinity, which JSON lacks: the matrix has rank 1 or all its λ are 0, and it grows first."""


class Place(NamedTuple):
    """The place of a matrix in the model: its layer, counted from 0, and its name within the layer."""

    layer: int
    kind: str


def place_of(module: str) -> Place | None:
    """Return a module's place. The first number in its name is the layer. Return None if the name has no number."""
    match = re.search(r"(?:^|\.)(\d+)\.(.+)$", module)
    return None if match is None else Place(int(match[1]), match[2])


def short_names(kinds: Sequence[str]) -> dict[str, str]:
    """Map each kind to the shortest end of its name that no other kind ends with. If there is none, keep the name."""

    def short(kind: str) -> str:
        parts = kind.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in kinds) == 1), kind)

    return {kind: short(kind) for kind in kinds}


@dataclass(frozen=True)
class Allocation:
    """The ranks of one run: M matrices in layers, E rank events.

    Attributes:
        run: the run.
        places: the places of the M matrices.
        steps: the optimizer steps of the E events.
        ranks: the ranks, (E + 1, M). The first row has the ranks before the first event.
        scores: the importance before each event, (E, M). An entry is NaN if it was undefined or not recorded.
        spectra: |λ| of every matrix at the end, largest first, or None if no adapter with such values was saved.
    """

    run: Run
    places: list[Place]
    steps: list[int]
    ranks: Array
    scores: Array
    spectra: list[Array] | None

    @property
    def layers(self) -> int:
        return 1 + max(place.layer for place in self.places)

    @property
    def kinds(self) -> list[str]:
        """The kinds of matrices, in the order of the model."""
        return list(dict.fromkeys(place.kind for place in self.places))

    def grid(self, values: Array) -> Array:
        """Rearrange values (..., M) into (..., kinds, layers). An entry is NaN if a layer has no such matrix."""
        kinds = self.kinds
        grid = np.full((*values.shape[:-1], len(kinds), self.layers), np.nan)
        for i, place in enumerate(self.places):
            grid[..., kinds.index(place.kind), place.layer] = values[..., i]
        return grid


def read_allocation(run: Run) -> Allocation | None:
    """Return the ranks that a run recorded, or None if it had no rank events or no matrix is in a layer.

    Raises:
        ValueError: a file is broken. The message says which file and why.
    """
    events = _read_events(run.path / "ranks.jsonl")
    try:
        found = {name: place_of(name) for name in events[0]["ranks"]} if events else {}
        placed = {name: place for name, place in found.items() if place is not None}
        if not placed:
            return None
        after = [[float(event["ranks"][name]) for name in placed] for event in events]
        scores = [[_score((event.get("scores") or {}).get(name)) for name in placed] for event in events]
        before = _before(events[0], placed, run)
        steps = [int(event["step"]) for event in events]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{run.path / 'ranks.jsonl'} does not hold rank events: see {error}") from error
    spectra = _read_spectra(run.path / "adapter")
    whole = [spectra[name] for name in placed] if placed.keys() <= spectra.keys() else None
    return Allocation(run, [*placed.values()], steps, np.array([before, *after]), np.array(scores), whole)


def _read_events(file: Path) -> list[dict[str, Any]]:
    try:
        return list(read_json_lines(file))
    except (OSError, UnicodeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _before(event: dict[str, Any], names: Sequence[str] | dict[str, Place], run: Run) -> list[float]:
    """Return the ranks before the first event.

    If ranks fall to an average `target_r` (AdaLoRA, dynamic-rank DoRA), one event may remove several directions of a
    matrix. All matrices then begin at `init_r`, at `r`, or at the value that a parameter budget chose for it.
    """
    chosen = (run.record.parameter_budget or {}).get("changed", {})
    settings = {**run.record.config.get("method", {}), **chosen}
    start = settings.get("init_r", settings.get("r") if "target_r" in settings else None)
    if start is not None:
        return [float(start)] * len(names)
    return [float(event["ranks"][name] + (name in event["pruned"]) - (name in event["grown"])) for name in names]


def _score(value: float | None) -> float:
    return np.nan if value is None or abs(value) > UNDEFINED else float(value)


def _read_spectra(adapter: Path) -> dict[str, Array]:
    """Return |λ| of each module, largest first. AdaLoRA's masked directions have λ = 0 and are left out."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Array] = {}
    file = adapter / "adapter_model.safetensors"
    try:
        with safe_open(regular(file), framework="numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no mapping
                ending = next((ending for ending in SPECTRA if key.endswith(ending)), None)
                if ending is not None:
                    values = np.abs(tensors.get_tensor(key).astype(np.float64)).ravel()
                    kept = values if ending == SPECTRA[0] else values[values > 0]
                    found[key.removeprefix(PEFT_PREFIX).removesuffix(ending)] = np.sort(kept)[::-1]
    except FileNotFoundError:
        return {}
    except (SafetensorError, OSError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{file} is not an adapter that numpy can read: {reason}") from error
    return found


def energy(spectrum: Array) -> float:
    """Return Σ λ²."""
    return float((spectrum**2).sum())


def entropy(spectrum: Array) -> float:
    """Return I = -(1/log r) Σ s log(s + ε) with s = λ² / Σ λ² (Eq. 3). I is NaN if the rank is 1 or all λ are 0."""
    square = spectrum**2
    if len(square) < 2 or not square.sum() > 0:
        return float("nan")
    share = square / square.sum()
    return float(np.clip(-(share * np.log(share + 1e-8)).sum() / np.log(len(share)), 0.0, 1.0))
