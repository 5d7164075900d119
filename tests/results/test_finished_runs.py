"""A finished run is skipped only while every file of its record, and every file that it read, is what it was."""

import json
import os
import shutil
from pathlib import Path

import pytest

from flexlora.cli.doctor import main
from flexlora.doctor.tree_check import check_tree
from flexlora.errors import UserError
from flexlora.results import stamps as stamps_module
from flexlora.results.folder import RunFolder, config_hash
from flexlora.results.record import INPUTS, RunRecord, read_record
from flexlora.results.stamps import folder_stamp, stamps
from flexlora.results.whole import VOUCHED, vouched_files

CONFIG = {"task": {"name": "t"}, "seed": 0}
FILES = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", *VOUCHED)
READ = {group: "images/train/1.png" if group == "images" else f"{group}.json" for group in INPUTS}


def write_finished_run(root: Path) -> tuple[Path, Path]:
    """Write a finished run and the files that it read; return both folders."""
    run, read = root / "runs" / "seed0", root / "read"
    for folder, names in ((run, FILES), (read, READ.values())):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"the content of {name}")
    inputs = {group: stamps([read / name]) for group, name in READ.items() if group != "images"}
    images = (read / READ["images"]).parent
    names = dict.fromkeys(("scale", "task", "model", "method", "variant"), "x")
    record = RunRecord(
        **names, status="done", error=None, config=CONFIG, config_hash=config_hash(CONFIG), seed=0, data_seed=0,
        files=vouched_files(run), inputs=inputs | {"images": {str(images): folder_stamp(images)}},
    )  # fmt: skip
    record.write(run / "result.json")
    return run, read


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # opening it would wait for a writer


DAMAGE = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:9]),
    "flipped": flip,
    "a pipe": become_a_pipe,
}


@pytest.fixture
def finished(tmp_path) -> tuple[Path, Path]:
    return write_finished_run(tmp_path)


def test_an_untouched_run_is_finished_and_so_is_its_copy(finished, tmp_path):
    run, read = finished
    assert RunFolder(run, CONFIG).finished() == []
    copy = shutil.copytree(run, tmp_path / "copy")  # with other times of change
    shutil.move(shutil.copytree(read, tmp_path / "read2"), tmp_path / "gone")
    assert RunFolder(copy, CONFIG).finished() == []
    assert str(check_tree(tmp_path / "runs")).endswith("every finished run is what its record says")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_the_run_is_refused(finished, name, damage):
    run, _ = finished
    DAMAGE[damage](run / name)
    with pytest.raises(UserError, match=rf"is finished, but {name} .*Move the folder away .*variant=NAME"):
        RunFolder(run, CONFIG).is_finished()
    report = check_tree(run.parent)
    assert not report.is_whole
    assert f"✗ seed0: {name} " in str(report)


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - {"deleted"}))
@pytest.mark.parametrize("group", [group for group in INPUTS if group not in ("images", "ranks")])
def test_another_file_in_the_place_of_one_that_the_run_read_is_refused(finished, group, damage):
    run, read = finished
    DAMAGE[damage](read / READ[group])
    with pytest.raises(UserError, match=rf"is finished, but its .* changed since: .*{READ[group]} "):
        RunFolder(run, CONFIG).is_finished()
    assert READ[group] in str(check_tree(run.parent))
    assert not check_tree(run.parent).is_whole


@pytest.mark.parametrize("group", INPUTS)
def test_a_file_that_is_gone_is_a_line_and_the_run_stays_finished(finished, group):
    run, read = finished
    shutil.rmtree(read / "images") if group == "images" else (read / READ[group]).unlink()
    (line,) = RunFolder(run, CONFIG).finished()
    assert "cannot be compared: there is no " in line
    report = check_tree(run.parent)
    assert (report.is_whole, "! seed0: its " in str(report)) == (True, True)


@pytest.mark.parametrize("group", ["images", "ranks"])
def test_what_only_the_task_or_the_method_can_compare_is_a_line(finished, group):
    run, read = finished
    flip(read / READ[group])
    (line,) = RunFolder(run, CONFIG).finished()
    assert "images in " in line or "its source of ranks changed since" in line


