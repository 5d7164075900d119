"""`scripts/prepare_vtab.py` unpacks archives inside one folder and reports differences from the benchmark."""

import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from archive_helpers import contents, pack, write
from fault_helpers import strike
from hub_helpers import Repository, hub

from flexlora.hub import hub_is_offline
from flexlora.testing.commands import run_command

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_vtab.py"


def in_a_process(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a new process, because huggingface_hub reads its environment variables at import."""
    environment = {"HF_HUB_OFFLINE": "1", **os.environ, **variables}
    words = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.mark.parametrize("name", ["it.zip", "it.tar.gz", "it.tar"])
@pytest.mark.parametrize("root", ["", "./", "vtab-1k/"])
def test_unpacked_files_equal_the_packed_ones(prepare, source, tmp_path, name, root):
    archive = pack(tmp_path / name, source, root)
    code, said, _ = prepare(tmp_path / "data", "--archive", archive, "--tasks", "cifar100,kitti")
    assert code == 0, said
    assert contents(tmp_path / "data") == contents(source)
    assert re.search(r"^cifar100 +800 +200 +1,000 +10,000 +100  ok$", said, re.MULTILINE)
    assert re.search(r"^kitti +800 +200 +1,000 +711 +4  ok$", said, re.MULTILINE)
    assert "32 files, 32 of them written" in said
    # The second run keeps the images and writes the lists again, whatever their size.
    image, names = tmp_path / "data/kitti/images/000000.jpg", tmp_path / "data/kitti/test.txt"
    before = image.stat().st_ino
    names.write_text(names.read_text().replace("0.jpg 0", "0.jpg 3"))
    (tmp_path / "data/kitti/images/000001.jpg").write_bytes(b"short")
    code, said, _ = prepare(tmp_path / "data", "--archive", archive, "--tasks", "cifar100,kitti")
    assert "32 files, 9 of them written" in said
    assert contents(tmp_path / "data") == contents(source)
    assert image.stat().st_ino == before


@pytest.mark.slow
def test_the_prepare_vtab_script_unpacks_an_archive(source, tmp_path):
    archive = pack(tmp_path / "it.zip", source)
    result = in_a_process(tmp_path / "data", "--archive", archive)
    assert (result.returncode, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert "17 of 19 tasks are not the benchmark's" in lines
    assert sum(line.endswith(" ok") for line in lines) == 2
    assert sum(line.endswith("is missing") for line in lines) == 17


def test_only_the_requested_tasks_are_unpacked(prepare, source, tmp_path):
    (source / "__MACOSX/kitti").mkdir(parents=True)
    (source / "__MACOSX/kitti/._test.txt").write_text("a Mac's")
    (source / "README.md").write_text("read me")
    archive = pack(tmp_path / "it.zip", source)
    assert prepare(tmp_path / "data", "--archive", archive, "--tasks", "kitti")[0] == 0
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()] == ["kitti"]
    assert contents(tmp_path / "data/kitti") == contents(source / "kitti")


@pytest.mark.parametrize("name", ["it.zip", "it.tar.gz"])
# The process is killed before a file is renamed, and before a file is written.
@pytest.mark.parametrize("where", ["pathlib:Path.replace", "shutil:copyfileobj"])
def test_a_killed_unpacking_continues(prepare, source, tmp_path, name, where):
    archive = pack(tmp_path / name, source)
    arguments = (tmp_path / "data", "--archive", archive, "--tasks", "cifar100,kitti")
    fault = partial(strike, where, [signal.SIGKILL], number=20)
    killed = run_command(SCRIPT, *map(str, arguments), fault=fault)
    assert killed.returncode == -signal.SIGKILL
    held = contents(tmp_path / "data")
    whole = contents(source)
    assert len(held.keys() & whole.keys()) == 19
    assert all(content == whole[path] for path, content in held.items() if path != ".unpacking.part")
    code, said, _ = prepare(*arguments)
    assert code == 0
    kept = sum(not path.endswith(".txt") for path in held.keys() & whole.keys())
    assert f"32 files, {32 - kept} of them written" in said
    assert contents(tmp_path / "data") == whole


def test_two_processes_may_not_unpack_at_once(prepare, source, tmp_path):
    from filelock import FileLock

    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data/.unpacking.lock"):
        code, _, line = prepare(tmp_path / "data", "--archive", pack(tmp_path / "it.zip", source))
    assert (code, line) == (2, f"another process is unpacking into {tmp_path / 'data'}")


def edit(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new, 1))


FIRST = "images/000000.jpg 0\n"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda task: shutil.rmtree(task), "is missing"),
        (lambda task: (task / "test.txt").unlink(), "has no test.txt"),
        (lambda task: (task / "val200.txt").write_text(""), "val200.txt is empty"),
        (lambda task: edit(task / "test.txt", FIRST, ""), "test.txt has 710 rows, the benchmark's 711"),
        (lambda task: edit(task / "train800.txt", FIRST, 2 * FIRST), "train800.txt has 801 rows, the benchmark's 800"),
        (lambda task: edit(task / "val200.txt", FIRST, ""), "val200.txt has 199 rows, the benchmark's 200"),
        (
            lambda task: edit(task / "train800val200.txt", FIRST, ""),
            "train800val200.txt has 999 rows, the benchmark's 1,000",
        ),
        (lambda task: (task / "images/000003.jpg").unlink(), "1 image is missing: images/000003.jpg"),
        (lambda task: (task / "images/000003.jpg").write_bytes(b""), "1 image is missing: images/000003.jpg"),
        (
            lambda task: shutil.rmtree(task / "images"),
            "12 images are missing: images/000000.jpg, images/000001.jpg, images/000002.jpg, …",
        ),
        (
            lambda task: edit(task / "test.txt", FIRST, FIRST.replace(" 0", " 4")),
            "test.txt line 1: label 4 is not between 0 and 3 (task.num_classes is 4)",
        ),
        (
            lambda task: [edit_all(task / f"{name}.txt") for name in ("train800", "val200", "train800val200", "test")],
            "3 classes, the benchmark has 4",
        ),
        (
            lambda task: edit(task / "test.txt", FIRST, "../x.jpg 0\n"),
            "test.txt line 1: '../x.jpg' is outside the folder",
        ),
    ],
)
def test_tasks_that_differ_from_the_benchmark_are_reported(prepare, tmp_path, damage, said):
    damage(write(tmp_path / "kitti"))
    code, table, _ = prepare(tmp_path, "--check", "--tasks", "kitti")
    assert code == 1
    line = next(line for line in table.splitlines() if line.startswith("kitti"))
    assert line.endswith(f"  {said}") or (said == "has no test.txt" and line.endswith(said))
    assert table.endswith("1 of 1 tasks are not the benchmark's\n")


def edit_all(file: Path) -> None:
    """The highest class is missing."""
    file.write_text(file.read_text().replace(" 3\n", " 2\n"))


def test_the_folder_of_one_task_gives_that_task_only(prepare, tmp_path):
    write(tmp_path / "kitti")
    code, table, _ = prepare(tmp_path / "kitti", "--check", "--tasks", "svhn,kitti")
    assert (code, table.count("is missing"), table.count("  ok\n")) == (1, 1, 1)


def test_wrong_arguments_are_refused(prepare, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_code:
        prepare(tmp_path, "--tasks", "kiti")
    assert exit_code.value.code == 2
    assert "--tasks: there is no task 'kiti'. Did you mean kitti?" in capsys.readouterr().err
    code, _, line = prepare(tmp_path / "nowhere", "--check")
    assert (code, line) == (2, f"there is no folder {tmp_path / 'nowhere'}")


@pytest.mark.slow
def test_an_archive_from_the_hub_is_unpacked(source, tmp_path):
    (tmp_path / "hub").mkdir()
    pack(tmp_path / "hub/vtab-1k.zip", source, "vtab-1k/")
    arguments = [tmp_path / "data", "--tasks", "cifar100,kitti", "--repo"]
    with hub(tmp_path / "home", good=Repository(tmp_path / "hub"), cut=Repository(tmp_path / "hub", "cut")) as found:
        cut = in_a_process(*arguments, "org/cut", **found)
        assert cut.returncode == 2
        *_, line = cut.stderr.strip().splitlines()
        assert line.startswith("prepare_vtab.py: cannot fetch vtab-1k.zip of org/cut: ")
        assert line.endswith("; --archive FILE takes an archive that was downloaded in another way")
        none = in_a_process(*arguments, "org/good", "--file", "other.zip", **found)
        assert none.returncode == 2
        assert none.stderr.startswith("prepare_vtab.py: org/good has no file other.zip (--file NAME, --revision REV);")
        assert none.stderr.count("\n") == 1
        good = in_a_process(*arguments, "org/good", **found)
        assert good.returncode == 0, good.stderr
    assert contents(tmp_path / "data") == contents(source)
    # Without the hub the cached files are enough.
    again = in_a_process(*arguments, "org/good", HF_HOME=str(tmp_path / "home"))
    assert again.returncode == 0, again.stderr


def test_an_unreachable_hub_is_refused(prepare, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub_is_offline.cache_clear()
    code, _, line = prepare(tmp_path / "data", "--repo", "nobody/no-such-data")
    hub_is_offline.cache_clear()
    assert code == 2
    assert line == (
        "nobody/no-such-data is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE=1 is set); "
        "--archive FILE takes an archive that was downloaded in another way"
    )
    assert not (tmp_path / "data").exists()
