"""The record and its folder: whole or absent, one holder, nothing of another run overwritten."""

import json
import math
import re

import pytest

from flexlora.errors import UserError
from flexlora.results.files import JsonLines, to_json, write_text
from flexlora.results.folder import RunFolder, config_hash, variant_name
from flexlora.results.record import RunRecord, read_record

CONFIG = {"task": {"name": "t"}, "training": {"epochs": 2}, "output_root": "here"}


def record(**values) -> RunRecord:
    given = {"status": "done", "error": None, "config": CONFIG, "config_hash": config_hash(CONFIG), **values}
    names = dict.fromkeys(("scale", "task", "model", "method", "variant"), "x")
    return RunRecord(**names, seed=0, data_seed=0, **given)


def test_a_record_comes_back_as_it_was_written(tmp_path):
    written = record(train_loss=0.25, metrics={"last": {"mcc": 0.5}, "best": {"mcc": 0.75}})
    written.write(tmp_path / "result.json")
    assert read_record(tmp_path / "result.json") == written


def test_what_is_missing_is_null(tmp_path):
    record(train_loss=math.nan).write(tmp_path / "result.json")
    values = json.loads((tmp_path / "result.json").read_text())
    assert values["train_loss"] is None
    assert values["flops"] is None
    assert to_json({"a": [math.inf, 1.5], "b": (1, None)}) == '{"a": [null, 1.5], "b": [1, null]}'


@pytest.mark.parametrize(("status", "error"), [("done", "why"), ("failed", None), ("finished", None)])
def test_a_status_and_an_error_that_do_not_fit_are_refused(status, error):
    with pytest.raises(ValueError):
        record(status=status, error=error)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_json_lines_are_readable_while_they_are_written(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write({"step": 1, "loss": math.nan})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}
    lines.close()


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["task=glue/cola", "method=lora", "seed=3", "output_root=x", "model=local", "model.path=/a/b"], "default"),
        (["training.epochs=8", "method.r=4"], "method.r-4+training.epochs-8"),
        (["method.r=4", "training.epochs=8"], "method.r-4+training.epochs-8"),
        (["+method.use_rslora=true"], "method.use_rslora-true"),
    ],
)
def test_a_variant_is_named_after_its_overrides(overrides, name):
    assert variant_name(overrides) == name


def test_an_override_that_has_to_change_leaves_the_others_as_they_are():
    """So that a report finds what the variants share."""
    name = variant_name(["training.epochs=8", "method.ranks_from=/a/folder of/mine", "task.max_train_rows=2000"])
    assert re.fullmatch(
        r"method.ranks_from-afolderofmine-[0-9a-f]{8}\+task.max_train_rows-2000\+training.epochs-8", name
    )
    long = variant_name([f"method.key{place}={'x' * 40}" for place in range(9)])
    assert re.fullmatch(r"method.key0-x{40}\+method.key1-x{40}\+metho-[0-9a-f]{8}", long)


def test_two_variants_never_share_a_name():
    spelled = [["a=b/c"], ["a=b-c"], ["a=b c"], ["a=[b,c]"], ["a=" + "x" * 300], ["a=" + "x" * 301]]
    spelled += [[*overrides, "b=1"] for overrides in spelled] + [["a=b", "c=d"], ["a=b", "c=/d"], ["a=/b", "c=d"]]
    spelled += [[f"key{place}={'x' * 50}" for place in range(9)], [f"key{place}={'x' * 50}" for place in range(8)]]
    names = [variant_name(overrides) for overrides in spelled]
    assert len(set(names)) == len(names)
    assert all(len(name) < 140 and "/" not in name and " " not in name for name in names)


def test_a_hash_does_not_depend_on_order_or_on_where_results_go():
    moved = {"output_root": "there", "training": {"epochs": 2}, "task": {"name": "t"}}
    assert config_hash(moved) == config_hash(CONFIG)
    assert config_hash({**CONFIG, "training": {"epochs": 3}}) != config_hash(CONFIG)


def test_a_held_folder_is_refused_with_its_holder(tmp_path):
    with (
        RunFolder(tmp_path / "run", CONFIG),
        pytest.raises(UserError, match=r"is in use by process \d+ on .* since"),
        RunFolder(tmp_path / "run", CONFIG),
    ):
        pass
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        assert not folder.is_finished()


@pytest.mark.parametrize(("status", "finished"), [("done", True), ("failed", False), ("interrupted", False)])
def test_only_a_done_run_is_finished(tmp_path, status, finished):
    with RunFolder(tmp_path, CONFIG) as folder:
        record(status=status, error=None if finished else "why").write(tmp_path / "result.json")
        assert folder.is_finished() is finished


def test_a_finished_run_of_another_config_is_refused_with_the_keys(tmp_path):
    record().write(tmp_path / "result.json")
    other = {**CONFIG, "training": {"epochs": 3}, "new": 1}
    with (
        RunFolder(tmp_path, other) as folder,
        pytest.raises(UserError, match=r"new: absent → 1, training\.epochs: 2 → 3"),
    ):
        folder.is_finished()


def test_beginning_anew_clears_what_an_unfinished_run_left(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "half.safetensors").write_text("")
    for name in ("result.json", "ranks.jsonl", "predictions-last.parquet", "predictions-best.parquet", "mine.txt"):
        (tmp_path / name).write_text("{}")
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.begin()
    assert sorted(f.name for f in tmp_path.iterdir() if not f.name.startswith(".")) == ["config.yaml", "mine.txt"]
    assert "epochs: 2" in (tmp_path / "config.yaml").read_text()


def test_a_record_that_is_no_record_is_refused(tmp_path):
    (tmp_path / "result.json").write_text('{"status": "done"}')
    with RunFolder(tmp_path, CONFIG) as folder, pytest.raises(UserError, match="is not the record of a run"):
        folder.is_finished()


@pytest.mark.parametrize("content", ["training: [1, 2", "- a\n- b\n", None])
def test_checkpoints_beside_a_config_that_cannot_be_read_are_kept(tmp_path, content):
    """Whether they are this run's cannot be told: nothing already computed is thrown away for it."""
    (tmp_path / "checkpoints" / "step-000000007").mkdir(parents=True)
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml .*move the folder away, or give variant=NAME"):
        RunFolder(tmp_path, CONFIG).can_resume()
    assert (tmp_path / "checkpoints" / "step-000000007").is_dir()
