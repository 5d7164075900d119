"""`scale=tiny`: functions of one to three steps as HumanEval. `HumanEval` processes the rows and runs the programs."""

import hashlib
import json
import logging
import sys
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from flexlora.errors import UserError
from flexlora.settings import HumanEvalTask
from flexlora.source_hash import files_of, hash_of_files
from flexlora.tasks.humaneval import COLUMNS, HumanEval, check_settings, humaneval
from flexlora.tasks.row_sources import RowFile, Sources
from flexlora.tiny import functions

log = logging.getLogger("flexlora")

# Rows of each split.
TRAIN, TEST = 2048, 100


def load(settings: HumanEvalTask) -> HumanEval:
    """Generate the training rows and the problems: like real data, they are the same for every seed.

    No problem has the same steps as a training row.

    Raises:
        UserError: `task.data_dir`, `task.train_file` or `task.test_file` is set, or `check_settings` refuses.
    """
    for key in ("data_dir", "train_file", "test_file"):
        if getattr(settings, key) is not None:
            raise UserError(f"scale=tiny generates its data: leave out task.{key}, or leave out scale=tiny")
    check_settings(settings)
    log.info("scale=tiny: generated data and a small model; the results say nothing about the paper")
    train, test, sha256 = _rows()
    provenance: dict[str, Any] = {
        "source": "generated",
        "path": None,
        "revision": hash_of_files(*files_of(sys.modules[__name__], functions)),
        "sha256": {"rows": sha256},
    }
    files = _file("train", train, ("query", "answer"), sha256), _file("test", test, COLUMNS, sha256)
    return humaneval(settings, Sources(*files, provenance))


def _file(name: str, rows: list[dict[str, str]], columns: tuple[str, ...], sha256: str) -> RowFile:
    return RowFile(Path(f"generated {name} rows"), {key: [row[key] for row in rows] for key in columns}, sha256)


@lru_cache(maxsize=1)
def _rows() -> tuple[list[dict[str, str]], list[dict[str, str]], str]:
    """Generate the rows and their hash. They are cached for the next run, so they must not change."""
    rows = functions.problems(TRAIN + TEST, Random("small functions"))
    train, test = rows[:TRAIN], rows[TRAIN:]
    return train, test, hashlib.sha256(json.dumps([train, test]).encode()).hexdigest()
