"""The classic GLUE download: its files are read, and every kind of broken file is refused in one line."""

import dataclasses
from pathlib import Path

import pytest
from compose_helpers import settings_of_run
from glue_helpers import settings_of

from flexlora.errors import UserError
from flexlora.settings import GlueTask, TsvData
from flexlora.tasks import Split, load_task
from flexlora.tasks.glue import glue
from flexlora.tasks.glue_tsv import read_tsv
from flexlora.tasks.rows import Rows
from flexlora.testing.small_data import write_cola


@pytest.fixture(scope="module")
def settings() -> GlueTask:
    """The composed settings of `task=glue/cola`."""
    return settings_of_run("task=glue/cola", "method=lora").task


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_cola_is_read_without_header_and_without_quoting(settings, tmp_path):
    path = write(tmp_path / "train.tsv", b'gj04\t1\t\t"To be," he said.\nks08\t0\t*\tHe "am here.\n')
    rows = read_tsv(path, settings)
    assert rows.texts == (['"To be," he said.', 'He "am here.'],)
    assert rows.labels == [1, 0]


def test_only_a_newline_ends_a_row(settings, tmp_path):
    text = "one\u2028two\x85three\x0bfour"
    path = write(tmp_path / "train.tsv", f"a\t1\t\t{text}\nb\t0\t*\tfive".encode())
    assert read_tsv(path, settings).texts == ([text, "five"],)


def test_windows_line_ends_and_a_byte_order_mark_are_removed(settings, tmp_path):
    path = write(tmp_path / "train.tsv", b"\xef\xbb\xbfa\t1\t\tone\r\nb\t0\t*\ttwo\r\n")
    rows = read_tsv(path, settings)
    assert rows.texts == (["one", "two"],)


def test_a_header_names_columns_and_labels_are_texts(settings, tmp_path):
    """The other tasks' YAML files need no code of their own: here RTE's layout and STS-B's float labels."""
    files = {"validation": "dev.tsv"}
    layout = TsvData("RTE", "train.tsv", files, True, ["sentence1", "sentence2"], "label", None, 0)
    rte = dataclasses.replace(settings, labels=["entailment", "not_entailment"], tsv=layout)
    path = write(tmp_path / "r.tsv", b"index\tsentence1\tsentence2\tlabel\n0\tA b.\tC.\tnot_entailment\n")
    rows = read_tsv(path, rte)
    assert (rows.texts, rows.labels) == ((["A b."], ["C."]), [1])
    stsb = dataclasses.replace(rte, num_labels=1, labels=[])
    path = write(tmp_path / "s.tsv", b"sentence1\tsentence2\tlabel\nA\tB\t3.25\n")
    assert read_tsv(path, stsb).labels == [3.25]
    with pytest.raises(UserError, match=r"s.tsv, line 2: label 'x' is not a number"):
        read_tsv(write(tmp_path / "s.tsv", b"sentence1\tsentence2\tlabel\nA\tB\tx\n"), stsb)
    with pytest.raises(UserError, match=r"line 1: there is no column 'label'. There are: sentence1, sentence2"):
        read_tsv(write(tmp_path / "s.tsv", b"sentence1\tsentence2\nA\tB\n"), stsb)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\t1\t\tone\nb\t0\ttwo\n", r"train.tsv, line 2: 3 tab-separated columns where 4 are expected"),
        (b"a\t1\t\tone\n\nb\t0\t\ttwo\n", r"train.tsv, line 2: 1 tab-separated columns"),
        (b"a\t1\t\tone\ttwo\n", r"train.tsv, line 1: 5 tab-separated columns"),
        (b"a\t1\t\tone\nb\t2\t\ttwo\n", r"train.tsv, line 2: label '2' is not one of 0, 1"),
        (b"a\t\t\tone\n", r"train.tsv, line 1: label '' is not one of 0, 1"),
        (b"a\t1\t\tone\nb\t1\t\t\xff\xfe\n", r"train.tsv, line 2: not UTF-8"),
        (b"", r"train.tsv has no rows"),
    ],
    ids=["a column short", "a blank line", "a column over", "label 2", "no label", "not UTF-8", "empty"],
)
def test_a_broken_row_is_named_by_file_and_line(settings, tmp_path, content, message):
    path = write(tmp_path / "train.tsv", content)
    with pytest.raises(UserError, match=message) as caught:
        read_tsv(path, settings)
    assert "\n" not in str(caught.value)


def test_data_dir_may_be_the_download_or_the_tasks_folder(settings, tmp_path):
    root = write_cola(tmp_path, train=8, dev=4)
    for folder in (root, root / "CoLA"):
        task = load_task(dataclasses.replace(settings, data_dir=str(folder)))
        assert (len(task.train_rows.labels), len(task.evaluation_rows["validation"].labels)) == (8, 4)
        assert task.provenance["source"] == "folder"
        assert set(task.provenance["sha256"]) == {"train.tsv", "dev.tsv"}
        assert task.subset is False


def test_a_row_limit_takes_the_first_rows_and_marks_a_subset(settings, tmp_path):
    root = write_cola(tmp_path, train=8, dev=4)
    task = load_task(dataclasses.replace(settings, data_dir=str(root), max_train_rows=3))
    assert len(task.train_rows.labels) == 3
    assert task.subset is True
    whole = load_task(dataclasses.replace(settings, data_dir=str(root), max_train_rows=100))
    assert whole.subset is False


