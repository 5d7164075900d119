"""The how-to pages "add a ...": every file and every command of a page is taken from the page and run as it stands.

Each page starts processes, since it promises that its commands work as a user types them; `make test-all` runs it.
"""

import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from page_helpers import BLOCK, HOW_TO, write_files

from flexlora.testing.commands import COMMAND, run_command

OTHER = ("use-your-own-data", "fine-tune-a-language-model", "resume-a-run")
PAGES = [*sorted(HOW_TO.glob("add-*.md")), *(HOW_TO / f"{name}.md" for name in OTHER)]
EXPECTED = {"add-a-baseline", "add-a-report-table", "add-a-task", "add-a-task-family", "add-an-importance-metric"}


def test_there_is_a_page_for_everything_that_can_be_added():
    assert {page.stem for page in PAGES} >= EXPECTED


# Its commands start as a shell starts them. Those of the other pages are forked, which takes half of the time.
IN_A_SHELL = "add-a-task-family"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_steps_of_the_page_work_in_an_empty_folder(page: Path, tmp_path: Path, tiny_cache: Path):
    write_files(page.name, tmp_path)
    blocks = [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language == "bash"]
    assert blocks, f"{page.name} has no command"
    for text in blocks:
        variables = {"FLEXLORA_CACHE": str(tiny_cache)}
        for line in [text] if page.stem == IN_A_SHELL else text.splitlines():
            done = run(line, tmp_path, variables)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def run(text: str, folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A line of a page: a command of ours in a forked process, everything else in a shell. An `export` is kept."""
    program, *words = shlex.split(text) or [""]
    if program.startswith("flexlora-"):
        return run_command(COMMAND.with_name(program), *words, fault=partial(os.chdir, folder), **variables)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    exported = words[0].partition("=")[0] if program == "export" and "\n" not in text.strip() else None
    shell = ["bash", "-euo", "pipefail", "-c", text if exported is None else f'{text}; printf %s "${exported}"']
    environment = os.environ | {"PATH": path} | variables
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if exported is not None:
        variables[exported] = done.stdout
    return done
