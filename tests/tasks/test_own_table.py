"""A table of the user: its columns, classes and split are read from the file, and every mistake is one line."""

import csv
import json
from pathlib import Path

import pytest
from compose_helpers import settings_of_run

from flexlora.errors import UserError
from flexlora.settings.sources import sources
from flexlora.tasks import load_task
from flexlora.tasks.glue import Glue
from flexlora.tasks.metrics import load_metric

ROWS = [(f"text {number}", ["poor", "fair", "good"][number % 3]) for number in range(30)]


def write(file: Path, rows=ROWS, header=("text", "label"), delimiter=",") -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, delimiter=delimiter).writerows([header, *rows])
    return file


def load(data: Path, *overrides: str) -> Glue:
    return load_task(settings_of_run("task=csv", "method=lora", f"task.data_dir={data}", *overrides).task)


def refusal(data: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        load(data, *overrides)
    message = str(refused.value)
    assert "\n" not in message
    return message.replace(str(data.parent), "DIR")


def test_columns_classes_and_split_are_read_and_recorded(tmp_path):
    task = load(write(tmp_path / "my reviews.csv", header=("review", "stars")), "task.label=stars")
    assert task.name == "csv/my_reviews"
    assert (task.labels, task.num_labels, task.main_metric) == (["fair", "good", "poor"], 3, "accuracy")
    facts = task.provenance
    assert facts["columns"] == {"text": ["review"], "label": "stars"}
    assert (facts["kind"], facts["classes"]) == ("classes", ["fair", "good", "poor"])
    assert facts["split"] == {"by": "drawn with seed 0", "train": 24, "test": 6}
    assert list(facts["sha256"]) == ["my reviews.csv"]
    assert sorted(task.evaluation_rows["test"].labels) == [0, 0, 1, 1, 2, 2]  # each class has its share


def test_the_split_depends_on_its_own_seed_only(tmp_path):
    file = write(tmp_path / "a.csv")
    texts = [load(file, *more).evaluation_rows["test"].texts for more in ([], ["seed=3"], ["task.split_seed=1"])]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    file = tmp_path / f"table.{kind}"
    objects = [{"text": text, "label": label} for text, label in ROWS]
    if kind in ("csv", "tsv"):
        write(file, delimiter="," if kind == "csv" else "\t")
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), file)
    else:
        lines = [json.dumps(row) for row in objects]
        file.write_text(json.dumps(objects) if kind == "json" else "\n".join(lines), encoding="utf-8")
    expected = load(write(tmp_path / "expected.csv"))
    assert load(file).train_rows.texts == expected.train_rows.texts
    assert load(file).train_rows.labels == expected.train_rows.labels


def test_files_of_a_folder_are_its_split_and_two_texts_are_a_pair(tmp_path):
    rows = [(text, f"other {text}", label) for text, label in ROWS]
    write(tmp_path / "train.csv", rows, ("left", "right", "label"))
    write(tmp_path / "dev.tsv", rows[:4], ("left", "right", "label"), "\t")
    task = load(tmp_path)
    assert task.provenance["split"] == {"by": "files", "train": 30, "dev": 4}
    assert task.train_rows.texts[1][0] == "other text 0"
    assert task.settings.text == ["left", "right"]


def test_whole_numbers_are_classes_by_size_and_other_numbers_are_predicted(tmp_path):
    whole = write(tmp_path / "whole.csv", [(f"text {i}", [10, 9, 2][i % 3]) for i in range(30)])
    assert load(whole).labels == ["2", "9", "10"]
    numbers = load(whole, "task.kind=numbers")
    assert (numbers.num_labels, numbers.main_metric) == (1, "pearson_spearman_mean")
    assert load(write(tmp_path / "half.csv", [(f"text {i}", i / 2) for i in range(30)])).num_labels == 1
    many = write(tmp_path / "many.csv", [(f"text {i}", i) for i in range(30)])
    assert refusal(many) == (
        "column 'label' has 30 different whole numbers: set task.kind=classes or task.kind=numbers"
    )


