"""The cache of small models: one process pretrains a model, and a folder is complete or absent."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from safetensors import SafetensorError

from flexlora.tiny.model_cache import cached_model, ensure, is_whole


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


def test_two_processes_build_a_model_once(tmp_path):
    folder, log = tmp_path / "cache" / "small", tmp_path / "log"
    both = [_start(folder, 0.5, log) for _ in range(2)]
    for process in both:
        process.join(20)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(log.read_text().split()) == 1
    assert is_whole(folder)


def test_a_killed_build_leaves_no_model_folder(tmp_path):
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


def test_a_waiting_process_logs_that_it_waits(tmp_path, caplog):
    caplog.set_level("INFO", "flexlora")
    folder, log = tmp_path / "cache" / "small", tmp_path / "log"
    process = _start(folder, 2.5, log)
    while not log.exists():
        time.sleep(0.01)
    _build_slowly(folder, 0, log)
    process.join(20)
    assert "waiting for another process that pretrains the small small" in caplog.text
    assert len(log.read_text().split()) == 1


def test_a_full_disk_falls_back_to_a_temporary_folder(tmp_path, monkeypatch, caplog):
    """safetensors raises its own error for a full disk, which is not an OSError."""
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path))

    def build(part: Path) -> None:
        if tmp_path in part.parents:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        (part / "whole").write_text("whole")

    with cached_model("small", "0", build) as folder:
        assert (folder / "whole").read_text() == "whole"
    assert not folder.exists()
    assert f"is not cached: cannot write in {tmp_path / 'tiny'}: Error while serializing: I/O error: No" in caplog.text
    assert not list(tmp_path.rglob("*.part"))
