"""What the tests of GSM8K share: a folder with word problems, and the settings of the task."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compose_helpers import settings_of_run

PROBLEMS = [
    {
        "question": f"Tom has {n} apples and buys {n + 1} more. How many has he?",
        "answer": f"{n}+{n + 1}\n#### {2 * n + 1}",
    }
    for n in range(2, 14)
]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """One JSON object on each line."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_folder(
    folder: Path, train: Sequence[dict[str, Any]] = PROBLEMS, test: Sequence[dict[str, Any]] = PROBLEMS[:4]
) -> Path:
    """`train.jsonl` and `test.jsonl` in GSM8K's columns."""
    folder.mkdir(exist_ok=True)
    write_lines(folder / "train.jsonl", train)
    write_lines(folder / "test.jsonl", test)
    return folder


def task_settings(folder: Path | None, *overrides: str) -> Any:
    """`task.*` as the command composes it."""
    given = [] if folder is None else [f"task.data_dir={folder}"]
    return settings_of_run("task=gsm8k", "method=lora", "task.token_cache=null", *given, *overrides).task
