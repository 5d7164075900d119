"""Check the claims of the paper's text about rank allocations (sections 5.4 and F) on runs, with the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flexlora.report.allocation import Allocation, Array, energy, entropy
from flexlora.report.bootstrap import spearman

PRESERVED = ("attention.output.dense", "intermediate.dense")
HELD, NOT_HELD, OPEN = "holds", "does not hold", "not to be checked"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's text, whether it holds in these runs, and the numbers behind the verdict."""

    text: str
    verdict: str
    numbers: list[str]


def check(seeds: Sequence[Allocation]) -> list[Claim]:
    """Check all claims on the runs of one method, variant and task. All `seeds` (at least one) have the same matrices.

    The paper's claims are for twelve layers. For another number of layers, the first third replaces L0–L3 and the last
    quarter replaces L9–L11.
    """
    layers = seeds[0].layers
    shallow, deep = range(max(1, layers // 3)), range(layers - max(1, layers // 4), layers)
    claims = [
        _change(seeds, f"the shallow layers {_named(shallow)} grow", shallow, 1),
        _change(seeds, f"the deep layers {_named(deep)} shrink", deep, -1),
        _preserved(seeds, range(shallow.stop, deep.start)),
        _corner(seeds),
    ]
    return [claim for claim in claims if claim is not None]


def energy_entropy_corner(energies: Sequence[float], entropies: Sequence[float]) -> tuple[float, float]:
    """Return the limits of low energy (the lowest third of these matrices) and of high entropy (the highest third)."""
    return float(np.quantile(energies, 1 / 3)), float(np.quantile(entropies, 2 / 3))


def _change(seeds: Sequence[Allocation], text: str, layers: range, sign: int) -> Claim:
    """Check whether the mean rank of the matrices in `layers` rises (`sign` 1) or falls (-1) from the initial ranks."""
    changes = [one.ranks[-1] - one.ranks[0] for one in seeds]  # (M)
    inside = _inside(seeds[0], layers)
    if not inside.any():
        return Claim(text, OPEN, ["no rank of a matrix in these layers was recorded"])
    there = sorted({place.layer for place in seeds[0].places} & {*layers})
    by_layer = {
        i: float(np.mean([change[_inside(seeds[0], range(i, i + 1))].mean() for change in changes])) for i in there
    }
    starts, ends = ([float(one.ranks[row][inside].mean()) for one in seeds] for row in (0, -1))
    numbers = [
        f"mean rank {np.mean(starts):.2f} → {np.mean(ends):.2f}",
        ", ".join(f"L{i} {change:+.2f}" for i, change in by_layer.items()),
    ]
    return Claim(text, _verdict([sign * change[inside].mean() > 0 for change in changes]), numbers)


def _preserved(seeds: Sequence[Allocation], layers: range) -> Claim | None:
    """Check whether the `PRESERVED` matrices end with higher ranks than the others of the middle layers.

    Return None if the middle layers lack either kind of matrix.
    """
    first = seeds[0]
    named = np.array([place.kind in PRESERVED for place in first.places]) & _inside(first, layers)
    others = ~named & _inside(first, layers)
    if not named.any() or not others.any():
        return None
    ends = [(one.ranks[-1][named].mean(), one.ranks[-1][others].mean()) for one in seeds]
    text = f"in the middle layers {_named(layers)} attention output and intermediate dense keep higher ranks"
    means = np.mean(ends, axis=0)
    numbers = [f"mean rank {means[0]:.2f}, of the other matrices there {means[1]:.2f}"]
    return Claim(text, _verdict([high > low for high, low in ends]), numbers)


def _corner(seeds: Sequence[Allocation]) -> Claim:
    """Check that no matrix of low energy and high entropy has a large rank.

    A rank is large if it is in the highest third and above the mean initial rank.
    """
    text = "no matrix of low energy and high entropy has a large rank"
    held, counts, related = [], [], []
    for one in seeds:
        spectra = [values for values in one.spectra or [] if np.isfinite(entropy(values))]
        if len(spectra) < 3:
            continue
        energies, entropies = [energy(values) for values in spectra], [entropy(values) for values in spectra]
        ranks = np.array([float(len(values)) for values in spectra])
        low, high = energy_entropy_corner(energies, entropies)
        corner = (np.array(energies) <= low) & (np.array(entropies) >= high)
        large = (ranks >= np.quantile(ranks, 2 / 3)) & (ranks > one.ranks[0].mean())
        counts.append((int((corner & large).sum()), int(corner.sum()), len(spectra)))
        related.append((_rank_correlation(ranks, np.array(energies)), _rank_correlation(ranks, np.array(entropies))))
        held.append(not (corner & large).any())
    if not counts:
        return Claim(text, OPEN, ["no adapter with singular values was saved, or too few matrices have an entropy"])
    large_there, there, of_all = np.sum(counts, axis=0)
    energy_related, entropy_related = np.mean(related, axis=0)
    numbers = [
        f"{large_there} of the {there} matrices there, of {of_all} in all (low, high, large: a third each)",
        f"Spearman's correlation of the rank with energy {energy_related:+.2f}, with entropy {entropy_related:+.2f}",
    ]
    return Claim(text, _verdict(held) if there else f"{OPEN}: no matrix is there", numbers)


def _inside(one: Allocation, layers: range) -> np.ndarray:
    return np.array([place.layer in layers for place in one.places])


def _named(layers: range) -> str:
    first, last = layers.start, layers.stop - 1
    return f"L{first}" if first == last else f"L{first}–L{last}"


def _verdict(held: Sequence[bool | np.bool_]) -> str:
    if all(held) or not any(held):
        word = HELD if held[0] else NOT_HELD
        return f"{word} ({len(held)} seeds)" if len(held) > 1 else word
    return f"{HELD} for {sum(map(bool, held))} of {len(held)} seeds"


def _rank_correlation(one: Array, other: Array) -> float:
    """Return Spearman's correlation. It is 0 if one side is constant."""
    return float(spearman(one[None], other[None])[0])


def as_text(groups: Sequence[tuple[str, Sequence[Claim]]]) -> str:
    """Return the text that lists the claims of each group of runs below its name."""
    lines = []
    for name, claims in groups:
        lines += [name, ""]
        for claim in claims:
            lines.append(f"  {claim.text}: {claim.verdict}")
            lines += [f"      {numbers}" for numbers in claim.numbers]
        lines.append("")
    return "\n".join(lines)
