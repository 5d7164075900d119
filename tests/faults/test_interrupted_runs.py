"""A run that is interrupted or killed goes on where it was, and ends as if nothing had happened."""

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from marks import slow_but
from runner_helpers import one_line

from flexlora.results.record import read_record
from flexlora.testing.commands import COMMAND, run_command, start_command
from flexlora.testing.comparing import differences, rows_of


@pytest.fixture
def command(arguments, tmp_path):
    """A training of half a minute, so that a signal meets it; `method` and `root` are the test's."""

    def build(method: str, root: Path, epochs: int = 20) -> list:
        rest = [item for item in arguments if not item.startswith("training.epochs")]
        more = [f"training.epochs={epochs}", "training.checkpoint_every=7", "training.log_every=3"]
        return [str(COMMAND), *rest, *more, f"method={method}", f"output_root={root}"]

    return build


def start(command: list[str], folder: Path) -> BaseProcess:
    """The running command, which writes to two files in `folder`."""
    return start_command(command, folder / "stdout", folder / "stderr")


def wait_for_step(process: BaseProcess, folder: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while last_step(folder) < step:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def last_step(folder: Path) -> int:
    rows = rows_of(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    return rows[-1]["step"] if rows else 0


def run_folder(root: Path, method: str, tiny_bert: Path) -> Path:
    return root / "local" / "glue" / "cola" / tiny_bert.name / method / "test" / "seed0"


@pytest.fixture(scope="module")
def unbroken(arguments, tiny_bert, tmp_path_factory):
    """The same trainings, never stopped."""
    found: dict[str, Path] = {}

    def run(command: list[str], method: str) -> Path:
        if method not in found:
            root = tmp_path_factory.mktemp("unbroken")
            assert run_command(*command[:-1], f"output_root={root}").returncode == 0
            found[method] = run_folder(root, method, tiny_bert)
        return found[method]

    return run


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "code"), slow_but(SIGNALS[:1], SIGNALS))
def test_a_signal_finishes_the_step_and_the_same_command_goes_on(command, unbroken, tiny_bert, tmp_path, number, code):
    line = command("flexlora", tmp_path)
    folder = run_folder(tmp_path, "flexlora", tiny_bert)
    process = start(line, tmp_path)
    try:
        wait_for_step(process, folder, 60)
        os.kill(process.pid, signal.SIGSTOP)  # or it would be done before the next command has started
        held = run_command(*line, "training.batch_size=4")
        assert held.returncode == 2
        assert f"is in use by process {process.pid} on " in one_line(held)
        os.kill(process.pid, number)
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)
    finally:
        process.kill()
    stdout, stderr = ((tmp_path / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    assert process.exitcode == code, stderr
    assert stderr.strip() == "flexlora-run: interrupted"
    assert f"{number.name}: finishing the step" in stdout
    record = read_record(folder / "result.json")
    assert record.status == "interrupted"
    assert f"interrupted at step {record.steps}" in record.error
    assert (folder / "checkpoints" / f"step-{record.steps:09d}").is_dir()
    assert len(list((folder / "checkpoints").iterdir())) <= 2

    other = run_command(*line, "training.weight_decay=0.1")
    assert other.returncode == 2
    assert "unfinished run of another config (training.weight_decay: 0.0 → 0.1)" in one_line(other)

    again = run_command(*line)
    assert again.returncode == 0, again.stderr
    assert f"resumed after step {record.steps}" in again.stdout
    finished = read_record(folder / "result.json")
    assert (finished.status, finished.resumed_at) == ("done", [record.steps])
    assert not (folder / "checkpoints").exists()
    assert differences(unbroken(line, "flexlora"), folder) == []


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint(command, unbroken, tiny_bert, tmp_path):
    method = "flexlora"
    line = command(method, tmp_path)
    folder = run_folder(tmp_path, method, tiny_bert)
    process = start(line, tmp_path)
    wait_for_step(process, folder, 40)
    process.kill()
    process.join()
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    # And the newest was hit by the same accident.
    state = checkpoints[-1] / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.chmod(0o644)
    state.write_bytes(content)

    again = run_command(*line)
    assert again.returncode == 0, again.stderr
    assert f"{checkpoints[-1]} is damaged (state.pt is not what was written)" in again.stdout
    assert f"resumed after step {int(checkpoints[0].name.removeprefix('step-'))}" in again.stdout
    assert differences(unbroken(line, method), folder) == []
