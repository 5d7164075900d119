"""`UserError`, and helpers for its message. The commands print it as one line instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can correct: a wrong setting, a folder, a missing file.

    The message is one line. It says what is wrong, where, and what to do. `HYDRA_FULL_ERROR=1` shows the traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return `text` as one line, with control characters and line breaks as Python writes them (`\\n`, `\\x1b`)."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's text, or the name of the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ` Did you mean X?` for the most similar of `options`, or an empty string if none is similar.

    The last part of a name counts most (`epochs` of `training.epochs`, `cola` of `glue/cola`). If `word` has no other
    part, only the last part counts. The initials of a name count as the name, so that `training.lr` finds
    `training.learning_rate`.
    """
    parent, last = _split(word)

    def nearness(option: str) -> tuple[float, float]:
        option_parent, option_last = _split(option)
        initials = "".join(part[:1] for part in option_last.split("_"))
        same_name = 1.0 if last == initials else _ratio(last, option_last)
        return same_name, _ratio(parent, option_parent) if parent else 0.0

    best = max(options, key=lambda option: sum(nearness(option)), default=None)
    return f" Did you mean {best}?" if best is not None and nearness(best)[0] >= 0.6 else ""


def _split(name: str) -> tuple[str, str]:
    parent, _, last = name.lower().replace("/", ".").rpartition(".")
    return parent, last


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
