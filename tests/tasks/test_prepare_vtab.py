"""`scripts/prepare_vtab.py` unpacks archives inside one folder and reports differences from the benchmark."""

import errno
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fault_helpers import strike
from hub_helpers import Repository, hub
from vtab_helpers import settings_of

from flexlora.cli import prepare_vtab
from flexlora.hub import hub_is_offline
from flexlora.testing.commands import run_command

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_vtab.py"
IMAGES = 12


@pytest.fixture
def prepare(monkeypatch, capsys):
    """Run the command in this process. Returns exit code, stdout and the line on stderr, if any."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prepare_vtab.py", *map(str, arguments)])
        code = prepare_vtab.main()
        output = capsys.readouterr()
        lines = output.err.splitlines()
        assert len(lines) == (code not in (0, 1)), output.err
        return code, output.out, lines[0].removeprefix("prepare_vtab.py: ") if lines else ""

    return call


def in_a_process(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a new process, because huggingface_hub reads its environment variables at import."""
    environment = {"HF_HUB_OFFLINE": "1", **os.environ, **variables}
    words = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, check=False)


def write(folder: Path, name: str = "kitti") -> Path:
    """Make a task with the benchmark's number of rows, over a few files that are not images."""
    settings = settings_of(name)
    for number in range(IMAGES):
        image = folder / f"images/{number:06d}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(f"{name} {number}".encode() * 100)
    sizes = {"train800": 800, "val200": 200, "train800val200": 1000, "test": settings.test_rows}
    for split, rows in sizes.items():
        lines = [f"images/{row % IMAGES:06d}.jpg {row % settings.num_classes}\n" for row in range(rows)]
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    """Two tasks, one of them under its alternative name."""
    write(tmp_path / "source/cifar", "cifar100")
    write(tmp_path / "source/kitti")
    return tmp_path / "source"


def pack(archive: Path, folder: Path, root: str = "") -> Path:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in files:
                file.write(path, f"{root}{path.relative_to(folder)}")
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as file:
            for path in files:
                file.add(path, f"{root}{path.relative_to(folder)}")
    return archive


def contents(folder: Path) -> dict[str, bytes]:
    """Every file except the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".unpacking.lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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


def evil_zip(archive: Path, name: str, kind: int = stat.S_IFREG) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        member = zipfile.ZipInfo(name)
        member.external_attr = (kind | 0o644) << 16
        file.writestr(member, "../../../outside")


def evil_tar(archive: Path, name: str, kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(archive, "a") as file:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, "../../../outside", 4 if kind == tarfile.REGTYPE else 0
        file.addfile(member, io.BytesIO(b"evil"))


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../outside", "kitti/images/../../../outside", "/outside", "kitti\\..\\outside"])
def test_members_outside_the_folder_are_refused(prepare, source, tmp_path, kind, name):
    archive = pack(tmp_path / f"it.{kind}", source)
    (evil_zip if kind == "zip" else evil_tar)(archive, name)
    before = contents(tmp_path)
    code, said, line = prepare(tmp_path / "data", "--archive", archive)
    assert (code, said) == (2, "")
    assert line.endswith("leaves the folder: nothing is unpacked")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (evil_zip, stat.S_IFLNK),
        (evil_zip, stat.S_IFBLK),
        (evil_tar, tarfile.SYMTYPE),
        (evil_tar, tarfile.LNKTYPE),
        (evil_tar, tarfile.CHRTYPE),
        (evil_tar, tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_are_refused(prepare, source, tmp_path, make, kind):
    archive = pack(tmp_path / f"it.{'zip' if make is evil_zip else 'tar'}", source)
    make(archive, "kitti/images/link", kind)
    code, _, line = prepare(tmp_path / "data", "--archive", archive)
    assert code == 2
    assert line.endswith("'kitti/images/link' is a link or a device, not a file: nothing is unpacked")
    assert not (tmp_path / "data").exists()


def test_an_existing_link_is_not_followed(prepare, source, tmp_path):
    """Unpacking does not follow a link that the user made in the target folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/kitti").symlink_to(tmp_path / "elsewhere")
    code, _, line = prepare(tmp_path / "data", "--archive", pack(tmp_path / "it.zip", source), "--tasks", "kitti")
    assert code == 2
    assert "is a link that leaves" in line
    assert list((tmp_path / "elsewhere").iterdir()) == []  # no folder is made either


