"""Faults of disk, clock and caches, and signals in every phase: what is finished stays, the same command goes on."""

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from fault_helpers import backward_clock, killed_while_it_keeps_tokens, no_opening, no_room_after, strike
from marks import slow_but
from runner_helpers import one_line

from flexlora.results.record import read_record
from flexlora.testing.commands import COMMAND, run_command
from flexlora.testing.comparing import differences

METHOD = "flexlora"


@pytest.fixture(scope="module")
def short(arguments) -> list[str]:
    """Twelve steps with a rank event and a checkpoint every second one."""
    rest = [item for item in arguments if not item.startswith("training.epochs")]
    more = ["training.max_steps=12", "training.checkpoint_every=2", "training.log_every=2", "task.max_eval_rows=8"]
    windows = ["schedule=absolute", "method.tinit=1", "method.tfinal=1", "method.deltaT=2"]
    return [*rest, *more, *windows, f"method={METHOD}"]


@pytest.fixture
def run(short, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command on a folder of the test's own; more settings, a fault and variables may be given."""

    def start(*more: str, **options) -> subprocess.CompletedProcess[str]:
        return run_command(COMMAND, *short, f"output_root={tmp_path / 'out'}", *more, **options)

    return start


@pytest.fixture(scope="module")
def of(tiny_bert) -> Callable[..., Path]:
    return lambda root, variant="test": root / "local" / "glue" / "cola" / tiny_bert.name / METHOD / variant / "seed0"


@pytest.fixture(scope="module")
def unbroken(short, of, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("unbroken")
    result = run_command(COMMAND, *short, f"output_root={root}")
    assert result.returncode == 0, result.stdout + result.stderr
    return of(root)


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], Path]]:
    """Makes a folder one that nobody can write in. The superuser heeds no permissions: for him it is mounted so."""
    done: list[Path] = []

    def close(folder: Path) -> Path:
        if os.geteuid():
            for path in [folder, *folder.rglob("*")]:
                path.chmod(path.stat().st_mode & 0o555)
        else:
            mount = ["mount", "-o"]
            if any(
                subprocess.run([*mount, *how, str(folder)], capture_output=True).returncode
                for how in (["bind", str(folder)], ["remount,ro,bind"])
            ):
                pytest.skip("the superuser writes wherever permissions forbid it, and may not mount here")
        done.append(folder)
        return folder

    yield close
    for folder in done:
        if os.geteuid():
            for path in [folder, *folder.rglob("*")]:
                path.chmod(path.stat().st_mode | 0o700)
        else:
            subprocess.run(["umount", str(folder)], check=True)


