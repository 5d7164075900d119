"""The generated GLUE tasks of `scale=tiny`: their columns and labels are real, and a bag of words cannot solve them."""

from collections import Counter

import numpy as np
import pytest
from compose_helpers import settings_of_run
from scipy.sparse import hstack
from scipy.stats import pearsonr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.tasks import load_task
from flexlora.tasks.glue import Glue
from flexlora.tiny.english import TASKS, VOCABULARY, corpus, generate
from flexlora.tiny.english.words import other_forms

every_task = pytest.mark.parametrize("name", TASKS)


def settings(*overrides: str):
    return settings_of_run("scale=tiny", *overrides)


@pytest.fixture(scope="module")
def tasks() -> dict[str, Glue]:
    return {name: load_task(settings(f"task={name}").task) for name in TASKS}


def test_all_eight_tasks_are_generated():
    assert {f"glue/{file.stem}" for file in (conf_dir() / "task" / "glue").glob("*.yaml")} == set(TASKS)


@every_task
def test_rows_have_the_tasks_columns_labels_and_sets(tasks, name):
    task = tasks[name]
    assert isinstance(task, Glue)
    assert set(task.evaluation_rows) == set(task.settings.hub.evaluation)
    for rows in (task.train_rows, *task.evaluation_rows.values()):
        assert len(rows.texts) == len(task.settings.text)
        assert all(len(column) == len(rows) for column in rows.texts)
        assert {word for column in rows.texts for text in column for word in text.split()} <= set(VOCABULARY)
        counts = Counter(rows.labels)
        if task.num_labels == 1:
            assert all(isinstance(label, float) and 0 <= label <= 5 for label in counts)
            assert len(counts) >= 3
        else:
            assert set(counts) == set(range(task.num_labels))
            assert len(set(counts.values())) == 1, f"labels are not balanced: {counts}"
    assert task.provenance["source"] == "generated"
    assert task.subset is False


@every_task
def test_no_text_occurs_twice(tasks, name):
    task = tasks[name]
    seen: set[tuple[str, ...]] = set()
    for rows in (task.train_rows, *task.evaluation_rows.values()):
        texts = set(zip(*rows.texts, strict=True))
        assert seen.isdisjoint(texts)
        seen |= texts


@every_task
def test_rows_do_not_depend_on_the_seed(tasks, name):
    again = load_task(settings(f"task={name}", "seed=7").task)
    assert again.train_rows == tasks[name].train_rows
    assert again.evaluation_rows == tasks[name].evaluation_rows
    assert again.provenance == tasks[name].provenance


def features(rows, vectorizers, together: bool):
    """TF-IDF of words and word pairs, of an example's joined texts or of each text separately."""
    columns = [[" || ".join(texts) for texts in zip(*rows.texts, strict=True)]] if together else rows.texts
    return hstack(
        [
            vectorizer.transform(column) if hasattr(vectorizer, "vocabulary_") else vectorizer.fit_transform(column)
            for vectorizer, column in zip(vectorizers, columns, strict=False)
        ]
    )


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
@every_task
def test_a_bag_of_words_cannot_predict_the_labels(tasks, name, together):
    """Accuracy is below 0.6 for two classes and below 0.45 for three. The correlation on STS-B is below 0.3."""
    task = tasks[name]
    vectorizers = [TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+") for _ in task.train_rows.texts]
    inputs, labels = features(task.train_rows, vectorizers, together), task.train_rows.labels
    for rows in task.evaluation_rows.values():
        if task.num_labels == 1:
            predicted = Ridge().fit(inputs, labels).predict(features(rows, vectorizers, together))
            assert abs(pearsonr(predicted, rows.labels).statistic) < 0.3
            continue
        model = LogisticRegression(max_iter=1000).fit(inputs, labels)
        accuracy = model.score(features(rows, vectorizers, together), rows.labels)
        assert accuracy < (0.6 if task.num_labels == 2 else 0.45)


def test_the_bag_of_words_model_can_learn_a_label_that_depends_on_a_word():
    """The same model learns a label that depends on one word of the same texts."""
    rows = generate("glue/cola", ["validation"])
    texts = [texts[0] for texts, _ in rows["train"]]
    has_near = np.array(["near" in text.split() for text in texts])
    inputs = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+").fit_transform(texts)
    assert (
        LogisticRegression(max_iter=1000).fit(inputs[:3000], has_near[:3000]).score(inputs[3000:], has_near[3000:])
        > 0.95
    )


def test_mnlis_mismatched_set_has_other_words(tasks):
    task = tasks["glue/mnli"]

    def words(rows):
        return {word for column in rows.texts for text in column for word in text.split()}

    trained, matched = words(task.train_rows), words(task.evaluation_rows["matched"])
    assert matched <= trained
    assert len(words(task.evaluation_rows["mismatched"]) - trained) >= 16


def test_the_corpus_has_the_vocabulary_and_no_mistakes():
    texts = corpus(3000)
    assert {word for text in texts for sentence in text for word in sentence.split()} == set(VOCABULARY)
    bad = {texts for texts, label in generate("glue/cola", ["validation"])["train"] if label == 0}
    assert bad.isdisjoint(texts)
    assert texts == corpus(3000)


def test_other_forms_are_in_the_vocabulary():
    assert {form for word in VOCABULARY for form in other_forms(word)} <= set(VOCABULARY)
    assert (other_forms("chases"), set(other_forms("chase"))) == (("chase",), {"chases", "chased"})
    assert other_forms("near") == ()


def test_a_subset_is_marked_as_subset():
    task = load_task(settings("task=glue/rte", "task.max_train_rows=100").task)
    assert isinstance(task, Glue)
    assert (len(task.train_rows), task.subset) == (100, True)


def test_a_folder_of_data_is_refused():
    with pytest.raises(UserError, match=r"^scale=tiny generates its data: leave out task.data_dir, or leave out scale"):
        load_task(settings("task=glue/cola", "task.data_dir=/nowhere").task)


def test_an_unknown_task_is_refused():
    with pytest.raises(UserError, match="scale=tiny has no task mine: it generates glue/cola"):
        load_task(settings("task=glue/cola", "task.name=mine").task)
