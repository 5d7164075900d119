"""A sweep that is interrupted lists the runs that are finished on the disk as done, whoever finished them."""

import re
import signal
from functools import partial

from fault_helpers import strike

from flexlora.testing.commands import COMMAND, run_command


def listed(stdout: str) -> dict[str, str]:
    """Status by seed."""
    return {found[2]: found[1] for found in re.finditer(r"^  (\w+(?: \w+)?) +flexlora-run .*\bseed=(\d)", stdout, re.M)}


def test_an_interrupted_sweep_lists_what_became_of_every_run(arguments, tmp_path):
    run = partial(run_command, COMMAND, *arguments, "method=linear", "training.max_steps=2", f"output_root={tmp_path}")
    assert run("seed=3").returncode == 0
    dead = tmp_path / ".sweep-of-a-killed-process"
    dead.mkdir()
    (dead / ".lock").touch()

    # The second run has written its record when it is told to stop; the third never began.
    told = partial(strike, "flexlora.results.folder:RunFolder.drop_checkpoints", [signal.SIGTERM], 2)
    stopped = run("-m", "seed=1,2,3,4", fault=told)
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    assert listed(stopped.stdout) == {"1": "done", "2": "done", "3": "skipped", "4": "not started"}
    assert "4 runs: 2 done, 1 skipped, 1 not started" in stopped.stdout
    assert not list(tmp_path.glob(".sweep-*"))
    again = run("-m", "seed=1,2,3,4")
    assert listed(again.stdout) == {"1": "skipped", "2": "skipped", "3": "skipped", "4": "done"}