def test_validation_rows_are_held_out_of_train_and_replace_the_evaluation_split(settings, tmp_path):
    root = write_cola(tmp_path, train=40, dev=8)
    given = load_task(dataclasses.replace(settings, data_dir=str(root)))
    rows = list(zip(given.train_rows.texts[0], given.train_rows.labels, strict=True))
    task = load_task(dataclasses.replace(settings, data_dir=str(root), validation_rows=12))
    (held,) = task.evaluation_rows.values()
    kept, out = (list(zip(split.texts[0], split.labels, strict=True)) for split in (task.train_rows, held))
    assert (len(kept), len(out)) == (28, 12)
    assert sorted(kept + out) == sorted(rows)
    assert out not in (rows[:12], rows[-12:])  # files may be sorted
    again = load_task(dataclasses.replace(settings, data_dir=str(root), validation_rows=12, max_train_rows=5))
    assert again.evaluation_rows["validation"].texts == held.texts
    assert again.train_rows.texts[0] == task.train_rows.texts[0][:5]
    assert (task.provenance["held_out"], task.subset) == (12, True)
    with pytest.raises(UserError, match=r"task\.validation_rows=40 leaves none of the 40 rows for training"):
        load_task(dataclasses.replace(settings, data_dir=str(root), validation_rows=40))


def test_held_out_rows_take_the_name_of_the_main_metrics_split():
    """MNLI has two evaluation splits. Its main metric is of the matched one, which the held-out rows replace."""
    settings = settings_of("mnli", validation_rows=2)
    rows = Rows((["a", "b", "c"], ["d", "e", "f"]), [0, 1, 2])
    task = glue(settings, rows, {"matched": rows.first(1), "mismatched": rows.first(1)}, {})
    assert [*task.evaluation_rows] == ["matched"]
    assert set(task.score(Split("matched", [], []), [0, 0])) == {"matched_accuracy"}


def test_a_missing_folder_or_split_is_refused_in_one_line(settings, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        load_task(dataclasses.replace(settings, data_dir=str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"has a train\.tsv"):
        load_task(dataclasses.replace(settings, data_dir=str(tmp_path)))
    (write_cola(tmp_path) / "CoLA" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"there is no .*dev\.tsv"):
        load_task(dataclasses.replace(settings, data_dir=str(tmp_path)))


def test_batches_are_padded_to_a_multiple_of_eight_and_cut_at_max_length(settings, cola, tiny_bert):
    from transformers import AutoTokenizer

    task = load_task(dataclasses.replace(settings, data_dir=str(cola), max_length=7))
    task.preprocess(AutoTokenizer.from_pretrained(tiny_bert))
    assert max(task.train.lengths) == 7
    batch = task.collate([task.train.examples[i] for i in range(5)])
    assert batch["input_ids"].shape == (5, 8)
    assert batch["attention_mask"].sum(dim=1).tolist() == [task.train.lengths[i] for i in range(5)]
    assert batch["labels"].tolist() == task.train_rows.labels[:5]


def test_the_original_cola_files_are_read(settings, shared):
    task = load_task(dataclasses.replace(settings, data_dir=str(shared / "data" / "glue")))
    dev = task.evaluation_rows["validation"]
    assert (len(task.train_rows.labels), len(dev.labels)) == (8551, 1043)
    assert sum(dev.labels) == 721  # acceptable sentences of the published dev set
    assert dev.texts[0][0] == "The sailors rode the breeze clear of the rocks."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": []}, "task.text has 0 columns: give one or two"),
        ({"text": ["a", "b", "c"]}, "task.text has 3 columns: give one or two"),
        ({"text": ["a", "b"]}, "task.text has 2 columns, but task.tsv.text has 1"),
        ({"labels": ["0"]}, "task.num_labels is 2, but task.labels has 1 labels"),
        ({"num_labels": 1}, "task.num_labels is 1, but task.labels has 2 labels"),
        ({"label_range": [5.0, 0.0]}, r"task.label_range is \[5.0, 0.0\]: give the lowest and the highest label"),
        ({"label_range": [1.0]}, r"task.label_range is \[1.0\]: give the lowest and the highest label"),
    ],
)
def test_contradicting_task_settings_are_refused(settings, cola, change, message):
    with pytest.raises(UserError, match=message):
        load_task(dataclasses.replace(settings, data_dir=str(cola), **change))


def test_a_max_length_without_room_for_a_word_is_refused(settings, cola, tiny_bert):
    """A tokenizer does not truncate if the limit is below its number of special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    task = load_task(dataclasses.replace(settings, data_dir=str(cola), max_length=2))
    with pytest.raises(UserError, match=r"task.max_length=2 is too small: it must be larger than the 2 special tokens"):
        task.preprocess(tokenizer)
    task = load_task(dataclasses.replace(settings, data_dir=str(cola), max_length=3))
    task.preprocess(tokenizer)
    assert max(task.train.lengths) == 3


@pytest.mark.slow
def test_the_command_runs_a_regression_task_on_pairs(shared, tiny_bert, flexlora_run, tmp_path):
    """The installed command trains on STS-B's float labels and records both correlations."""
    import json

    result = flexlora_run(
        "task=glue/stsb",
        "method=lora",
        "model=local",
        f"model.path={tiny_bert}",
        f"task.data_dir={shared / 'data' / 'glue'}",
        "task.max_train_rows=16",
        "task.max_eval_rows=8",
        "training.max_steps=2",
        f"output_root={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.rglob("result.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["main_metric"] == "pearson_spearman_mean"
    assert {"pearson", "spearman", "pearson_spearman_mean"} <= record["metrics"]["last"].keys()
    assert record["subset"] is True
    assert set(record["data"]["sha256"]) == {"train.tsv", "dev.tsv"}
