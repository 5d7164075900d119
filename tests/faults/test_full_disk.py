"""A disk without room: one line, an exit code that is not 0, and no run that passes for finished."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from marks import slow_but
from runner_helpers import one_line

from flexlora.results.record import read_record


@pytest.fixture
def small_disk(tmp_path) -> Iterator[callable]:
    """Mounts a file system of so many KiB; skips where that takes rights the tests do not have."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk{kib}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small tmpfs needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


# Pages are of 4 KiB. Of the run below the configuration takes 3 KiB, a checkpoint about 150, the adapter 50.
@pytest.mark.parametrize("kib", slow_but({60}, [8, 60, 200]))
def test_a_full_disk_is_one_line_wherever_it_strikes(small_disk, flexlora_run, arguments, tiny_bert, kib):
    disk = small_disk(kib)
    command = [*arguments, "method=flexlora", f"output_root={disk}"]
    result = flexlora_run(*command)
    assert result.returncode == 2, result.stdout + result.stderr
    assert one_line(result).startswith("cannot write ")
    assert "Traceback" not in result.stdout + result.stderr
    folder = disk / "local" / "glue" / "cola" / tiny_bert.name / "flexlora" / "test" / "seed0"
    if (folder / "result.json").is_file():
        assert read_record(folder / "result.json").status == "failed"
    assert not (folder / "adapter").exists()
    assert not list(folder.rglob("*.part"))


@pytest.mark.slow
def test_a_run_goes_on_once_there_is_room(small_disk, flexlora_run, arguments, tiny_bert):
    """A checkpoint finds room, the next one beside it does not: what was kept is not lost."""
    disk = small_disk(600)
    command = [*arguments, "method=flexlora", f"output_root={disk}", "training.checkpoint_every=2"]
    result = flexlora_run(*command)
    assert result.returncode == 2, result.stdout + result.stderr
    folder = disk / "local" / "glue" / "cola" / tiny_bert.name / "flexlora" / "test" / "seed0"
    kept = sorted((folder / "checkpoints").glob("step-*"))
    assert kept
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    again = flexlora_run(*command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resumed after step {int(kept[-1].name.removeprefix('step-'))}" in again.stdout
    assert read_record(folder / "result.json").status == "done"
