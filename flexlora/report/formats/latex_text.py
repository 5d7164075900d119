"""Write any text in LaTeX. Errors may contain any character, so those that pdflatex lacks are written as U+0000."""

import re
import unicodedata

from flexlora.report.layout import SUPERSCRIPT

ESCAPED = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*"},  # a row or note may begin with one: \\[, \\*, \item[
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "λ": r"$\lambda$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    **{sign: rf"\textsuperscript{{{digit}}}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{chr(sign): rf"\textsuperscript{{{chr(mark)}}}" for mark, sign in SUPERSCRIPT.items()},
}


def as_tex(text: str) -> str:
    """Escape the text letter by letter. Two hyphens stay two hyphens."""
    parts = re.split("(?<=-)(?=-)", text)
    return "{}".join("".join(map(_character, part)) for part in parts)


def figure_as_tex(text: str) -> str:
    """Escape a number. Its hyphen becomes a minus sign."""
    return re.sub(r"-(?=\d)", "$-$", as_tex(text))


def breakable(tex: str) -> str:
    """Allow line breaks inside paths and dotted names, which have no spaces."""
    return re.sub(r"([/.=]|\\_)(?=[^\s\d])", r"\1\\allowbreak{}", tex)


def _character(character: str) -> str:
    if character in ESCAPED:
        return ESCAPED[character]
    if character.isspace():
        return " "
    if character.isascii() and character.isprintable():
        return character
    if "À" <= character <= "ÿ" and unicodedata.decomposition(character):
        return character  # a letter with an accent
    return f"{{[}}U+{ord(character):04X}{{]}}"
