"""What a killed writer leaves is deleted by the next one, and every file has the mode of the user's umask."""

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flexlora.cli.sweep import Journal
from flexlora.results import stamps as stamps_module
from flexlora.results.files import replacing, write_text
from flexlora.results.folder import RunFolder
from flexlora.results.record import Ending
from flexlora.results.stamps import stamp
from flexlora.tasks.image_lists import ImageRows
from flexlora.tasks.images import Form, ImageCache
from flexlora.tasks.tokens import Tokens
from flexlora.tasks.tokens import _write as write_tokens
from flexlora.tiny.model_cache import ensure
from flexlora.training.checkpoint import Checkpoints
from flexlora.training.weights import save_adapter


def file(folder: Path, name: str) -> None:
    write_text(folder / name, "text")


def tokens(folder: Path, name: str) -> None:
    arrays = np.zeros(3, np.uint8)
    write_tokens(folder / f"{name}.safetensors", Tokens({"input_ids": arrays}, np.array([0, 3])))


def images(folder: Path, name: str) -> None:
    source = folder.with_name(f"{name}.png")
    Image.new("RGB", (4, 4), (len(name), 0, 0)).save(source)
    ImageCache(folder, Form(4, 4, "bicubic")).images(ImageRows([name], [source], [0]))


def build(part: Path) -> None:
    save_file({"weight": torch.zeros(3)}, part / "model.safetensors")


def small_model(folder: Path, name: str) -> None:
    ensure(folder / name, name, build)


class Saves:
    """A method that saves as PEFT does: safetensors makes files that only this user can read."""

    def save(self, model: object, part: Path) -> None:
        build(part)
        (part / "experts").mkdir()
        build(part / "experts")


def adapter(folder: Path, name: str) -> None:
    with RunFolder(folder, {}):
        save_adapter(Saves(), None, folder)


def checkpoint(folder: Path, name: str) -> None:
    with RunFolder(folder, {}):
        Checkpoints(folder).save(len(name), {"weight": torch.zeros(3)}, {})


def hashes(folder: Path, name: str) -> None:
    source = folder.with_name(name)
    source.write_text("text")
    stamp(source)


def sweep(folder: Path, name: str) -> None:
    journal = Journal(folder / f".sweep-{name}")
    journal.begin()
    journal.write((name,), Ending("done"))
    journal.end()


WRITERS = [file, tokens, images, small_model, adapter, checkpoint, hashes, sweep]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to write in, which is a cache too. The modes of the temporary folder above are not looked at."""
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setenv("FLEXLORA_CACHE", str(made))
    monkeypatch.setattr(stamps_module, "KEPT_FROM", 0)
    return made


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def killed_in(write: Callable[[Path, str], None], folder: Path) -> None:
    """Run `write` in a process that is killed when it moves a whole file to its place. No other way leaves parts."""
    process = os.fork()
    if process == 0:
        Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        write(folder, "first")
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])


def left(folder: Path) -> list[str]:
    names = (path.name for path in folder.rglob("*"))
    return [name for name in names if name.endswith((".part", ".tmp")) or name.startswith((".tmp", ".sweep-"))]


@pytest.mark.parametrize("write", WRITERS)
def test_the_next_writer_deletes_what_a_killed_one_left(folder, write):
    killed_in(write, folder)
    assert left(folder)
    write(folder, "the second")
    assert left(folder) == []


@pytest.mark.parametrize("mask", [0o077, 0o026, 0o002])
@pytest.mark.parametrize("write", WRITERS)
def test_every_file_has_the_mode_of_the_umask(folder, write, mask):
    with umask(mask):
        write(folder, "name")
    for path in folder.rglob("*"):
        if path.name.endswith(".lock"):  # filelock's own: empty
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        assert oct(mode) == oct((0o777 if path.is_dir() else 0o666) & ~mask), path


def test_what_is_being_written_is_left_alone(folder):
    with replacing(folder / "first") as part:
        part.write_text("half")
        write_text(folder / "second", "text")
        assert part.exists()
        foreign = folder / ".video.a1b2c3.part"
        foreign.write_text("of another program")
        write_text(folder / "third", "text")
    assert sorted(path.name for path in folder.iterdir()) == [".video.a1b2c3.part", "first", "second", "third"]
    assert (folder / "first").read_text() == "half"
