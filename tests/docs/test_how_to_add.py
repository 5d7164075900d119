"""The how-to pages "add a ...": every file and every command of a page is taken from the page and run as it stands.

Each page starts real processes, since it promises that its commands work as a user types them; `make test-all` runs it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "how-to").glob("add-*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"\A(?:#|<!--) file: (\S+?)(?: -->)?\n")
EXPECTED = {"add-a-baseline", "add-a-report-table", "add-a-task", "add-a-task-family", "add-an-importance-metric"}


def test_there_is_a_page_for_everything_that_can_be_added():
    assert {page.stem for page in PAGES} >= EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_steps_of_the_page_work_in_an_empty_folder(page: Path, tmp_path: Path):
    ran = 0
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        named = FILE.match(text)
        if named:
            file = tmp_path / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text[named.end() :], encoding="utf-8")
        elif language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text], cwd=tmp_path, env=variables, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran, f"{page.name} has no command"
