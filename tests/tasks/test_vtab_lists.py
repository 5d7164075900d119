"""VTAB-1K's lists: their rows are read, and every kind of error is refused in one line."""

import re
import shutil
from pathlib import Path

import pytest
from vtab_helpers import TASKS, settings_of, write_task

from flexlora.errors import UserError
from flexlora.settings import VtabSplit
from flexlora.tasks import load_task

# Table 10: classes and test images. SmallNORB has nine elevations (VPT's and FacT's code); the table prints 18.
TABLE_10 = {
    "cifar100": ("natural", 100, 10000),
    "caltech101": ("natural", 102, 6084),
    "dtd": ("natural", 47, 1880),
    "oxford_flowers102": ("natural", 102, 6149),
    "oxford_iiit_pet": ("natural", 37, 3669),
    "svhn": ("natural", 10, 26032),
    "sun397": ("natural", 397, 21750),
    "patch_camelyon": ("specialized", 2, 32768),
    "eurosat": ("specialized", 10, 5400),
    "resisc45": ("specialized", 45, 6300),
    "diabetic_retinopathy": ("specialized", 5, 42670),
    "clevr_count": ("structured", 8, 15000),
    "clevr_dist": ("structured", 6, 15000),
    "dmlab": ("structured", 6, 22735),
    "kitti": ("structured", 4, 711),
    "dsprites_loc": ("structured", 16, 73728),
    "dsprites_ori": ("structured", 16, 73728),
    "smallnorb_azi": ("structured", 18, 12150),
    "smallnorb_ele": ("structured", 9, 12150),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_task(tmp_path / "kitti")


def load(folder: Path, **changes: object):
    return load_task(settings_of(**{"data_dir": str(folder.parent), **changes}))


def refusal(folder: Path, **changes: object) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def replace_line(file: Path, number: int, line: str) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[number - 1] = line
    file.write_text("\n".join(lines), encoding="utf-8")


def test_the_tasks_have_the_classes_and_sizes_of_table_10():
    assert set(TASKS) == TABLE_10.keys()
    for name, expected in TABLE_10.items():
        settings = settings_of(name)
        assert (settings.group, settings.num_classes, settings.test_rows) == expected
        assert settings.name == f"vtab/{name}"
        assert (settings.epochs, settings.batch_size) == (100, 32)


def test_the_report_table_has_all_vtab_tasks():
    from flexlora.report.tables import TABLES

    assert {column.task: column.group for column in TABLES["vtab"].columns} == {
        f"vtab/{name}": group for name, (group, *_) in TABLE_10.items()
    }
    assert all(column.metric == "accuracy" for column in TABLES["vtab"].columns)


@pytest.mark.parametrize(
    ("split", "train", "name", "evaluation"),
    [(VtabSplit.train800val200_test, 24, "test", 12), (VtabSplit.train800_val200, 16, "val", 8)],
)
def test_each_split_reads_its_lists(folder, split, train, name, evaluation):
    task = load(folder, split=split)
    assert len(task.train_rows) == train
    assert {name: len(rows) for name, rows in task.evaluation_rows.items()} == {name: evaluation}
    assert task.train_rows.labels[:5] == [0, 1, 2, 3, 0]
    assert task.train_rows.read(0) == (folder / "images/train800/000000.png").read_bytes()
    assert not task.subset
    assert sorted(task.provenance["sizes"].values()) == sorted(
        [[train, 1000 if name == "test" else 800], [evaluation, 711 if name == "test" else 200]]
    )


def test_row_limits_take_the_first_rows(folder):
    task = load(folder, max_train_rows=5, max_eval_rows=3)
    assert task.subset
    assert (len(task.train_rows), len(task.evaluation_rows["test"])) == (5, 3)


def test_validation_rows_are_marked_as_held_out(folder):
    """The benchmark's own validation list and held-out training rows are both marked."""
    task = load(folder, validation_rows=6)
    assert (len(task.train_rows), {n: len(r) for n, r in task.evaluation_rows.items()}) == (18, {"validation": 6})
    assert not set(task.train_rows.names) & set(task.evaluation_rows["validation"].names)
    assert [task.provenance.get("held_out"), task.subset] == [6, True]
    tuning = load(folder, split=VtabSplit.train800_val200)
    assert [tuning.provenance.get("held_out"), tuning.subset] == [8, False]
    assert "held_out" not in load(folder).provenance


def test_data_dir_may_be_the_tasks_folder(folder):
    assert len(load_task(settings_of(data_dir=str(folder))).train_rows) == 24


def test_other_folder_names_of_a_task_are_found(tmp_path):
    write_task(tmp_path / "cifar")
    assert len(load_task(settings_of("cifar100", data_dir=str(tmp_path), num_classes=4)).train_rows) == 24


def test_names_may_contain_spaces_and_lines_may_be_blank(folder):
    shutil.copy(folder / "images/test/000000.png", folder / "images/test/a b.png")
    (folder / "test.txt").write_text("\nimages/test/a b.png 3\r\n\n", encoding="utf-8")
    assert load(folder).evaluation_rows["test"].names == ["images/test/a b.png"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("images/test/000000.png 4", "test.txt line 2: label 4 is not between 0 and 3 (task.num_classes is 4)"),
        ("images/test/000000.png -1", "label -1 is not between 0 and 3"),
        ("images/test/000000.png cat", "label 'cat' is not a number"),
        ("images/test/000000.png", "'images/test/000000.png' is not a path and a class"),
        ("3", "'3' is not a path and a class"),
        ("../kitti/images/test/000000.png 0", "'../kitti/images/test/000000.png' is outside the folder"),
        ("images/../../x.png 0", "is outside the folder"),
        ("/etc/passwd 0", "'/etc/passwd' is outside the folder"),
        ("images/a\0b.png 0", "is outside the folder"),
    ],
)
def test_a_broken_line_is_refused(folder, line, said):
    replace_line(folder / "test.txt", 2, line)
    assert said in refusal(folder)


