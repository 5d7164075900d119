"""Archives that are unsafe, damaged or too large are refused, and write nothing outside their folder."""

import errno
import io
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_helpers import contents, pack


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
        (tmp_path, f"{tmp_path}: it is a folder, not a regular file"),
        (pack(tmp_path / "kitti.zip", source / "kitti"), "has no <task>/train800val200.txt of caltech101, cifar,"),
    ):
        code, _, line = prepare(tmp_path / "data", "--archive", archive)
        assert code == 2
        assert said in line
    shutil.copytree(source, source / "copy")
    code, _, line = prepare(tmp_path / "data", "--archive", pack(tmp_path / "twice.zip", source))
    assert (code, line.endswith("twice.zip has tasks in several folders: ., copy")) == (2, True)
    assert not (tmp_path / "data").exists()
