"""Two real processes over gloo: their run is that of one process on the joint batch, and they leave together.

They are started once and make all their runs in that one start, as a sweep would; only what must end a process, and the
launcher itself, has a start of its own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from joint_run_helpers import (
    PROCESSES,
    assert_equal_to_one_process,
    assert_same_run,
    folder_of,
    run,
    start,
)

from flexlora.results.record import RunRecord, read_record
from flexlora.training import batching

# The runs of two processes that `make test` looks at.
FAST = {"equal", "again", "told in a step", "told in an evaluation", "told and done"}
# Where moments are reset at events, a step is a sign: a large one makes the last digits grow a hundredfold.
GENTLY = "training.learning_rate=1e-3"

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.xdist_group("processes"),  # one worker, or each would start the processes
]


# --- runs in this process ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """61 sentences to train on and 39 to evaluate on: neither is a multiple of what two processes take."""
    from flexlora.testing.small_data import write_cola

    return write_cola(tmp_path_factory.mktemp("glue"), train=61, dev=39)


@pytest.fixture(scope="module")
def plain_bert(tiny_bert, tmp_path_factory) -> Path:
    """`tiny_bert` without dropout, of which each process has its own."""
    import shutil

    folder = tmp_path_factory.mktemp("bert") / "bert"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def command(data, plain_bert) -> Callable[..., list[str]]:
    def build(root: Path, method: str, joint_batch: int = 8, processes: int = 1, *more: str) -> list[str]:
        return [
            "task=glue/cola",
            "model=local",
            f"model.path={plain_bert}",
            f"task.data_dir={data}",
            "training.epochs=3",
            f"training.batch_size={joint_batch // processes}",
            "training.eval_batch_size=8",
            "training.learning_rate=5e-3",
            "training.log_every=1",
            "variant=test",
            f"method={method}",
            f"output_root={root}",
            *more,
        ]

    return build


# --- runs in two processes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(command, tmp_path_factory, request) -> dict[str, Any]:
    """All runs of two processes in one start: their folders and how each run ended, by process.

    The runs that only slow tests look at are left out where no slow test of this file is selected.
    """
    ours = (item for item in request.session.items if item.path == request.path)
    everything = any(item.get_closest_marker("slow") for item in ours)
    folder = tmp_path_factory.mktemp("pair")
    roots = {
        name: folder / name
        for name in ("equal", "told", "disk", "adalora", "sharded", "stopped", "accumulated", "released")
    }
    flexlora = {name: command(root, "flexlora", 8, PROCESSES) for name, root in roots.items()}
    every = "training.checkpoint_every=4"
    missing = command(folder / "missing", "flexlora", 8, PROCESSES, "model.path=nowhere")
    runs: dict[str, tuple[list[str], list[Any] | None]] = {
        "equal": (flexlora["equal"], None),
        "again": (flexlora["equal"], None),
        "adalora": (command(roots["adalora"], "adalora", 8, PROCESSES), None),
        "released": (command(roots["released"], "flexlora_released", 8, PROCESSES, GENTLY), None),
        "missing": (missing, None),
        "told in a step": ([*flexlora["told"], every], ["told", 1, "_step", 6]),
        "told in an evaluation": ([*flexlora["told"], every], ["told", 0, "_predict", 1]),
        "told and done": ([*flexlora["told"], every], None),
        "disk full": ([*flexlora["disk"], every], ["disk", 0, 12]),
        "disk with room": ([*flexlora["disk"], every], None),
        "sharded": ([*flexlora["sharded"], "training.shard_base=true"], ["watched", str(folder / "share")]),
        "accumulated": ([*flexlora["accumulated"], "training.gradient_accumulation=2"], None),
        "stopped": (flexlora["stopped"], ["told", 0, "_step", 6]),
    }
    runs = {name: run for name, run in runs.items() if everything or name in FAST}
    start(folder, list(runs.values()), deadline=400)
    endings = [json.loads((folder / f"endings{rank}.json").read_text()) for rank in range(PROCESSES)]
    return {
        "roots": roots,
        "share": float((folder / "share").read_text(encoding="utf-8")) if everything else None,
        "endings": {name: tuple(found[i] for found in endings) for i, name in enumerate(runs)},
    }


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory) -> Callable[..., Path]:
    """The folder of the run of one process whose batch is the joint one."""
    found: dict[tuple[str, ...], Path] = {}

    def make(method: str, *more: str) -> Path:
        key = (method, *more)
        if key not in found:
            root = tmp_path_factory.mktemp("alone")
            assert run(command(root, method, 8, 1, *more)) == "done"
            found[key] = folder_of(root, method)
        return found[key]

    return make


@pytest.mark.parametrize(
    ("name", "method", "events", "more"),
    [
        ("equal", "flexlora", 10, []),
        pytest.param("adalora", "adalora", 3, [], marks=pytest.mark.slow),
        pytest.param("released", "flexlora_released", 3, [GENTLY], marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one_on_the_joint_batch(pair, alone, name, method, events, more):
    assert pair["endings"][name] == ("done", "done")
    assert_equal_to_one_process(folder_of(pair["roots"][name], method), alone(method, *more), events)


@pytest.mark.slow
def test_a_sharded_base_changes_nothing(pair, alone):
    assert pair["endings"]["sharded"] == ("done", "done")
    assert pair["share"] == pytest.approx(1 / PROCESSES, rel=0.05)
    assert_equal_to_one_process(folder_of(pair["roots"]["sharded"], "flexlora"), alone("flexlora"), 10)


@pytest.mark.slow
def test_accumulated_batches_are_those_of_one_process(pair, alone):
    accumulated = "training.gradient_accumulation=2"
    joint = folder_of(pair["roots"]["accumulated"], "flexlora")
    assert_equal_to_one_process(joint, alone("flexlora", accumulated), 3)


def test_one_process_writes_and_the_record_counts_everything_once(pair, alone):
    folder = folder_of(pair["roots"]["equal"], "flexlora")
    record, single = read_record(folder / "result.json"), read_record(alone("flexlora") / "result.json")
    assert record.status == "done"
    assert record.hardware["processes"] == PROCESSES
    assert record.samples == single.samples == {"train": 61, "evaluation": {"validation": 39}}
    assert record.tokens["real"] == single.tokens["real"]
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    assert sum("rows, 8 optimizer steps an epoch" in line for line in lines) == 1
    assert sum("status" in line for line in lines) == 1
    assert pair["endings"]["again"] == ("skipped", "skipped")


@pytest.mark.slow
def test_a_failure_of_all_processes_is_each_ones_own(pair):
    """The runs after it in the same start show that the sweep went on."""
    for ending in pair["endings"]["missing"]:
        assert ending.startswith("refused: model.path: "), ending


def test_a_signal_to_one_process_makes_all_leave_and_go_on_bit_for_bit(pair):
    number = int(signal.SIGTERM)
    assert pair["endings"]["told in a step"] == (f"interrupted: {number}",) * PROCESSES
    assert pair["endings"]["told in an evaluation"] == (f"interrupted: {number}",) * PROCESSES
    assert pair["endings"]["told and done"] == ("done", "done")
    folder = folder_of(pair["roots"]["told"], "flexlora")
    assert read_record(folder / "result.json").resumed_at == [6, 8]
    assert_same_run(folder, folder_of(pair["roots"]["equal"], "flexlora"))


@pytest.mark.slow
def test_a_disk_full_on_the_main_process_is_told_on_all_and_nothing_is_lost(pair):
    for ending in pair["endings"]["disk full"]:
        assert "No space left on device. Set output_root=DIR." in ending
    assert pair["endings"]["disk with room"] == ("done", "done")
    folder = folder_of(pair["roots"]["disk"], "flexlora")
    assert read_record(folder / "result.json").resumed_at == [8]
    assert_same_run(folder, folder_of(pair["roots"]["equal"], "flexlora"))


@pytest.mark.slow
def test_checkpoints_of_two_processes_are_refused_by_one(pair, command):
    root = pair["roots"]["stopped"]
    assert pair["endings"]["stopped"] == (f"interrupted: {int(signal.SIGTERM)}",) * PROCESSES
    folder = folder_of(root, "flexlora")
    assert read_record(folder / "result.json").status == "interrupted"
    held = sorted((folder / "checkpoints").iterdir())
    said = run(command(root, "flexlora", 8, PROCESSES))
    assert said.startswith("refused: the run was stopped on 2 processes and cannot go on with 1: "), said
    assert sorted((folder / "checkpoints").iterdir()) == held, "the checkpoints are still there"


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_all(command, tmp_path):
    """The other one waits in an exchange for it; the next run of the sweep must not be what it gets."""
    runs = [
        (command(tmp_path, "flexlora", 8, PROCESSES), ["broken", 1, 5]),
        (command(tmp_path / "next", "lora", 8, PROCESSES), None),
    ]
    with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException)):
        start(tmp_path, runs, deadline=120)
    assert not (tmp_path / "next").exists()
    folder = folder_of(tmp_path, "flexlora")
    result = folder / "result.json"
    assert not result.is_file() or read_record(result).status == "failed"


# --- the launcher -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_launcher_passes_a_signal_on_and_the_run_is_kept(command, tmp_path):
    launcher = Path(sys.executable).with_name("accelerate")
    arguments = [item for item in command(tmp_path, "flexlora", 8, PROCESSES) if not item.startswith("training.epochs")]
    line = [str(launcher), "launch", "--multi_gpu", "--num_processes", str(PROCESSES), "--main_process_port", "0"]
    line += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    line += ["--num_cpu_threads_per_process", "1", "-m", "flexlora.cli.run", *arguments, "training.epochs=2000"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    launched = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    metrics = folder_of(tmp_path, "flexlora") / "metrics.jsonl"
    end = time.monotonic() + 200
    try:
        while not metrics.is_file() or len(metrics.read_text(encoding="utf-8").splitlines()) < 12:
            assert launched.poll() is None, launched.communicate()
            assert time.monotonic() < end
            time.sleep(0.1)
        launched.send_signal(signal.SIGTERM)
        stdout, stderr = launched.communicate(timeout=60)
    finally:
        launched.kill()
    assert launched.returncode != 0
    record: RunRecord = read_record(folder_of(tmp_path, "flexlora") / "result.json")
    assert record.status == "interrupted", stdout + stderr
    assert record.steps is not None
    assert (folder_of(tmp_path, "flexlora") / "checkpoints" / f"step-{record.steps:09d}").is_dir()
    assert stderr.count("flexlora-run: interrupted") == 1
    assert stdout.count("finishing the step") == 1


@pytest.mark.parametrize(
    ("variables", "settings", "said"),
    [
        ({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}, (), "accelerate launch --cpu starts one process"),
        ({"ACCELERATE_USE_FSDP": "true"}, (), "take training.shard_base=true"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, (), "take training.shard_base=true"),
        ({}, ("training.shard_base=true",), "training.shard_base=true needs several processes"),
    ],
)
def test_what_a_launcher_would_do_otherwise_is_refused(command, tmp_path, monkeypatch, variables, settings, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert said in run(command(tmp_path, "lora", 8, 1, *settings))


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [2, 3])
def test_joint_batches_are_those_of_one_process(processes):
    """Over several stretches of sorted lengths, and whatever the remainder."""
    for examples in (processes * 4 * 130, processes * 4 * 130 + 5):
        lengths = [(7 * i) % 61 for i in range(examples)]
        alone = batching.epoch_batches(lengths, 4 * processes, seed=3, epoch=2)
        joint = batching.epoch_batches(lengths, 4, seed=3, epoch=2, processes=processes)
        together = [
            [i for batch in joint[first : first + processes] for i in batch]
            for first in range(0, len(joint), processes)
        ]
        assert [sorted(batch) for batch in together] == [sorted(batch) for batch in alone]
