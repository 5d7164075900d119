"""A power cut at any moment loses nothing that was said to be kept: the record, what it vouches for, a checkpoint."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from power_helpers import record_disk, states

from flexlora.results.checkpoint_files import checkpoint_folders, verify
from flexlora.results.files import JsonLines
from flexlora.results.folder import RunFolder
from flexlora.results.record import read_record
from flexlora.results.whole import look
from flexlora.testing.commands import COMMAND, run_command


@pytest.fixture(scope="module")
def recorded(arguments, tmp_path_factory) -> tuple[Path, Path]:
    """The output_root of a run with rank events and checkpoints, and the log of all that it wrote and synced."""
    root, log = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("log")
    rest = [item for item in arguments if not item.startswith("training.epochs")]
    more = ["training.max_steps=9", "training.checkpoint_every=2", "training.log_every=2", "training.eval_every=4"]
    windows = ["schedule=absolute", "method.tinit=1", "method.tfinal=1", "method.deltaT=2", "method=flexlora"]
    line = [*rest, *more, *windows, f"output_root={root}"]
    result = run_command(COMMAND, *line, fault=partial(record_disk, root, log))
    assert result.returncode == 0, result.stdout + result.stderr
    return root, log


def newest_whole_checkpoint(run: Path) -> int | None:
    """The step of the checkpoint that a run in this folder would continue from."""
    import torch

    for step, folder in checkpoint_folders(run).items():
        try:
            verify(folder)
        except (OSError, ValueError):
            continue
        positions = torch.load(folder / "state.pt", weights_only=True)["files"]
        for name, position in positions.items():
            JsonLines(run / f"{name}.jsonl", position).close()  # a ValueError here would refuse the run for ever
        return step
    return None


def test_no_moment_of_a_power_cut_loses_what_was_kept(recorded, tmp_path):
    root, log = recorded
    (whole,) = (record.parent for record in root.rglob("result.json"))
    config = OmegaConf.to_container(OmegaConf.load(whole / "config.yaml"))
    weights = read_record(whole / "result.json").adapter_sha256
    moments, finished, kept, steps = 0, 0, -1, set()
    for what, lost, folder in states(log, tmp_path):
        moments += 1
        run = folder / whole.relative_to(root)
        where = f"{lost} lost after: {what}"
        done = RunFolder(run, config).is_finished()
        step = None
        if done:
            finished += 1
            record = read_record(run / "result.json")
            assert look(run, record).damaged == [], where
            assert record.adapter_sha256 == weights
        elif RunFolder(run, config).can_resume():
            step = newest_whole_checkpoint(run)
        assert done or step is not None or kept < 0, f"what was kept is gone, {where}"
        if lost == "names" and not done:
            assert (step or -1) >= kept, f"an older checkpoint than step {kept}, {where}"
            kept = step or -1
            steps.add(kept)
        shutil.rmtree(folder)
    assert moments > 100
    assert finished > 0
    assert steps - {-1} == {2, 4, 6, 8, 9}  # each checkpoint was on the disk before the next one