@pytest.mark.parametrize("what", ["file", "folder", "circle"])
def test_a_link_to_outside_the_folder_is_refused(folder, tmp_path, what):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(folder / "images/test/000000.png", outside / "x.png")
    if what == "file":
        (folder / "images/x.png").symlink_to(outside / "x.png")
        name = "images/x.png"
    elif what == "folder":
        (folder / "images/elsewhere").symlink_to(outside)
        name = "images/elsewhere/x.png"
    else:
        (folder / "images/loop").symlink_to(folder / "images/loop")
        name = "images/loop/x.png"
    replace_line(folder / "test.txt", 1, f"{name} 0")
    assert f"'{name}' is outside the folder" in refusal(folder)


def test_links_inside_the_folder_and_a_linked_folder_are_accepted(folder, tmp_path):
    (folder / "images/again").symlink_to(folder / "images/test")
    replace_line(folder / "test.txt", 1, "images/again/000000.png 0")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/kitti").symlink_to(folder)
    task = load_task(settings_of(data_dir=str(tmp_path / "data")))
    assert task.evaluation_rows["test"].read(0) == (folder / "images/test/000000.png").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_list_is_refused(folder, content):
    (folder / "train800val200.txt").write_bytes(content)
    assert refusal(folder).endswith("train800val200.txt is empty")


def test_a_list_that_is_not_text_is_refused(folder):
    (folder / "test.txt").write_bytes(b"\x89PNG\xff\xfe 0\n")
    assert "test.txt, line 1: not UTF-8" in refusal(folder)


def test_a_missing_list_is_refused(folder):
    (folder / "test.txt").unlink()
    assert refusal(folder).endswith("kitti has no test.txt")


def test_a_missing_folder_is_refused(tmp_path, folder):
    assert "task.data_dir is not set" in refusal(folder, data_dir=None)
    assert "there is no folder" in refusal(folder, data_dir=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "has the file train800val200.txt (the VTAB-1k list" in refusal(folder, data_dir=str(tmp_path / "empty"))


def test_a_wrong_number_of_classes_is_refused(folder):
    said = r"task.num_classes is 6, but the lists in .*kitti have classes 0 to 3: set task.num_classes=4"
    assert re.search(said, refusal(folder, num_classes=6))
    assert "label 3 is not between 0 and 2" in refusal(folder, num_classes=3)


def test_a_class_that_only_another_list_has_is_counted(folder):
    """A thousand rows do not contain all classes of SUN397. Tuning on them needs the same number of classes."""
    for name in ("train800", "val200"):
        lines = (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        (folder / f"{name}.txt").write_text("\n".join(line for line in lines if line[-1] != "3"), encoding="utf-8")
    assert len(load(folder, split=VtabSplit.train800_val200).train_rows) == 12
    (folder / "test.txt").unlink()
    (folder / "train800val200.txt").unlink()
    assert "have classes 0 to 2" in refusal(folder, split=VtabSplit.train800_val200)
