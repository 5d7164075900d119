"""State belongs to what it was saved with and not to the place where it is found: folders of runs, and caches."""

import importlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runner_helpers import one_line

from flexlora.errors import UserError
from flexlora.results.folder import RunFolder
from flexlora.results.record import read_record
from flexlora.tasks.image_lists import ImageRows
from flexlora.tasks.images import Form, ImageCache
from flexlora.tasks.tokens import Tokens
from flexlora.tasks.tokens import _read as read_tokens
from flexlora.tasks.tokens import _write as write_tokens
from flexlora.testing.commands import COMMAND, run_command
from flexlora.tiny.model_cache import ensure, is_whole


def moved_at_a_step(folder: Path, number: int) -> None:
    """The folder of the run is moved away after so many steps, and another process begins the run again there."""
    loop = importlib.import_module("flexlora.training.loop").Loop
    step = loop._step

    def and_move(self, *arguments):
        step(self, *arguments)
        if self.outcome.steps == number:
            folder.rename(folder.with_name("moved"))
            folder.mkdir()
            (folder / ".lock").touch()
            (folder / ".holder.json").write_text("{}")

    loop._step = and_move


def test_a_run_whose_folder_is_moved_away_writes_nothing_into_the_new_one(arguments, tiny_bert, tmp_path):
    line = [
        *arguments,
        "method=linear",
        "training.max_steps=8",
        "training.checkpoint_every=2",
        f"output_root={tmp_path}",
    ]
    folder = tmp_path / "local" / "glue" / "cola" / tiny_bert.name / "linear" / "test" / "seed0"
    result = run_command(COMMAND, *line, fault=partial(moved_at_a_step, folder, 5))
    assert result.returncode == 2, result.stdout + result.stderr
    assert one_line(result).startswith(f"{folder} was moved or deleted while the run was using it")
    assert sorted(path.name for path in folder.iterdir()) == [".holder.json", ".lock"]
    shutil.rmtree(folder)
    folder.with_name("moved").rename(folder)
    again = run_command(COMMAND, *line)
    assert "resumed after step 4" in again.stdout
    assert read_record(folder / "result.json").status == "done"


def test_a_lock_that_was_replaced_is_not_held(tmp_path):
    with RunFolder(tmp_path / "run", {}) as folder:
        folder.require_held()
        (tmp_path / "run" / ".lock").unlink()
        with pytest.raises(UserError, match="was moved or deleted"):
            folder.require_held()
        with RunFolder(tmp_path / "run", {}) as other:
            other.require_held()
            with pytest.raises(UserError, match="was moved or deleted"):
                folder.require_held()


# The hashes of files: tests/results/test_finished_runs.py. The list of methods is named by a hash of all its facts.
def test_tokens_under_another_name_are_made_again(tmp_path):
    write_tokens(tmp_path / "a.safetensors", Tokens({"input_ids": np.zeros(3, np.uint8)}, np.array([0, 3])))
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert read_tokens(tmp_path / "a.safetensors") is not None
    assert read_tokens(tmp_path / "b.safetensors") is None


def test_images_under_another_name_are_decoded_again(tmp_path):
    rows = []
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{name}.png")
        rows.append(ImageRows([name], [tmp_path / f"{name}.png"], [0]))
    cache = ImageCache(tmp_path / "cache", Form(4, 4, "bicubic"))
    entries = []
    for row in rows:
        before = set((tmp_path / "cache").glob("*.uint8"))
        cache.images(row)
        entries += set((tmp_path / "cache").glob("*.uint8")) - before
    shutil.copy(entries[0], entries[1])
    images, _ = cache.images(rows[1])
    assert images[0, :, 0, 0].tolist() == [0, 0, 255]


def test_a_small_model_under_another_name_is_made_again(tmp_path):
    ensure(tmp_path / "bert-1", "bert", lambda part: (part / "weights").write_text("1"))
    shutil.copytree(tmp_path / "bert-1", tmp_path / "bert-2")
    assert is_whole(tmp_path / "bert-1")
    assert not is_whole(tmp_path / "bert-2")
    assert json.loads((tmp_path / "bert-1" / "sha256.json").read_text())["name"] == "bert-1"
