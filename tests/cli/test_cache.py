"""Where what is computed once is kept."""

import os
import tempfile
from pathlib import Path

import pytest

from flexlora.cache import _own_folder, cache_dir, trusted


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FLEXLORA_CACHE", raising=False)
    assert cache_dir() == tmp_path / "xdg" / "flexlora"
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path / "ours"))
    assert cache_dir("tokens", "x") == tmp_path / "ours" / "tokens" / "x"
    assert not (tmp_path / "ours").exists()


def test_the_cache_is_in_the_home_folder_otherwise(monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", "FLEXLORA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == Path(tmp_path) / ".cache" / "flexlora"


@pytest.fixture
def shared_temporary(tmp_path, monkeypatch) -> Path:
    """A temporary folder in which every user can make files, as /tmp."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    _own_folder.cache_clear()
    return folder


def of_another_user(path: Path) -> None:
    if os.getuid():
        pytest.skip("only the superuser gives files away")
    os.lchown(path, 12345, 12345)


def planted_folder(folder: Path) -> None:
    folder.mkdir()
    of_another_user(folder)


def planted_link(folder: Path) -> None:
    folder.parent.with_name("theirs").mkdir()
    folder.symlink_to(folder.parent.with_name("theirs"))
    of_another_user(folder)


def planted_above(folder: Path) -> None:
    folder.mkdir()
    (folder / "flexlora").mkdir()
    of_another_user(folder)


@pytest.mark.parametrize("plant", [planted_folder, planted_link, planted_above])
@pytest.mark.parametrize("named", ["by the variable", "for a user without a home", "by a setting"])
def test_a_folder_that_another_user_made_in_a_shared_one_is_not_used(
    shared_temporary, monkeypatch, plant, named, caplog
):
    place = shared_temporary / f"cache-{os.getuid()}"
    plant(place)
    monkeypatch.delenv("FLEXLORA_CACHE", raising=False)
    if named == "by the variable":
        monkeypatch.setenv("FLEXLORA_CACHE", str(place))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "expanduser", no_home)
    used = [trusted(place / "x") if named == "by a setting" else cache_dir("tokens") for _ in range(2)]
    assert used[0] == used[1]  # the process keeps what it computed
    assert place not in used[0].parents
    own = next(folder for folder in (used[0], *used[0].parents) if folder.name.startswith("flexlora-cache-"))
    assert own.stat().st_mode & 0o077 == 0
    assert caplog.text.count("nothing is kept in the cache: ") == 1


def no_home(path: Path) -> Path:
    if str(path).startswith("~"):
        raise RuntimeError("Could not determine home directory.")
    return path


def test_a_folder_that_every_user_can_write_is_not_used(shared_temporary, monkeypatch):
    monkeypatch.setenv("FLEXLORA_CACHE", str(shared_temporary))
    assert shared_temporary / "tiny" != cache_dir("tiny")


def test_a_folder_of_this_user_in_a_shared_one_is_used(shared_temporary, monkeypatch):
    monkeypatch.setenv("FLEXLORA_CACHE", str(shared_temporary / "mine"))
    assert cache_dir("tiny") == shared_temporary / "mine" / "tiny"
    (shared_temporary / "mine").mkdir()
    assert cache_dir("tiny") == shared_temporary / "mine" / "tiny"
