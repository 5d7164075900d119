"""What a release needs: two builds are equal, the wheel is whole, and the workflow runs targets that exist."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import flexlora

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
LOCAL = re.compile(r"/(?:work|home|root|tmp|opt)/")


def build(folder: Path) -> dict[str, str]:
    """Build both files in a process of their own, as `make dist` does, and return their hashes."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1764547200"}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_two_builds_are_equal_and_have_all_files(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    hashes = build(tmp_path / "a")
    assert hashes == build(tmp_path / "b")
    name = f"flexlora-{flexlora.__version__}"
    assert set(hashes) == {f"{name}-py3-none-any.whl", f"{name}.tar.gz"}
    inside = set(zipfile.ZipFile(tmp_path / "a" / f"{name}-py3-none-any.whl").namelist())
    assert {"flexlora/py.typed", "flexlora/conf/config.yaml", "flexlora/conf/method/flexlora.yaml"} <= inside
    with tarfile.open(tmp_path / "a" / f"{name}.tar.gz") as archive:
        assert {f"{name}/{file}" for file in ("mkdocs.yml", "CITATION.cff", "docs/README.md")} <= {*archive.getnames()}


def test_the_workflow_runs_targets_of_the_makefile_on_every_python() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows/ci.yml").read_text(encoding="utf-8"))
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    used = {word for step in steps for word in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert used >= {"lint", "docs", "test", "dist"}
    assert used <= targets
    supported = set(re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert {str(version) for version in workflow["jobs"]["test"]["strategy"]["matrix"]["python"]} == supported


@pytest.mark.parametrize(
    "name", ["mkdocs.yml", ".pre-commit-config.yaml", "CITATION.cff", "constraints.txt", ".github"]
)
def test_no_file_of_a_release_names_a_folder_of_a_machine(name: str) -> None:
    found = ROOT / name
    files = [file for file in found.rglob("*") if file.is_file()] if found.is_dir() else [found]
    assert files
    assert not [file for file in files if LOCAL.search(file.read_text(encoding="utf-8"))]


def test_issue_forms_ask_for_the_command_and_the_output() -> None:
    for file in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(file.read_text(encoding="utf-8"))
        if file.stem != "config":
            assert {"name", "description", "body"} <= form.keys()
    bug = (GITHUB / "ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8")
    assert "flexlora-doctor" in bug
    assert "--version" in bug
