"""The how-to pages "add a ...": every file and every command of a page is taken from the page and run as it stands.

Each page starts real processes, since it promises that its commands work as a user types them; `make test-all` runs it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_helpers import BLOCK, HOW_TO, write_files

PAGES = sorted(HOW_TO.glob("add-*.md"))
EXPECTED = {"add-a-baseline", "add-a-report-table", "add-a-task", "add-a-task-family", "add-an-importance-metric"}


def test_there_is_a_page_for_everything_that_can_be_added():
    assert {page.stem for page in PAGES} >= EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_steps_of_the_page_work_in_an_empty_folder(page: Path, tmp_path: Path):
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    write_files(page.name, tmp_path)
    scripts = [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language == "bash"]
    for text in scripts:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=tmp_path, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert scripts, f"{page.name} has no command"
