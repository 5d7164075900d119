"""All eight tasks are read from the files of the original download. Broken files are refused in one line."""

import re

import pytest
from glue_helpers import DOWNLOAD, TASKS, settings_of, write_download

from flexlora.errors import UserError
from flexlora.tasks import load_task

# The first training row and all labels of the files in glue_helpers.
EXPECTED = {
    "cola": (("Our friends won't buy this.",), [1, 0], {"validation": [1]}),
    "sst2": (("hide new secretions from the parental units ",), [0, 1], {"validation": [1]}),
    "qqp": (('How is the life of a "math student?', "Which level is enough?"), [0, 1], {"validation": [0]}),
    "mnli": (("Cream skimming.", "Product and geography."), [1, 0, 2], {"matched": [1], "mismatched": [2]}),
    "qnli": (
        ("When did the third Digimon series begin?", 'Unlike the two before it, it is "darker.'),
        [1, 0],
        {"validation": [0]},
    ),
    "rte": (("No Weapons Found in Iraq Yet.", "Weapons Found in Iraq."), [1, 0], {"validation": [0]}),
    "mrpc": (
        ('Amrozi accused his brother , whom he called " the witness " .', "Referring to him ."),
        [1, 0],
        {"validation": [1]},
    ),
    "stsb": (("A plane is taking off.", "An air plane."), [5.0, 0.75], {"validation": [2.5]}),
}


@pytest.fixture
def download(tmp_path):
    return write_download(tmp_path / "glue_data")


@pytest.mark.parametrize("name", TASKS)
def test_each_task_reads_its_own_columns(name, download):
    first, labels, evaluation = EXPECTED[name]
    task = load_task(settings_of(name, data_dir=str(download)))
    assert tuple(text[0] for text in task.train_rows.texts) == first
    assert task.train_rows.labels == labels
    assert {split: rows.labels for split, rows in task.evaluation_rows.items()} == evaluation
    assert task.provenance["layout"] == "classic"
    assert set(task.provenance["sha256"]) == set(DOWNLOAD[settings_of(name).tsv.folder])


def test_qqp_leaves_out_rows_that_a_line_break_splits(download, caplog):
    caplog.set_level("WARNING", "flexlora")
    task = load_task(settings_of("qqp", data_dir=str(download)))
    assert task.provenance["left_out"] == {"train.tsv": [4, 5]}
    assert "2 broken rows left out, lines 4, 5" in caplog.text
    settings = settings_of("qqp", data_dir=str(download))
    settings.tsv = type(settings.tsv)(**{**vars(settings.tsv), "broken_rows": 1})
    message = (
        r"line 5: 3 tab-separated columns where 6 are expected, and more than 1 such lines \(task.tsv.broken_rows\)"
    )
    with pytest.raises(UserError, match=message):
        load_task(settings)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "qqp"])
def test_every_other_task_refuses_a_broken_line(name, download):
    settings = settings_of(name, data_dir=str(download))
    path = download / settings.tsv.folder / "train.tsv"
    path.write_bytes(path.read_bytes() + b"broken\n")
    number = len(path.read_bytes().strip().split(b"\n"))
    with pytest.raises(UserError, match=rf"train.tsv, line {number}: 1 tab-separated columns where \d+ are expected$"):
        load_task(settings)


@pytest.mark.parametrize(
    ("name", "right", "wrong", "message"),
    [
        ("stsb", b"5.000\n", b"5.001\n", "line 2: label '5.001' is not between 0 and 5"),
        ("stsb", b"5.000\n", b"-0.1\n", "line 2: label '-0.1' is not between 0 and 5"),
        ("stsb", b"5.000\n", b"nan\n", "line 2: label 'nan' is not a number"),
        ("stsb", b"5.000\n", b"high\n", "line 2: label 'high' is not a number"),
        ("mnli", b"\tneutral\n", b"\t-\n", "line 2: label '-' is not one of entailment, neutral, contradiction"),
        ("rte", b"\tnot_entailment\n", b"\t1\n", "line 2: label '1' is not one of entailment, not_entailment"),
        ("mrpc", b"\n1\t", b"\n2\t", "line 2: label '2' is not one of 0, 1"),
        ("qqp", b"\t0\n", b"\t\n", "line 2: label '' is not one of 0, 1"),
        ("qnli", b"\tlabel\n", b"\tlabels\n", "line 1: there is no column 'label'. There are: index, question"),
        ("sst2", b"sentence\t", b"text\t", "line 1: there is no column 'sentence'. There are: text, label"),
    ],
)
def test_a_wrong_label_or_column_is_named_by_its_line(name, right, wrong, message, download):
    settings = settings_of(name, data_dir=str(download))
    path = download / settings.tsv.folder / "train.tsv"
    assert right in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(right, wrong, 1))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_task(settings)
    assert str(path) in str(caught.value)


def test_mnli_needs_both_of_its_sets(download):
    (download / "MNLI" / "dev_mismatched.tsv").unlink()
    message = r"no .*dev_mismatched.tsv: the task needs train.tsv, dev_matched.tsv and dev_mismatched.tsv"
    with pytest.raises(UserError, match=message):
        load_task(settings_of("mnli", data_dir=str(download)))


def test_mnli_scores_its_two_sets_separately(download):
    task = load_task(settings_of("mnli", data_dir=str(download)))

    class Named:
        def __init__(self, name):
            self.name = name

    assert task.main_metric == "matched_accuracy"
    assert task.score(Named("matched"), [1]) == {"matched_accuracy": 1.0}
    assert task.score(Named("mismatched"), [1]) == {"mismatched_accuracy": 0.0}


@pytest.mark.parametrize(
    ("name", "train", "dev", "positive"),
    [
        ("cola", 8551, 1043, None),
        ("rte", 2490, 277, (1241, 131)),
        ("sst2", 67349, 872, (37569, 444)),
        ("stsb", 5749, 1500, None),
    ],
)
def test_the_original_files_of_all_tasks_are_read(name, train, dev, positive, shared):
    task = load_task(settings_of(name, data_dir=str(shared / "data" / "glue")))
    evaluation = task.evaluation_rows["validation"].labels
    assert (len(task.train_rows), len(evaluation)) == (train, dev)
    if positive is not None:
        assert (sum(task.train_rows.labels), sum(evaluation)) == positive
    if name == "stsb":
        assert (min(evaluation), max(evaluation)) == (0.0, 5.0)