def test_the_order_of_the_classes_can_be_given_and_a_number_is_a_name(tmp_path):
    file = write(tmp_path / "a.csv")
    assert load(file, "task.labels=[poor,fair,good]").train_rows.labels[:3] == [0, 1, 2]
    stars = write(tmp_path / "stars.csv", [(f"text {i}", i % 3) for i in range(30)])
    assert refusal(stars, "task.labels=[1,2,3]") == "DIR/stars.csv, row 1: label '0' is not one of 1, 2, 3"


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (b"a film,pos\nb,neg\n", [], "task.label: DIR/a.csv has no column 'label'. It has: a film, pos. If these"),
        (b"text,text,label\na,b,c\n", [], "cannot read DIR/a.csv: line 1: two columns have the same name"),
        (b"text,label\na,x\n ,y\n", [], "DIR/a.csv, row 2: text is empty: fill it in or remove the row"),
        (b"text,label\na,x\nb,\n", [], "DIR/a.csv, row 2: label is empty: fill it in or remove the row"),
        (b"text,label\na,x\nb,x\n", [], "column 'label' has only the class 'x': two are needed"),
        (b"text,label\na,2.5\nb,2.5\n", [], "column 'label' has the same number in every row"),
        (b"text,label\ncaf\xe9,x\n", [], "DIR/a.csv, line 2: not UTF-8: save the file as UTF-8"),
        (b"text,label\n", [], "DIR/a.csv has no rows"),
        (b"text;label\na, b;x\n", [], "cannot read DIR/a.csv: its columns are separated by semicolons: save it with"),
        (b"text\tlabel\na\tx\n", [], "cannot read DIR/a.csv: its columns are separated by tabs: save it with commas"),
        (b"a,b,c,label\n1,2,3,4\n", [], "task.text is not set, and DIR/a.csv has 3 columns beside 'label'"),
        (b"text,label\na,x\n", ["task.text=[txt]"], "task.text: DIR/a.csv has no column 'txt'. Did you mean text?"),
        (b"text,label\na,x\n", ["task.text=[label]"], "task.text=[label], task.label=label: give one or two columns"),
        (b"text,label\na,x\nb,y\n", ["task.kind=numbers"], "DIR/a.csv, row 1: label 'x' is not a number"),
        (b"text,label\n" + b"a,x\nb,y\n" * 9, ["task.metric=f2"], "task.metric: there is no metric 'f2'."),
        (b"text,label\na,x\nb,y\n", ["task.test_share=0.9"], "task.test_share=0.9 of 2 rows leaves no training row of"),
    ],
)
def test_a_mistake_is_one_line(content, overrides, message, tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    assert refusal(file, *overrides).startswith(message)


def test_a_class_without_a_training_row_is_a_warning(tmp_path, caplog):
    write(tmp_path / "train.csv", ROWS[:2])
    write(tmp_path / "test.csv", ROWS[:3])
    assert load(tmp_path).num_labels == 3
    assert "1 of 3 classes have no training row: good" in caplog.text


def test_a_class_with_a_single_row_is_a_warning(tmp_path, caplog):
    write(tmp_path / "train.csv", [*ROWS, ("text 30", "odd")])
    write(tmp_path / "test.csv", ROWS[:3])
    load(tmp_path)
    assert "1 of 4 classes have a single row, which is either learned or evaluated: odd" in caplog.text
    assert "no training row" not in caplog.text


def test_words_that_the_model_does_not_know_are_a_warning(tmp_path, caplog):
    from flexlora.tiny.models.tiny import SPECIAL, _tokenizer

    known = [("the soup was good", "food"), ("the doctor was good", "person")] * 10
    load(write(tmp_path / "known.csv", known)).preprocess(_tokenizer(SPECIAL))
    assert "unknown" not in caplog.text
    load(write(tmp_path / "unknown.csv", [(f"{text} indeed", label) for text, label in known])).preprocess(
        _tokenizer(SPECIAL)
    )
    assert "14 % of the words are unknown to this model: it can learn little from them" in caplog.text


def test_a_function_of_ones_own_is_a_metric(tmp_path, monkeypatch):
    header = "(predictions, references):\n    return"
    code = f"def recall{header} 0.25\ndef bad{header} None\ndef nan{header} float('nan')\n"
    (tmp_path / "mine_of_a_test.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = write(tmp_path / "a.csv")
    task = load(file, "task.metric=mine_of_a_test.recall")
    assert task.main_metric == "recall"
    split = type("Split", (), {"name": "test"})
    assert task.score(split, [0] * 6) == {"recall": 0.25}
    for name, value in (("bad", "None"), ("nan", "nan")):
        with pytest.raises(UserError, match=f"task.metric: {name} returns {value}: it must return a finite number"):
            load(file, f"task.metric=mine_of_a_test.{name}").score(split, [0] * 6)
    assert refusal(file, "task.metric=mine_of_a_test.f3") == "task.metric: the module 'mine_of_a_test' has no 'f3'"
    assert refusal(file, "task.metric=nothing_here.f3").startswith("task.metric: Python finds no module 'nothing_here'")


def test_other_files_and_folders_are_refused(tmp_path):
    (tmp_path / "a.xlsx").write_text("x", encoding="utf-8")
    assert "is no table: its name must end in one of" in refusal(tmp_path / "a.xlsx")
    assert "has no table" in refusal(tmp_path)
    assert "there is no file or folder" in refusal(tmp_path / "nothing.csv")


def test_macro_f1_gives_every_class_the_same_weight():
    scores = load_metric("accuracy_macro_f1").compute(predictions=[0, 0, 0, 0], references=[0, 0, 0, 1])
    assert scores == {"accuracy": 0.75, "macro_f1": pytest.approx((6 / 7 + 0) / 2)}


def test_a_method_begins_with_the_learning_rate_of_its_glue_row_and_the_source_says_so(tmp_path):
    from compose_helpers import composed

    from flexlora.conf_path import conf_dir
    from flexlora.settings import resolve

    overrides = ["task=csv", "method=lora", f"task.data_dir={write(tmp_path / 'a.csv')}"]
    settings, plain = resolve(composed(*overrides))
    choices = {"task": "csv", "benchmark": "csv", "method": "lora", "model": "deberta_v3_base", "scale": "paper"}
    found = {item.setting: item for item in sources(settings, plain, overrides, choices, [conf_dir()])}
    rate = found["training.learning_rate"]
    assert rate.where == "conf/method/lora.yaml, recipes, row 'glue', for a start: not tuned for this data"
    assert settings_of_run(*overrides, "scale=tiny").task.family == "own_table"
    assert settings.for_a_start["training.learning_rate"] == "glue"
    assert "for_a_start" not in plain  # it is no setting, and no part of the hash
    assert "training.learning_rate" not in settings_of_run(*overrides, "training.learning_rate=1e-4").for_a_start
    assert "training.learning_rate" not in settings_of_run(*overrides, "scale=tiny").for_a_start  # tiny has its own
    assert settings_of_run("task=glue/cola", "method=lora").for_a_start == {}
