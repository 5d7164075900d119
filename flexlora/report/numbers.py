"""Print numbers: parameters with three digits, costs with four digits, differences with their sign."""

import re

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
