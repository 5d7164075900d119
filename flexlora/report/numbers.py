"""Print numbers: parameters with three digits, costs with four digits, differences with their sign."""

import re
from collections.abc import Sequence

UNITS = {"G": 1e9, "M": 1e6, "k": 1e3}
PRINTED_UNITS = {**UNITS, "B": 1e9, "": 1.0}


def cost_digits(value: float) -> int:
    """Return the number of decimals for seconds, bytes or operations, so that about four digits are printed."""
    return next((digits for digits, least in enumerate((10_000, 100, 10)) if abs(value) >= least), 3)


def signed(value: float) -> str:
    """Return a difference in points as text, with its sign."""
    return f"{round(value, 1) + 0.0:+.1f}"


def count(number: float) -> str:
    """Return a number with three digits, as papers print parameters: 1.33M, 332k, 57."""
    number = float(f"{number:.3g}")
    for unit, size in UNITS.items():
        if number >= size:
            digits = max(0, 3 - len(str(int(number / size))))
            return f"{number / size:.{digits}f}{unit}"
    return f"{number:.0f}"


def printed_count(text: str) -> float | None:
    """Return the number that a paper prints as 1.3M or 8B, or None if it prints none."""
    match = re.fullmatch(rf"([\d.]+)([{''.join(PRINTED_UNITS)}]?)", text)
    return float(round(float(match[1]) * PRINTED_UNITS[match[2]])) if match else None


def short(value: float) -> float:
    """Round a number to six digits, which keeps a page small."""
    return float(f"{value:.6g}")


LEAST_POINTS = 5.0


def percent_axis(values: Sequence[float], spreads: Sequence[float] = ()) -> tuple[float, float] | None:
    """Return the ends of an axis for percents ± spreads, or None without values.

    The axis spans at least `LEAST_POINTS`, so that a small difference does not fill it. It begins at 0 at least and
    ends at 100 at most, unless a value itself is outside.
    """
    if not values:
        return None
    around = [*zip(values, spreads or [0.0] * len(values), strict=True)]
    low = min(value - spread for value, spread in around)
    high = max(value + spread for value, spread in around)
    pad = max(0.08 * (high - low), (LEAST_POINTS - (high - low)) / 2)
    top = high + pad if max(values) > 100 else min(100.0, high + pad)
    bottom = min(low - pad, top - LEAST_POINTS)
    return (bottom if min(values) < 0 else max(0.0, bottom)), top
