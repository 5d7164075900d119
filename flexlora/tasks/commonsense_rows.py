"""Rows in LLM-Adapters' JSON: an instruction that lists its options, and the word of the right option."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexlora.errors import UserError
from flexlora.reading import read_bytes
from flexlora.text_files import HALF_LETTER, decode

Row = Mapping[str, str]
"""The keys are `instruction`, `input` (always empty in this benchmark), `output` (the answer sentence) and `answer`."""

KEYS = ("instruction", "input", "output", "answer")

FORMATS: tuple[tuple[str, ...], ...] = (
    ("true", "false"),
    ("solution1", "solution2"),
    ("answer1", "answer2", "answer3", "answer4", "answer5"),
    ("ending1", "ending2", "ending3", "ending4"),
    ("option1", "option2"),
)
"""The answer words of each kind of question. The first one that occurs in a text is the text's answer."""

TEST_SETS: dict[str, tuple[str, ...]] = {
    "boolq": FORMATS[0],
    "piqa": FORMATS[1],
    "social_i_qa": FORMATS[2],
    "hellaswag": FORMATS[3],
    "winogrande": FORMATS[4],
    "ARC-Easy": FORMATS[2],
    "ARC-Challenge": FORMATS[2],
    "openbookqa": FORMATS[2],
}
"""The eight test sets and the answer words of their questions."""

_LISTED = re.compile(r"Answer format: (\S+)\s*$")


@dataclass(frozen=True)
class File:
    """The rows of one file, and its hash for the record."""

    rows: list[Row]
    sha256: str


def format_of(row: Row) -> tuple[str, ...]:
    """Find the format of a row: the group of answer words that contains its answer."""
    return next(words for words in FORMATS if row["answer"] in words)


def options_of(row: Row) -> tuple[str, ...]:
    """The answer words that the row's instruction lists at its end, or all words of its format if it lists none."""
    words = format_of(row)
    listed = _LISTED.search(row["instruction"])
    offered = tuple(word for word in words if word in listed[1].split("/")) if listed else ()
    return offered if row["answer"] in offered else words


def extract(text: str, words: Sequence[str]) -> str | None:
    """Find the first of `words` in a model's text, as the protocol does; None if the text contains none of them."""
    found = re.search("|".join(words), text.strip())
    return None if found is None else found[0]


def read_rows(path: Path, test_set: str | None = None) -> File:
    """Read and check the rows of a JSON file. The rows of a test set must answer in its format.

    Raises:
        UserError: the file is not JSON, is not a list of rows, or has a broken row. The message names the file and the
            row, counted from 1.
        OSError: the file cannot be read.
    """
    content = read_bytes(path)
    try:
        rows = json.loads(decode(content, path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a list of rows")
    if not rows:
        raise UserError(f"{path} has no rows")
    words = TEST_SETS[test_set] if test_set else tuple(word for format in FORMATS for word in format)
    for number, row in enumerate(rows, 1):
        wrong = _wrong_with(row, words)
        if wrong:
            raise UserError(f"{path}, row {number}: {wrong}")
    return File([{key: row.get(key, "") for key in KEYS} for row in rows], hashlib.sha256(content).hexdigest())


def _wrong_with(row: Any, words: Sequence[str]) -> str | None:
    if not isinstance(row, dict):
        return "the row is not an object with instruction, output and answer"
    for key in ("instruction", "output", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            return f"'{key}' is missing, empty or not a text"
    if not isinstance(row.get("input", ""), str):
        return "'input' is not a text"
    for key in KEYS:
        if HALF_LETTER.search(row.get(key, "")):
            return f"'{key}' contains half of a surrogate pair"
    if row["answer"] not in words:
        return f"answer '{row['answer']}' is not one of {', '.join(words)}"
    return None
