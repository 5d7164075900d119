"""GLUE data with the hub's columns: parquet, JSON and CSV files, whole or in parts, and data sets from the hub."""

import re
from pathlib import Path

import datasets
import pytest
from glue_helpers import RTE, TASKS, settings_of, write, write_download

from flexlora.errors import UserError
from flexlora.tasks import load_task
from flexlora.tasks.glue_columns import hub_rows

SUFFIXES = (".parquet", ".json", ".jsonl", ".csv")


def load(task: str, folder: Path):
    return load_task(settings_of(task, data_dir=str(folder)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("below", ["", "RTE", "rte"])
def test_files_with_the_hubs_columns_are_read(suffix, below, tmp_path):
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    write(folder / f"train{suffix}", RTE)
    write(folder / f"validation{suffix}", {name: values[:1] for name, values in RTE.items()})
    task = load("rte", tmp_path)
    assert task.train_rows.texts == (RTE["sentence1"], RTE["sentence2"])
    assert task.train_rows.labels == [1, 0]
    assert task.evaluation_rows["validation"].labels == [1]
    assert task.provenance["layout"] == "columns"
    assert task.provenance["path"] == str(folder)
    assert set(task.provenance["sha256"]) == {f"train{suffix}", f"validation{suffix}"}


def test_files_with_the_hubs_names_are_read(tmp_path):
    """The names are those of a clone of nyu-mll/glue, such as mnli/train-00000-of-00002.parquet."""
    folder = tmp_path / "mnli"
    folder.mkdir()
    for name, labels in {
        "train-00000-of-00002": [0, 1],
        "train-00001-of-00002": [2],
        "validation_matched-00000-of-00001": [0],
        "validation_mismatched-00000-of-00001": [2, 2],
        "test_matched-00000-of-00001": [-1],
    }.items():
        texts = [f"{name} {i}" for i in range(len(labels))]
        write(folder / f"{name}.parquet", {"premise": texts, "hypothesis": texts, "label": labels})
    task = load("mnli", tmp_path)
    assert task.train_rows.labels == [0, 1, 2]
    assert {name: rows.labels for name, rows in task.evaluation_rows.items()} == {"matched": [0], "mismatched": [2, 2]}
    (folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"split 'train' in .* is incomplete: it has only train-00001-of-00002.parquet"):
        load("mnli", tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_its_labels_as_numbers_and_as_texts(task, tmp_path):
    settings = settings_of(task)
    labels = [0.5, 5.0] if task == "stsb" else [0, settings.num_labels - 1]
    texts = {column: ["one", "two"] for column in settings.text}
    for split in ("train", *settings.hub.evaluation.values()):
        write(tmp_path / f"{split}.json", {**texts, "label": labels})
    assert load(task, tmp_path).train_rows.labels == labels
    if task != "stsb":
        named = [settings.labels[label] for label in labels]
        write(tmp_path / "train.json", {**texts, "label": named})
        assert load(task, tmp_path).train_rows.labels == labels


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "has no column 'label'. It has: sentence1, sentence2, idx"),
        ({"sentence2": None}, "has no column 'sentence2'. It has: sentence1, label, idx"),
        ({"label": [0, 2]}, "row 2: label {2} is not between 0 and 1"),
        ({"label": [0, -1]}, "row 2: label {-1} is not between 0 and 1"),
    ],
    ids=["no label", "no text", "label 2", "label -1"],
)
def test_a_missing_column_or_a_wrong_label_is_refused_in_one_line(suffix, change, message, tmp_path):
    columns = {name: values for name, values in (RTE | change).items() if values is not None}
    write(tmp_path / f"train{suffix}", columns)
    # A CSV file's labels are texts, so the message shows them in quotes.
    message = re.sub(r"\{(.*)\}", r"'\1'" if suffix == ".csv" else r"\1", message)
    with pytest.raises(UserError, match=rf"train{suffix}(, | ){re.escape(message)}") as caught:
        load("rte", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence1": ["a", None]}, "row 2: sentence1 is null"),
        ({"sentence1": [5, 6]}, "row 1: sentence1 is 5, not a text"),
        ({"label": [0, None]}, "row 2: label None is not between 0 and 1"),
        ({"label": [0.0, 1.0]}, "row 1: label 0.0 is not between 0 and 1"),
        ({"label": [True, False]}, "row 1: label True is not between 0 and 1"),
        ({"label": ["entailment", "neutral"]}, "row 2: label 'neutral' is not between 0 and 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_one_line(suffix, change, message, tmp_path):
    write(tmp_path / f"train{suffix}", RTE | change)
    with pytest.raises(UserError, match=rf"train{suffix}, {re.escape(message)}"):
        load("rte", tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5.5, "5.5 is not between 0 and 5"),
        ("high", "'high' is not a number"),
        (None, "None is not a number"),
        (True, "True is not a number"),
    ],
)
def test_a_score_that_is_not_a_number_is_refused_in_one_line(value, message, tmp_path):
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [2, value]}
    write(tmp_path / "train.jsonl", columns)
    with pytest.raises(UserError, match=rf"train.jsonl, row 2: label {re.escape(message)}"):
        load("stsb", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.json", b"[{", "cannot read .*train.json: "),
        ("train.jsonl", b'{"sentence1": "a"}\n{', "cannot read .*train.jsonl: line 2: "),
        ("train.jsonl", b"5\n", "cannot read .*train.jsonl: row 1 is not an object"),
        ("train.csv", b"sentence1,sentence2,label\na,b\n", "line 2: 2 columns where 3 are expected"),
        ("train.csv", b'sentence1,sentence2,label\n"a"x,b,0\n', "cannot read .*train.csv: line 2: "),
        ("train.csv", b"sentence1,sentence2,label\n\xff,b,0\n", "train.csv, line 2: not UTF-8: save the file as UTF-8"),
        ("train.csv", b"sentence1,sentence2,label\n", "train.csv has no rows"),
        ("train.csv", b"", "train.csv has no rows"),
        ("train.json", b"[]", "train.json has no rows"),
        ("train.parquet", b"PAR1 and no more", "cannot read .*train.parquet: "),
    ],
)
def test_an_unreadable_file_is_refused_in_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load("rte", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_split_and_an_ambiguous_folder_are_refused(tmp_path):
    write(tmp_path / "train.csv", RTE)
    with pytest.raises(UserError, match=r"has no file for split 'validation', such as validation.parquet"):
        load("rte", tmp_path)
    write(tmp_path / "train.json", RTE)
    with pytest.raises(UserError, match=r"has split 'train' more than once: train.csv, train.json"):
        load("rte", tmp_path)
    (tmp_path / "train.json").unlink()
    (tmp_path / "train.tsv").write_bytes(b"index\tsentence1\tsentence2\tlabel\n")
    with pytest.raises(UserError, match=r"has both train.tsv and train.csv: keep only one of them"):
        load("rte", tmp_path)


def test_a_folder_without_a_known_layout_is_refused_with_the_expected_names(tmp_path):
    with pytest.raises(UserError, match=r"has a train.tsv \(the classic GLUE download\) or a train.parquet, .json"):
        load("rte", tmp_path)


def test_the_download_and_the_hubs_columns_give_the_same_rows(tmp_path):
    classic = load("rte", write_download(tmp_path / "classic"))
    (tmp_path / "hub").mkdir()
    for name, rows in {"train": classic.train_rows, "validation": classic.evaluation_rows["validation"]}.items():
        columns = {"sentence1": rows.texts[0], "sentence2": rows.texts[1], "label": rows.labels}
        write(tmp_path / "hub" / f"{name}.parquet", columns)
    hub = load("rte", tmp_path / "hub")
    assert (hub.train_rows.texts, hub.train_rows.labels) == (classic.train_rows.texts, classic.train_rows.labels)


def entailments(names: list[str]) -> datasets.Dataset:
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
        }
    )
    return datasets.Dataset.from_dict({k: RTE[k] for k in ("sentence1", "sentence2", "label")}, features=features)


def test_classes_in_another_order_are_refused_from_the_hub_and_from_a_file(tmp_path):
    right, wrong = ["entailment", "not_entailment"], ["not_entailment", "entailment"]
    assert hub_rows(entailments(right), settings_of("rte"), "train").labels == [1, 0]
    message = "has the classes in the order not_entailment, entailment, but task.labels has entailment, not_entailment"
    with pytest.raises(UserError, match=f"split 'train' {message}"):
        hub_rows(entailments(wrong), settings_of("rte"), "train")
    entailments(wrong).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=f"train.parquet {message}"):
        load("rte", tmp_path)


def test_other_class_names_on_the_hub_are_accepted():
    """CoLA's classes are called unacceptable and acceptable on the hub, and 0 and 1 in the download."""
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["unacceptable", "acceptable"])}
    )
    split = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    rows = hub_rows(split, settings_of("cola"), "train")
    assert (rows.texts, rows.labels) == ((["a", "b"],), [1, 0])
    with pytest.raises(UserError, match=r"split 'train' has no column 'sentence'. It has: text, label"):
        hub_rows(split.rename_column("sentence", "text"), settings_of("cola"), "train")
