"""Find the number that a solution of a word problem ends with: `#### 1,080`, `\\boxed{42}`, "The answer is: $3.50"."""

import math
import re
from fractions import Fraction

# A number: a sign, a currency sign, digits in groups of three or in a row, decimals, a fraction. A minus sign between
# two numbers, as in 20-5, is no sign.
_SIGN = r"(?:(?<![\w.)])[-+\u2212])?"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})(?:\\?[$€£¥]\s?(?P<late>[-\u2212]?))?"
    rf"(?:(?P<whole>{_DIGITS})\s+(?P<over>\d+)\s?/\s?(?P<under>\d+)(?![\d,.]*\d)"
    rf"|(?P<top>{_DIGITS})\s?/\s?(?P<bottom>\d+)(?![\d,.]*\d)"
    rf"|(?P<plain>{_DIGITS}(?:\.\d+)?|\.\d+))"
)
_LATEX = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_MARK = re.compile(r"####(?P<said>[^\n]*)")
_SENTENCE = re.compile(r"answer\s+is\s*:?(?P<said>[^\n]*)", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(?P<said>(?:[^{}]|\{[^{}]*\})*)\}")
# A model that goes on after its answer invents the next question.
_NEXT_QUESTION = re.compile(r"\n\s*(?:Q:|Question:|#{1,3} ?Instruction)")
COMPLETE = re.compile(r"####[^\n]*\d[^\n]*\n|" + _NEXT_QUESTION.pattern)
"""Occurs in a text that has its final number already."""


def final_number(text: str, *, last: bool = False) -> float | None:
    """Return the final number of a solution, or None if it has none.

    It is the number after the last `####`, else in the last box, else after the last "the answer is". The number behind
    the line's last equals sign counts, or the first one of the line.

    Args:
        text: the solution. What follows a new question is not part of it.
        last: whether the last number of a text without any of these marks counts.
    """
    text = _NEXT_QUESTION.split(text, maxsplit=1)[0]
    for pattern in (_MARK, _BOX, _SENTENCE):
        for match in reversed(list(pattern.finditer(text))):
            found = _first(match["said"])
            if found is not None:
                return found
    if not last:
        return None
    found = None
    for match in _NUMBER.finditer(_plain(text)):
        value = _value(match)
        found = found if value is None else value
    return found


def _first(line: str) -> float | None:
    *_, said = _plain(line).split("=")
    for part in (said, _plain(line)):
        for match in _NUMBER.finditer(part):
            value = _value(match)
            if value is not None:
                return value
    return None


def _plain(text: str) -> str:
    """Write LaTeX's fractions and thin spaces as plain text."""
    return _LATEX.sub(r"\1/\2", text).replace(r"\!", "").replace("{,}", ",")


def _value(match: re.Match[str]) -> float | None:
    """Return the value of a number; None if it is divided by 0 or is too large for a float."""
    try:
        if match["whole"]:
            value = Fraction(_digits(match["whole"])) + Fraction(int(match["over"]), int(match["under"]))
        elif match["top"]:
            value = Fraction(int(_digits(match["top"])), int(match["bottom"]))
        else:
            value = Fraction(_digits(match["plain"]))
        number = float(value)
    except (ZeroDivisionError, OverflowError, ValueError):  # Python refuses more than 4,300 digits by a ValueError
        return None
    minus = {"-", "\u2212"} & {match["sign"], match["late"]}
    return math.copysign(number, -1) if minus and number else number


def _digits(text: str) -> str:
    return text.replace(",", "")
