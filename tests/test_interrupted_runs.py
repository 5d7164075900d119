"""A run that is interrupted or killed goes on where it was, and ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runner_helpers import COMMAND, one_line
from safetensors.torch import load_file

from flexlora.results.record import read_record

# Seconds: what a clock measures differs between two runs, everything else must not.
CLOCKS = {"train_seconds", "eval_seconds"}


@pytest.fixture
def command(arguments, tmp_path):
    """A training of half a minute, so that a signal meets it; `method` and `root` are the test's."""

    def build(method: str, root: Path, epochs: int = 20) -> list[str]:
        rest = [item for item in arguments if not item.startswith("training.epochs")]
        more = [f"training.epochs={epochs}", "training.checkpoint_every=7", "training.log_every=3"]
        return [str(COMMAND), *rest, *more, f"method={method}", f"output_root={root}"]

    return build


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        # Tests that a shell put in the background inherit SIGINT as ignored, and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while last_step(folder) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def last_step(folder: Path) -> int:
    rows = rows_of(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    return rows[-1]["step"] if rows else 0


def rows_of(path: Path) -> list[dict]:
    """Whole lines only: the file may be written at this moment."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


def run_folder(root: Path, method: str, tiny_bert: Path) -> Path:
    return root / "local" / "glue" / "cola" / tiny_bert.name / method / "test" / "seed0"


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit: every row, every event, every tensor, the record but for its clocks."""
    for name in ("metrics.jsonl", "ranks.jsonl"):
        assert rows_of(first / name) == rows_of(second / name), name
    ours, theirs = (sorted(p.relative_to(f) for p in (f / "adapter").rglob("*.safetensors")) for f in (first, second))
    assert ours == theirs
    for file in ours:
        before, after = load_file(first / file), load_file(second / file)
        assert before.keys() == after.keys()
        assert all(before[key].equal(after[key]) for key in before), file
    a, b = read_record(first / "result.json"), read_record(second / "result.json")
    assert (a.status, a.steps, a.tokens, a.rank_events, a.parameters) == (
        b.status,
        b.steps,
        b.tokens,
        b.rank_events,
        b.parameters,
    )
    assert [strip(row) for row in a.history] == [strip(row) for row in b.history]


def strip(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in CLOCKS}


@pytest.fixture(scope="module")
def unbroken(arguments, tiny_bert, tmp_path_factory):
    """The same trainings, never stopped."""
    found: dict[str, Path] = {}

    def run(command: list[str], method: str) -> Path:
        if method not in found:
            root = tmp_path_factory.mktemp("unbroken")
            process = start([*command[:-1], f"output_root={root}"])
            process.communicate(timeout=240)
            assert process.returncode == 0
            found[method] = run_folder(root, method, tiny_bert)
        return found[method]

    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_the_same_command_goes_on(command, unbroken, tiny_bert, tmp_path, number, code):
    line = command("flexlora", tmp_path)
    folder = run_folder(tmp_path, "flexlora", tiny_bert)
    process = start(line)
    try:
        wait_for_step(process, folder, 60)
        process.send_signal(signal.SIGSTOP)  # or it would be done before the next command has started
        held = subprocess.run([*line, "training.batch_size=4"], capture_output=True, text=True, timeout=120)
        assert held.returncode == 2
        assert f"is held by process {process.pid} on " in one_line(held)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, stderr
    assert stderr.strip() == "flexlora-run: interrupted"
    assert f"{number.name}: finishing the step" in stdout
    record = read_record(folder / "result.json")
    assert record.status == "interrupted"
    assert f"interrupted at step {record.steps}" in record.error
    assert (folder / "checkpoints" / f"step-{record.steps:09d}").is_dir()
    assert len(list((folder / "checkpoints").iterdir())) <= 2

    other = subprocess.run([*line, "training.weight_decay=0.1"], capture_output=True, text=True, timeout=120)
    assert other.returncode == 2
    assert "unfinished run of another config (training.weight_decay: 0.0 → 0.1)" in one_line(other)

    again = start(line)
    stdout, stderr = again.communicate(timeout=240)
    assert again.returncode == 0, stderr
    assert f"resumed after step {record.steps}" in stdout
    finished = read_record(folder / "result.json")
    assert (finished.status, finished.resumed_at) == ("done", [record.steps])
    assert not (folder / "checkpoints").exists()
    assert_same_run(unbroken(line, "flexlora"), folder)


def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint(command, unbroken, tiny_bert, tmp_path):
    method = "flexlora"
    line = command(method, tmp_path)
    folder = run_folder(tmp_path, method, tiny_bert)
    process = start(line)
    wait_for_step(process, folder, 40)
    process.kill()
    process.communicate()
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    # And the newest was hit by the same accident.
    state = checkpoints[-1] / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.chmod(0o644)
    state.write_bytes(content)

    again = start(line)
    stdout, stderr = again.communicate(timeout=240)
    assert again.returncode == 0, stderr
    assert f"{checkpoints[-1]} is damaged (state.pt is not what was written)" in stdout
    assert f"resumed after step {int(checkpoints[0].name.removeprefix('step-'))}" in stdout
    assert_same_run(unbroken(line, method), folder)
