"""The notebook of the tutorial runs from its first to its last cell, in an empty folder and without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/tutorials/ranks-that-move.ipynb"


@pytest.mark.slow  # a kernel is a process of its own, which imports torch
def test_the_notebook_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*command, "--nbmake", "--nbmake-timeout=120", str(NOTEBOOK)],
        cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_notebook_has_no_output_of_a_machine() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) > 10
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