def test_a_content_that_changed_behind_its_time_is_found_where_everything_is_read(finished, monkeypatch):
    """As by a fault of the disk: neither size nor time of change tells of it."""
    run, _ = finished
    record = read_record(run / "result.json")
    flip(run / FILES[0])
    record.files[FILES[0]]["ctime_ns"] = (run / FILES[0]).stat().st_ctime_ns
    record.write(run / "result.json")
    assert RunFolder(run, CONFIG).is_finished()
    assert f"✗ seed0: {FILES[0]} has other content" in str(check_tree(run.parent))


def test_a_run_that_is_damaged_but_has_a_checkpoint_is_not_finished(finished, caplog):
    run, _ = finished
    (run / "checkpoints" / "step-000000004").mkdir(parents=True)
    assert RunFolder(run, CONFIG).is_finished()
    (run / FILES[0]).write_bytes(b"")
    assert not RunFolder(run, CONFIG).is_finished()
    assert f"is not whole: {FILES[0]} is empty. Its checkpoint is used." in caplog.text


def test_a_large_file_is_read_once_while_it_stays_the_same(finished, monkeypatch, tmp_path):
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stamps_module, "KEPT_FROM", 1)
    read: list[str] = []
    sha256_of = stamps_module.file_sha256
    monkeypatch.setattr(stamps_module, "file_sha256", lambda path: read.append(path.name) or sha256_of(path))
    run, _ = finished
    file = run / FILES[0]
    first = stamps([file])
    assert (stamps([file]), read) == (first, [file.name])
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    shutil.copy(kept, tmp_path / "of-another-file.json")
    flip(file)
    assert stamps([file]) != first
    assert len(read) == 2
    other = run / FILES[1]
    before = set((tmp_path / "cache" / "hashes").iterdir())
    stamps([other])
    (own,) = set((tmp_path / "cache" / "hashes").iterdir()) - before
    shutil.copy(tmp_path / "of-another-file.json", own)  # an entry counts for the file that it names
    right = stamps([other])[str(other)]["sha256"]
    assert right == sha256_of(other)


@pytest.mark.parametrize(
    "forged",
    [
        {"files": {"../../x": {"bytes": 1, "ctime_ns": 1, "sha256": "x"}}},
        {"files": {"/etc/passwd": {"bytes": 1, "ctime_ns": 1, "sha256": "x"}}},
        {"files": {"a": {"bytes": "1", "ctime_ns": 1, "sha256": "x"}}},
        {"files": {"a": None}},
        {"inputs": {"data": ["a"]}},
        {"inputs": {"other": {}}},
        {"inputs": {"model": {"a": {"bytes": 1}}}},
    ],
)
def test_a_forged_stamp_is_refused_as_a_broken_record(finished, forged):
    run, _ = finished
    values = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(values | forged))
    with pytest.raises(UserError, match=r"is not the record of a run: its '(files|inputs)' "):
        RunFolder(run, CONFIG).is_finished()
    assert not check_tree(run.parent).is_whole


def test_a_tree_without_runs_is_refused(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"there (are no runs|is no folder)"):
            check_tree(root)


@pytest.mark.parametrize("words", [["{root}"], ["outputs", "{root}"]])
def test_the_doctor_checks_a_tree(finished, words, monkeypatch, capsys):
    run, _ = finished
    monkeypatch.setattr("sys.argv", ["flexlora-doctor", *(word.format(root=run.parent) for word in words)])
    for damaged, code in ((False, 0), (True, 1)):
        if damaged:
            (run / FILES[0]).unlink()
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == code
        assert capsys.readouterr().out.startswith(f"1 run in {run.parent}: 1 done\n")
    monkeypatch.setattr("sys.argv", ["flexlora-doctor", "outputs", "nowhere"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == "flexlora-doctor: there is no folder nowhere: give the output_root of your runs\n"
