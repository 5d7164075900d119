"""Fixtures of the tests that unpack archives."""

import sys
from pathlib import Path

import pytest
from archive_helpers import write

from flexlora.cli import prepare_vtab


@pytest.fixture
def prepare(monkeypatch, capsys):
    """Run the command in this process. Returns exit code, stdout and the line on stderr, if any."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prepare_vtab.py", *map(str, arguments)])
        code = prepare_vtab.main()
        output = capsys.readouterr()
        lines = output.err.splitlines()
        assert len(lines) == (code not in (0, 1)), output.err
        return code, output.out, lines[0].removeprefix("prepare_vtab.py: ") if lines else ""

    return call


@pytest.fixture
def source(tmp_path) -> Path:
    """Two tasks, one of them under its alternative name."""
    write(tmp_path / "source/cifar", "cifar100")
    write(tmp_path / "source/kitti")
    return tmp_path / "source"
