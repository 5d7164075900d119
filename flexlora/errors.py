"""The one exception that reaches a user as a line instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: a setting, a folder, a missing file.

    The message is one line, says what is wrong and what to set instead. `HYDRA_FULL_ERROR=1` shows the traceback.
    """


def one_line(error: BaseException) -> str:
    """The first line of an error's text that says anything, or its type's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """` Did you mean X?` for the nearest of `options`, or an empty string where none is near."""
    options = list(options)
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if not near:
        # A bare last name (`lr_rate`) is compared with the last names of dotted keys (`training.learning_rate`).
        last = word.rpartition(".")[2]
        by_last_name = {option.rpartition(".")[2]: option for option in options}
        near = [by_last_name[name] for name in difflib.get_close_matches(last, list(by_last_name), n=1)]
    return f" Did you mean {near[0]}?" if near else ""
