"""Decode text files. They must be UTF-8, with or without a byte order mark. Another encoding is refused by its name."""

import codecs
import re
from pathlib import Path

from flexlora.errors import UserError

# UTF-32's mark begins with UTF-16's mark, so it must come first.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
HALF_LETTER = re.compile("[\ud800-\udfff]")
"""One half of a surrogate pair. An escape in JSON can make one, and tokenizers refuse it."""
# The number of bytes that are checked for UTF-16 without a mark. In UTF-16, every second byte of Latin text is zero.
LOOKED_AT = 1000


def decode(content: bytes, where: Path | str) -> str:
    """Decode the content of a text file. A byte order mark at its beginning is removed.

    Args:
        content: the content of the whole file.
        where: the beginning of the message: the file, or a setting and the file.

    Raises:
        UserError: the content is not UTF-8. The message names its encoding or the first wrong line.
    """
    other = next((name for mark, name in MARKS.items() if content.startswith(mark)), None) or _unmarked(content)
    if other is not None:
        raise UserError(f"{where} is {other}, not UTF-8: save it as UTF-8")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        # The decoder counts from the end of the mark.
        line = content.removeprefix(codecs.BOM_UTF8).count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}, line {line}: not UTF-8: save the file as UTF-8") from error


def _unmarked(content: bytes) -> str | None:
    """Return "UTF-16" if the zero bytes show this encoding, otherwise None."""
    even, odd = (content[first:LOOKED_AT:2] for first in (0, 1))
    zeros = sorted(part.count(0) / max(1, len(part)) for part in (even, odd))
    return "UTF-16" if zeros[0] < 0.1 and zeros[1] > 0.5 else None