def pax(name: str, **headers: str) -> Callable[[tarfile.TarFile], None]:
    def add(file: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.pax_headers = {key.replace("_", "."): value for key, value in headers.items()}
        file.addfile(member)

    return add


def large_extension(file: tarfile.TarFile) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 21
    file.addfile(member, io.BytesIO(bytes(member.size)))


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (pax("kitti/images/a.jpg", GNU_sparse_size="-1000000000000"), "has -1000000000000 bytes"),
        (pax("kitti/images/a.jpg", size="-512"), "has -512 bytes"),
        (pax("kitti/images/a.jpg", GNU_sparse_size="x"), "is damaged"),
        (pax("kitti/images/a.jpg", GNU_sparse_map="x"), "is damaged"),
        (large_extension, "has 2097152 bytes"),
    ],
)
def test_false_tar_headers_are_refused(prepare, source, tmp_path, add, said):
    archive = pack(tmp_path / "it.tar", source)
    with tarfile.open(archive, "a", format=tarfile.PAX_FORMAT) as file:
        add(file)
    code, _, line = prepare(tmp_path / "data", "--archive", archive)
    assert (code, line.count("\n")) == (2, 0)
    assert said in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_an_unsupported_compression_is_refused(prepare, source, tmp_path, method):
    archive = pack(tmp_path / "it.zip", source)
    with zipfile.ZipFile(archive, "a", method) as file:
        file.writestr("kitti/images/a.jpg", bytes(10**6))
    code, _, line = prepare(tmp_path / "data", "--archive", archive)
    assert code == 2
    assert "'kitti/images/a.jpg' is not compressed with deflate" in line


