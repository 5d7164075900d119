"""HumanEval's problems, and the program that checks a completion (openai/human-eval 6d43fb9)."""

import gzip
import hashlib
import io
import json
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flexlora.errors import UserError
from flexlora.reading import TEXT, NotRead, read_bytes
from flexlora.text_files import HALF_LETTER, decode

GZIP_MARK = b"\x1f\x8b"


@dataclass(frozen=True)
class Problem:
    """A function to complete: its signature and docstring, a right body, and the test of the completed function."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str


def checked_program(problem: Problem, completion: str) -> str:
    """Return the program that ends without an exception if `completion` is right, as human-eval's execution.py does."""
    return f"{problem.prompt}{completion}\n{problem.test}\ncheck({problem.entry_point})"


def read_problems(path: Path) -> tuple[list[Problem], str]:
    """Read and check the problems of a JSON Lines file, packed by gzip or not. Also returns the file's SHA-256.

    Raises:
        UserError: the file is not JSON Lines, has no problems, or has a broken one. The message names the line.
        OSError: the file cannot be read.
    """
    packed = read_bytes(path)
    content = unpacked(packed, path) if packed.startswith(GZIP_MARK) else packed
    problems: list[Problem] = []
    for number, line in enumerate(decode(content, path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}") from error
        wrong = _wrong_with(row)
        if wrong:
            raise UserError(f"{path}, line {number}: {wrong}")
        problems.append(Problem(**{field.name: row[field.name] for field in fields(Problem)}))
    if not problems:
        raise UserError(f"{path} has no problems")
    names = [problem.task_id for problem in problems]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: the task_id '{twice}' occurs twice")
    return problems, hashlib.sha256(packed).hexdigest()


def unpacked(content: bytes, path: Path) -> bytes:
    """Return what a gzip file holds, at most `reading.TEXT` bytes.

    Raises:
        UserError: the file is damaged.
        OSError: the file holds more.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            text = file.read(TEXT + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file: {error}") from error
    if len(text) > TEXT:
        raise NotRead(path, f"it unpacks to more than {TEXT // 2**20} MiB")
    return text


def _wrong_with(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "the line is not an object with task_id, prompt, entry_point, canonical_solution and test"
    for field in fields(Problem):
        value = row.get(field.name)
        if not isinstance(value, str) or not value.strip():
            return f"'{field.name}' is missing, empty or not a text"
        if HALF_LETTER.search(value):
            return f"'{field.name}' contains half of a surrogate pair"
    if not row["entry_point"].isidentifier():
        return f"entry_point '{row['entry_point']}' is not the name of a function"
    return None
