"""`scale=tiny`: word problems of one to three sums as GSM8K. `Gsm8k` processes the rows."""

import hashlib
import json
import logging
import sys
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from flexlora.errors import UserError
from flexlora.settings import Gsm8kTask
from flexlora.source_hash import files_of, hash_of_files
from flexlora.tasks.gsm8k import Gsm8k, gsm8k
from flexlora.tasks.row_sources import RowFile, Sources
from flexlora.tiny import word_problems

log = logging.getLogger("flexlora")

# Rows of each split.
TRAIN, TEST = 2048, 200


def load(settings: Gsm8kTask) -> Gsm8k:
    """Generate the training and test problems: like real data, they are the same for every seed.

    No test problem occurs among the training problems.

    Raises:
        UserError: `task.data_dir`, `task.train_file` or `task.test_file` is set.
    """
    for key in ("data_dir", "train_file", "test_file"):
        if getattr(settings, key) is not None:
            raise UserError(f"scale=tiny generates its data: leave out task.{key}, or leave out scale=tiny")
    log.info("scale=tiny: generated data and a small model; the results say nothing about the paper")
    train, test, sha256 = _rows()
    provenance: dict[str, Any] = {
        "source": "generated",
        "path": None,
        "revision": hash_of_files(*files_of(sys.modules[__name__], word_problems)),
        "sha256": {"rows": sha256},
    }
    held = settings.validation_rows is not None
    return gsm8k(
        settings, Sources(_file("train", train, sha256), None if held else _file("test", test, sha256), provenance)
    )


def _file(name: str, rows: list[dict[str, str]], sha256: str) -> RowFile:
    return RowFile(Path(f"generated {name} rows"), {key: [row[key] for row in rows] for key in rows[0]}, sha256)


@lru_cache(maxsize=1)
def _rows() -> tuple[list[dict[str, str]], list[dict[str, str]], str]:
    """Generate the rows and their hash. They are cached for the next run, so they must not change."""
    rows = word_problems.problems(TRAIN + TEST, Random("word problems"))
    train, test = rows[:TRAIN], rows[TRAIN:]
    return train, test, hashlib.sha256(json.dumps([train, test]).encode()).hexdigest()