def test_a_zip_with_an_undecodable_name_is_refused(prepare, source, tmp_path):
    archive = pack(tmp_path / "it.zip", source)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("kitti/images/\u00e9.jpg", b"")
    archive.write_bytes(archive.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    code, _, line = prepare(tmp_path / "data", "--archive", archive)
    assert code == 2
    assert "is damaged" in line


def test_an_archive_file_named_like_the_task_folder_is_ignored(prepare, source, tmp_path):
    archive = pack(tmp_path / "it.zip", source, "vtab-1k/")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("vtab-1k", b"")
    code, _, _ = prepare(tmp_path / "data", "--archive", archive, "--tasks", "kitti")
    assert code != 2
    assert (tmp_path / "data/kitti/test.txt").is_file()


def test_a_tar_whose_first_name_looks_like_a_zip_is_unpacked(prepare, source, tmp_path):
    archive = tmp_path / "it.tar"
    with tarfile.open(archive, "w") as file:
        file.addfile(tarfile.TarInfo("PK.txt"))
        file.add(source, ".")
    prepare(tmp_path / "data", "--archive", archive, "--tasks", "kitti")
    assert (tmp_path / "data/kitti/test.txt").is_file()


def test_unknown_homes_and_too_long_names_are_reported(prepare, source, tmp_path):
    for words in (["~nobody-of-that-name/x", "--check"], [tmp_path / "data", "--archive", "~nobody-of-that-name/x"]):
        code, _, line = prepare(*words)
        assert code == 2
        assert "~nobody-of-that-name" in line
    prepare(tmp_path / "data", "--archive", pack(tmp_path / "it.zip", source), "--tasks", "kitti")
    with (tmp_path / "data/kitti/test.txt").open("a") as file:
        file.write(f"images/{'a' * 300}.jpg 0\n")
    code, out, _ = prepare(tmp_path / "data", "--check", "--tasks", "kitti")
    assert code == 1
    assert "File name too long" in out


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_with_too_much_content_is_refused(prepare, source, tmp_path, kind):
    archive = pack(tmp_path / f"it.{kind}", source)
    if kind == "zip":
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr("kitti/images/big.jpg", "x")
            file.filelist[-1].file_size = 3 * 10**12
    else:
        with tarfile.open(archive, "a") as file:
            member = tarfile.TarInfo("kitti/images/big.jpg")
            member.size = 3 * 10**12
            file.fileobj.seek(file.offset)
            file.fileobj.write(member.tobuf())
    code, _, line = prepare(tmp_path / "data", "--archive", archive)
    assert code == 2
    assert re.search(r"has 0\.\d\d MB and claims to hold 3000\.\d\d GB or more: not unpacked$", line)


def test_a_member_longer_than_its_header_says_is_not_written(prepare, source, tmp_path):
    archive = tmp_path / "it.zip"
    with zipfile.ZipFile(pack(archive, source), "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("kitti/images/zeros.jpg", bytes(10**7))
        file.filelist[-1].file_size = 100
    code, _, line = prepare(tmp_path / "data", "--archive", archive, "--tasks", "kitti")
    assert code == 2
    assert "is damaged" in line
    assert "kitti/images/zeros.jpg" not in contents(tmp_path / "data")
    assert ".unpacking.part" not in contents(tmp_path / "data")


def test_a_too_small_disk_is_refused(prepare, source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 50_000))
    code, _, line = prepare(tmp_path / "data", "--archive", pack(tmp_path / "it.zip", source), "--tasks", "kitti")
    assert code == 2
    # 26 blocks: 12 images of one each, and lists of 16,000, 4,000, 20,000 and 14,220 bytes.
    assert line.endswith("data has 0.05 MB free, unpacking needs 0.11 MB")


def test_a_full_disk_is_refused_in_one_line(prepare, source, tmp_path, monkeypatch):
    archive = pack(tmp_path / "it.zip", source)
    copy, copied = shutil.copyfileobj, 0

    def until_it_is_full(*arguments):
        nonlocal copied
        copied += 1
        if copied > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", until_it_is_full)
        code, _, line = prepare(tmp_path / "data", "--archive", archive, "--tasks", "kitti")
    assert code == 2
    assert line == f"cannot unpack {archive}: No space left on device. The same command continues."
    assert len(contents(tmp_path / "data")) == 5
    assert prepare(tmp_path / "data", "--archive", archive, "--tasks", "kitti")[0] == 0


@pytest.mark.parametrize("name", ["it.zip", "it.tar.gz", "it.tar"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9])
def test_truncated_archives_are_refused(prepare, source, tmp_path, name, share):
    archive = pack(tmp_path / name, source)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    code, _, line = prepare(tmp_path / "data", "--archive", archive, "--tasks", "kitti")
    assert code == 2
    assert f"{archive} is damaged" in line


def test_an_archive_with_a_changed_byte_is_refused(prepare, source, tmp_path):
    archive = tmp_path / "it.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path, content in contents(source).items():
            file.writestr(path, content)
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"kitti 7kitti 7", b"kitti 7kitti 8", 1))
    code, _, line = prepare(tmp_path / "data", "--archive", archive, "--tasks", "kitti")
    assert code == 2
    assert "is damaged or is not a zip or tar archive: Bad CRC-32 for file 'kitti/images/000007.jpg'" in line
    assert "kitti/images/000007.jpg" not in contents(tmp_path / "data")


def test_a_file_that_is_not_an_archive_is_refused(prepare, source, tmp_path):
    page = tmp_path / "page.zip"
    page.write_text("<html>sign in</html>")
    for archive, said in (
        (page, "is damaged or is not a zip or tar archive"),
        (tmp_path / "nowhere.zip", "nowhere.zip: No such file or directory"),
        (tmp_path, f"{tmp_path}: Is a directory"),
        (pack(tmp_path / "kitti.zip", source / "kitti"), "has no <task>/train800val200.txt of caltech101, cifar,"),
    ):
        code, _, line = prepare(tmp_path / "data", "--archive", archive)
        assert code == 2
        assert said in line
    shutil.copytree(source, source / "copy")
    code, _, line = prepare(tmp_path / "data", "--archive", pack(tmp_path / "twice.zip", source))
    assert (code, line.endswith("twice.zip has tasks in several folders: ., copy")) == (2, True)
    assert not (tmp_path / "data").exists()


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
        assert line.endswith("; --archive FILE takes one fetched by other means")
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
        "--archive FILE takes one fetched by other means"
    )
    assert not (tmp_path / "data").exists()