def parts(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


# What is opened for writing: the name, and the time from which on that is refused.
OPENED = [
    ("config.yaml", 1),
    ("log.txt", 1),
    (".holder.json", 1),
    ("metrics.jsonl", 1),
    ("trained.safetensors", 3),
    ("manifest.json", 3),  # it is made, and then written: every checkpoint opens it twice
    ("adapter_config.json", 1),
    ("result.json", 1),
]


@pytest.mark.parametrize(("name", "number"), slow_but({("config.yaml", 1), ("trained.safetensors", 3)}, OPENED))
def test_no_room_for_one_more_file(run, of, unbroken, tmp_path, name, number):
    folder = of(tmp_path / "out")
    result = run(fault=partial(no_opening, name, errno.ENOSPC, number))
    assert result.returncode == 2, result.stdout + result.stderr
    assert one_line(result) == f"cannot write to {folder}: No space left on device. Set output_root=DIR."
    assert "Traceback" not in result.stdout
    assert not (folder / "adapter").exists() or name == "result.json"
    if (folder / "result.json").exists():
        assert read_record(folder / "result.json").status == "failed"
    assert parts(folder) == []
    again = run()
    assert again.returncode == 0, again.stdout + again.stderr
    step = {"trained.safetensors": 4, "manifest.json": 2, "adapter_config.json": 12, "result.json": 12}.get(name)
    assert (f"resumed after step {step}" in again.stdout) == (step is not None)
    assert differences(unbroken, folder) == []


ROWS = [("metrics.jsonl", 3, 6), ("ranks.jsonl", 2, 6)]


@pytest.mark.parametrize(("name", "lines", "step"), slow_but(ROWS[1:], ROWS))
def test_no_room_for_one_more_line(run, of, unbroken, tmp_path, name, lines, step):
    folder = of(tmp_path / "out")
    result = run(fault=partial(no_room_after, name, lines))
    assert result.returncode == 2, result.stdout + result.stderr
    assert one_line(result) == f"cannot write to {folder}: No space left on device. Set output_root=DIR."
    assert read_record(folder / "result.json").status == "failed"
    again = run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resumed after step {step}" in again.stdout
    assert differences(unbroken, folder) == []


def test_a_signal_is_obeyed_though_its_checkpoint_finds_no_room(run, of, tmp_path):
    """In a sweep too, which would otherwise go on with the next run."""

    result = run("-m", "seed=0,1", fault=told_on_a_full_disk)
    assert result.returncode == 143, result.stdout + result.stderr
    assert "no checkpoint of step 5: No space left on device" in result.stdout
    assert "interrupted at step 5: the same command resumes after step 4" in result.stdout
    assert "1 not started" in result.stdout
    assert read_record(of(tmp_path / "out") / "result.json").status == "interrupted"


def told_on_a_full_disk() -> None:
    strike("flexlora.training.loop:Loop._step", [signal.SIGTERM], number=5)
    no_opening("state.pt", errno.ENOSPC, number=3)


@pytest.mark.slow
def test_a_signal_is_obeyed_though_its_record_finds_no_room(run, of, tmp_path):
    result = run(fault=told_where_no_record_can_be_written)
    assert result.returncode == 130, result.stdout + result.stderr
    assert one_line(result) == "interrupted"
    assert "No space left on device" in result.stdout
    assert not (of(tmp_path / "out") / "result.json").exists()


def told_where_no_record_can_be_written() -> None:
    strike("flexlora.training.loop:Loop._step", [signal.SIGINT], number=5)
    no_opening("result.json", errno.ENOSPC)


PHASES = {
    "reading the data": ("flexlora.tasks:load_task", 1, None),
    "loading the model": ("flexlora.models:load_backbone", 1, None),
    "tokenising": ("flexlora.tasks.tokens:tokenize", 2, None),
    "adapting the model": ("flexlora.methods:build_method", 1, None),
    "evaluating": ("flexlora.training.evaluation:Evaluator._predict", 1, 8),
    "evaluating at the end": ("flexlora.training.evaluation:Evaluator._predict", 2, 12),
    "keeping a checkpoint": ("flexlora.training.checkpoint:Checkpoints.save", 3, 7),
    "saving the adapter": ("peft:PeftModel.save_pretrained", 1, 12),
    "writing the record": ("flexlora.results.record:RunRecord.write", 1, 12),
}


@pytest.mark.parametrize("phase", slow_but({"adapting the model", "evaluating", "writing the record"}, PHASES))
def test_sigterm_in_every_phase(run, of, unbroken, tmp_path, phase):
    place, number, step = PHASES[phase]
    folder = of(tmp_path / "out")
    result = run("task.token_cache=null", fault=partial(strike, place, [signal.SIGTERM], number))
    assert result.returncode == 143, result.stdout + result.stderr
    assert one_line(result) == "interrupted"
    assert "Traceback" not in result.stdout
    if phase != "writing the record":
        assert read_record(folder / "result.json").status == "interrupted"
    assert not (folder / "adapter").exists() or phase == "writing the record"
    assert parts(folder) == []
    again = run("task.token_cache=null")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (f"resumed after step {step}" in again.stdout) == (step is not None)
    assert differences(unbroken, folder) == []
    assert not (folder / "checkpoints").exists()


@pytest.mark.slow
def test_two_signals_while_the_adapter_is_saved(run, of, tmp_path):
    result = run(fault=partial(strike, "peft:PeftModel.save_pretrained", [signal.SIGINT, signal.SIGINT]))
    assert result.returncode == 130, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert run().returncode == 0
    assert read_record(of(tmp_path / "out") / "result.json").status == "done"


def test_a_run_killed_before_it_could_clear_up_is_done_and_cleared(run, of, tmp_path):
    folder = of(tmp_path / "out")
    killed = run(fault=partial(strike, "flexlora.results.folder:RunFolder.drop_checkpoints", [signal.SIGKILL]))
    assert killed.returncode == -signal.SIGKILL
    assert read_record(folder / "result.json").status == "done"
    assert (folder / "checkpoints").exists()
    (folder / ".result.json.x1.part").write_text("{")
    again = run()
    assert (again.returncode, "is finished: skipped" in again.stdout) == (0, True)
    assert not (folder / "checkpoints").exists()
    assert parts(folder) == []


def test_what_is_done_may_lie_where_nothing_can_be_written(run, unbroken, of, read_only, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(unbroken, of(root))
    before = (of(root) / "result.json").read_bytes()
    read_only(root)
    same = run()
    assert (same.returncode, same.stderr) == (0, "")
    assert "is finished: skipped" in same.stdout
    other = run("training.learning_rate=1e-3")
    assert other.returncode == 2
    assert "training.learning_rate: 0.005 → 0.001" in one_line(other)
    new = run("variant=new")
    assert new.returncode == 2
    assert one_line(new).startswith(f"cannot write to {of(root, 'new')}: ")
    assert (of(root) / "result.json").read_bytes() == before


def test_a_file_in_the_place_of_a_folder(run, of, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = run()
    assert result.returncode == 2
    assert one_line(result).startswith(f"cannot write to {of(tmp_path / 'out')}: ")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("what", slow_but({"a file"}, ["a file", "read-only"]))
def test_a_cache_that_cannot_be_written_costs_time_only(run, unbroken, of, read_only, tmp_path, what):
    cache = tmp_path / "cache"
    if what == "a file":
        cache.write_text("mine")
    else:
        cache.mkdir()
        read_only(cache)
    result = run(FLEXLORA_CACHE=str(cache))
    assert (result.returncode, result.stderr) == (0, "")
    assert f"tokens are not cached: cannot write in {cache / 'tokens'}" in result.stdout
    assert "damaged" not in result.stdout
    assert differences(unbroken, of(tmp_path / "out")) == []


def test_tokens_half_kept_by_a_killed_process_are_nobodys(run, unbroken, of, tmp_path):
    cache = tmp_path / "cache"
    killed = run(FLEXLORA_CACHE=str(cache), fault=killed_while_it_keeps_tokens)
    assert killed.returncode == -signal.SIGKILL
    assert [file.suffix for file in (cache / "tokens").iterdir()] == [".part"]
    again = run(FLEXLORA_CACHE=str(cache))
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(list((cache / "tokens").glob("[!.]*.safetensors"))) == len(list((cache / "tokens").iterdir())) == 2
    assert differences(unbroken, of(tmp_path / "out")) == []


@pytest.mark.slow
def test_a_clock_that_goes_backwards(run, unbroken, of, tmp_path):
    """At every look, then by ten years while the run was stopped; what was written last is the oldest by its date."""
    folder = of(tmp_path / "out")
    stopped = run(fault=told_by_a_backward_clock)
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    assert read_record(folder / "result.json").started.startswith("2026-")
    newest = folder / "checkpoints" / "step-000000005"
    for path in [newest, *newest.iterdir()]:
        os.utime(path, (0, 0))
    (folder / ".holder.json").write_text(json.dumps({"pid": 1, "host": "x", "since": "2099-01-01T00:00:00+00:00"}))
    again = run(fault=partial(backward_clock, "2016-01-01"))
    assert (again.returncode, again.stderr) == (0, ""), again.stdout
    assert "resumed after step 5" in again.stdout
    assert differences(unbroken, folder) == []
    record = read_record(folder / "result.json")
    assert record.started.startswith("2015-12-31")
    for seconds in (record.total_seconds, record.train_seconds, record.eval_seconds):
        assert 0 < seconds < 600
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [row["train_seconds"] for row in rows if row["kind"] == "train"]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 600


def told_by_a_backward_clock() -> None:
    backward_clock("2026-06-01")
    strike("flexlora.training.loop:Loop._step", [signal.SIGTERM], number=5)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


def test_checkpoints_that_are_all_damaged_are_passed_over_and_replaced(run, unbroken, of, tmp_path):
    folder = of(tmp_path / "out")
    stop = partial(strike, "flexlora.training.loop:Loop._step", [signal.SIGTERM], 9)
    assert run(fault=stop).returncode == 143
    older, newer = sorted((folder / "checkpoints").iterdir())
    assert (older.name, newer.name) == ("step-000000008", "step-000000009")
    flip(newer / "state.pt")
    (older / "trained.safetensors").write_bytes((older / "trained.safetensors").read_bytes()[:-9])
    (folder / "checkpoints" / "step-000000008 (copy)").mkdir()

    # It begins again, is killed, and finds what it kept since: the damaged ones, though of later steps, are gone.
    again = run(fault=partial(strike, "flexlora.training.loop:Loop._step", [signal.SIGKILL], 6))
    assert again.returncode == -signal.SIGKILL
    assert f"{newer} is damaged (state.pt is not what was written): falling back to {older.name}" in again.stdout
    assert (
        f"{older} is damaged (trained.safetensors is not what was written): there is no other, the run begins again"
        in again.stdout
    )
    assert "resumed" not in again.stdout
    last = run()
    assert last.returncode == 0, last.stdout + last.stderr
    assert "damaged" not in last.stdout
    assert "resumed after step 4" in last.stdout
    assert differences(unbroken, folder) == []
    assert read_record(folder / "result.json").resumed_at == [4]


def test_a_bit_of_a_finished_runs_adapter_is_missed(run, unbroken, tmp_path):
    """A flipped bit is a number like any other, but the run's record knows better."""
    folder = Path(shutil.copytree(unbroken, tmp_path / "given")) / "adapter"
    more = ["method.init_b=0", "method.max_rank=32"]
    fine = run(f"adapter={folder}", *more, "variant=fine")
    assert fine.returncode == 0, fine.stdout + fine.stderr
    flip(folder / "adapter_model.safetensors")
    result = run(f"adapter={folder}", *more)
    assert result.returncode == 2
    assert "adapter_model.safetensors is not what its run wrote" in one_line(result)


def test_a_run_does_not_go_on_with_other_data(run, cola, tmp_path):
    data = Path(shutil.copytree(cola, tmp_path / "data"))
    stop = partial(strike, "flexlora.training.loop:Loop._step", [signal.SIGTERM], 3)
    assert run(f"task.data_dir={data}", fault=stop).returncode == 143
    file = data / "CoLA" / "train.tsv"
    text = file.read_text()
    file.write_text(text.replace("cat", "dog", 1))
    other = run(f"task.data_dir={data}")
    assert other.returncode == 2
    assert one_line(other).startswith("the data is not what it was when the run was stopped")
    file.write_text(text)
    again = run(f"task.data_dir={data}")
    assert (again.returncode, "resumed after step 3" in again.stdout) == (0, True)


@pytest.mark.parametrize(
    ("what", "damage"),
    slow_but(
        {("model", "cut"), ("adapter", "not a number")},
        [(what, damage) for what in ("model", "adapter") for damage in ("cut", "header", "not a number")],
    ),
)
def test_damaged_weights_are_refused(run, unbroken, tiny_bert, tmp_path, what, damage):
    if what == "model":
        folder = Path(shutil.copytree(tiny_bert, tmp_path / "given"))
        weights, key = folder / "model.safetensors", "model.path"
    else:
        folder = Path(shutil.copytree(unbroken / "adapter", tmp_path / "given"))
        weights, key = folder / "adapter_model.safetensors", "adapter"
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        del content[-100:]
    elif damage == "header":
        content[12] ^= 0x80
    else:
        from safetensors.numpy import load, save

        tensors = load(bytes(content))
        name = next(name for name in tensors if "query" in name and tensors[name].dtype == "float32")
        tensors[name] = tensors[name].copy()
        tensors[name].flat[3] = float("nan")
        content = save(tensors, {"format": "pt"})
    weights.chmod(0o644)
    weights.write_bytes(content)
    result = run(f"{key}={folder}")
    assert result.returncode == 2, result.stdout + result.stderr
    assert one_line(result).startswith(f"{key}: ")
    assert str(folder) in one_line(result)
    assert ("query" in one_line(result) and "damaged" in one_line(result)) == (damage == "not a number")
