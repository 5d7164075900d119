"""Every example's prediction of the last and of the best evaluation, kept beside the record."""

import stat

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import Regression, Sgd, loop
from pyarrow import parquet
from sklearn.metrics import matthews_corrcoef
from torch import nn

from flexlora.results.predictions import BEST, LAST, Predictions, read_answers
from flexlora.results.record import read_record
from flexlora.testing.comparing import without_clocks
from flexlora.training.journal import Journal

# NumPy drops a NUL at the end of a name; no split is called so.
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)
CLASSES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6)
NUMBERS = st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 5)), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(splits=st.one_of(*(st.dictionaries(NAMES, rows, min_size=1, max_size=3) for rows in (CLASSES, NUMBERS))))
def test_what_is_kept_comes_back(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    predictions = {name: [pair[0] for pair in rows] for name, rows in splits.items()}
    labels = {name: [pair[1] for pair in rows] for name, rows in splits.items()}
    Predictions(folder).keep(7, predictions, labels, best=False)
    answers = read_answers(folder / LAST)
    assert answers.step == 7
    assert {name: list(values) for name, values in answers.predictions.items()} == predictions
    assert {name: list(values) for name, values in answers.labels.items()} == labels
    assert not (folder / BEST).exists()


def test_labels_that_are_not_known_are_null(tmp_path):
    Predictions(tmp_path).keep(1, {"dev": [1, 0], "test": [1]}, {"dev": [1, 1], "test": None}, best=True)
    table = parquet.read_table(tmp_path / BEST).to_pydict()
    assert table["label"] == [1, 1, None]
    assert (table["split"], table["index"], table["prediction"]) == (["dev", "dev", "test"], [0, 1, 0], [1, 0, 1])
    assert list(read_answers(tmp_path / BEST).labels) == ["dev"]
    Predictions(tmp_path).keep(2, {"test": [1]}, {"test": None}, best=False)
    assert read_answers(tmp_path / LAST).labels == {}


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_another_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / LAST).write_bytes(content)
    with pytest.raises(ValueError, match=f"{LAST} holds no predictions"):
        read_answers(tmp_path / LAST)


def test_the_loop_keeps_the_last_and_the_best_evaluation(tmp_path):
    task, model = Regression(12, [0.1, 0.7, 0.7, 0.2]), nn.Linear(3, 1)
    task.evaluation[0].labels = [5.0, 4.0, 3.0, 2.0, 1.0]
    with Journal(tmp_path) as journal:
        loop(task, Sgd(), 8, model, files={"journal": journal}, eval_every=2).run()
    last, best = read_answers(tmp_path / LAST), read_answers(tmp_path / BEST)
    assert (last.step, best.step) == (8, 4)
    with torch.no_grad():
        expected = [float(model(example["x"])) for example in task.evaluation[0].examples]
    assert list(last.predictions["validation"]) == pytest.approx(expected)
    assert list(best.predictions["validation"]) == pytest.approx(task.predictions[1])
    assert list(best.labels["validation"]) == [5.0, 4.0, 3.0, 2.0, 1.0]


def test_a_runs_figures_are_those_of_its_predictions(flexlora_run, arguments, tiny_bert, tmp_path):
    result = flexlora_run(*arguments, "method=lora", f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "local" / "glue" / "cola" / tiny_bert.name / "lora" / "test" / "seed0"
    record = read_record(folder / "result.json")
    for name, which in ((LAST, "last"), (BEST, "best")):
        answers, evaluation = read_answers(folder / name), without_clocks(record.metrics[which])
        (split,) = answers.predictions
        assert len(answers.predictions[split]) == record.samples["evaluation"][split] == 40
        found = matthews_corrcoef(answers.labels[split], answers.predictions[split])
        assert found == pytest.approx(evaluation["matthews_correlation"])
        assert answers.step == evaluation["step"]
        assert answers.predictions[split].dtype == np.int64
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o644
    assert not list(folder.glob("*.part"))
