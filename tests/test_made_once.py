"""What is made once and kept: by one process of several, whole or not at all."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from flexlora.models.made_once import ensure, is_whole


def _build_slowly(folder: Path, seconds: float, log: Path) -> None:
    def build(part: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        (part / "half").write_text("half")
        time.sleep(seconds)
        (part / "whole").write_text("whole")

    ensure(folder, "small", build)


def _start(folder: Path, seconds: float, log: Path):
    process = multiprocessing.get_context("fork").Process(target=_build_slowly, args=(folder, seconds, log))
    process.start()
    return process


def test_two_processes_at_once_make_one(tmp_path):
    folder, log = tmp_path / "cache" / "small", tmp_path / "log"
    both = [_start(folder, 0.5, log) for _ in range(2)]
    for process in both:
        process.join(20)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(log.read_text().split()) == 1
    assert is_whole(folder)


def test_one_that_was_killed_half_way_leaves_nothing_that_counts(tmp_path):
    folder, log = tmp_path / "cache" / "small", tmp_path / "log"
    process = _start(folder, 60, log)
    deadline = time.monotonic() + 20
    while not list(folder.parent.glob(".small.*.part/half")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert not folder.exists()
    _build_slowly(folder, 0, log)
    assert is_whole(folder)
    assert not list(folder.parent.glob(".small.*.part"))
