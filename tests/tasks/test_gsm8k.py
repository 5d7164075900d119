"""GSM8K as a task: where rows come from, what is learned, what counts as right, and what is refused."""

import gzip
import json
import math

import pytest
import torch
from commonsense_helpers import model_settings, write_llama
from gsm8k_helpers import PROBLEMS, task_settings, write_folder, write_lines

from flexlora.errors import UserError
from flexlora.models import causal_lm
from flexlora.tasks.gsm8k import load
from flexlora.tasks.language_model import IGNORED

META = [
    {"type": "GSM_Rephrased", "query": "What is 2 plus 3?", "response": "It is 5.\n#### 5\nThe answer is: 5"},
    {"type": "MATH_AnsAug", "query": "What is x?", "response": "It is x.\nThe answer is: $x$"},
    {"type": "GSM_FOBAR", "query": "What is 4 plus 4?", "response": "It is 8.\nThe answer is: 8"},
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return causal_lm.load(model_settings(write_llama(tmp_path_factory.mktemp("llama"))))


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data")


def refused(*arguments):
    with pytest.raises(UserError) as error:
        load(task_settings(*arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_metamathqas_rows_are_chosen_and_cut_by_the_protocol(tmp_path):
    """Only rows of GSM8K count. The repeated answer is cut only where `####` precedes it."""
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(META), encoding="utf-8")
    write_lines(tmp_path / "test.jsonl", PROBLEMS[:2])
    task = load(task_settings(tmp_path))
    assert [(pair.prompt, pair.output) for pair in task.train_pairs] == [
        ("Q: What is 2 plus 3?\nA:", " It is 5.\n#### 5"),
        ("Q: What is 4 plus 4?\nA:", " It is 8.\nThe answer is: 8"),
    ]
    assert [pair.number for pair in task.asked["test"]] == [5, 7]
    every = load(task_settings(tmp_path, "task.train_type=null", "task.cut_repeated_answer=false"))
    assert [pair.output for pair in every.train_pairs] == [f" {row['response']}" for row in META]
    assert "has no row whose type contains 'GMS'. It has: GSM_Rephrased, MATH_AnsAug, GSM_FOBAR" in refused(
        tmp_path, "task.train_type=GMS"
    )


def test_rows_may_be_in_any_file_and_under_other_columns(tmp_path):
    rows = [{"problem": "What is 1 plus 1?", "solution": 2, "note": None}]
    for name, write in {
        "a.json": lambda path: path.write_text(json.dumps(rows), encoding="utf-8"),
        "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(rows[0]).encode())),
        "a.csv": lambda path: path.write_text("problem,solution\nWhat is 1 plus 1?,2\n", encoding="utf-8"),
    }.items():
        write(tmp_path / name)
        task = load(task_settings(tmp_path, f"task.train_file={name}", f"task.test_file={name}"))
        assert [(pair.text, pair.number) for pair in task.asked["test"]] == [("Q: What is 1 plus 1?\nA: 2", 2)]
        assert list(task.provenance["sha256"]) == [name]


def test_a_file_may_be_outside_the_folder(folder, tmp_path):
    """The record's names lead from the folder to the files, whose stamps are taken by these names."""
    other = write_lines(tmp_path / "other.jsonl", PROBLEMS[5:8])
    for name in (str(other), "../other.jsonl"):
        task = load(task_settings(folder, f"task.train_file={name}"))
        assert len(task.train_pairs) == 3
        assert list(task.provenance["sha256"]) == ["../other.jsonl", "test.jsonl"]
    assert "has no file ../absent.jsonl." in refused(folder, f"task.train_file={tmp_path / 'absent.jsonl'}")


def test_real_rows_are_read_as_they_are(shared):
    task = load(task_settings(shared / "data" / "gsm8k", "task.remove_annotations=true", "task.prompt=alpaca"))
    assert (len(task.train_pairs), len(task.asked["test"])) == (7473, 1319)
    assert not task.subset
    first = task.train_pairs[0]
    assert first.prompt.endswith("April and May?\n\n### Response:")
    assert first.output == (
        " Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n#### 72"
    )
    assert task.provenance["sha256"] == {
        "train.jsonl": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        "test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    }


def test_held_out_rows_replace_the_test_file(folder):
    (folder / "test.jsonl").unlink()
    task = load(task_settings(folder, "task.validation_rows=3"))
    assert list(task.asked) == ["validation"]
    assert (len(task.train_pairs), len(task.asked["validation"])) == (9, 3)
    assert not {pair.text for pair in task.train_pairs} & {pair.text for pair in task.asked["validation"]}
    assert task.provenance["held_out"] == 3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.train_file=trian.jsonl"], "has no file trian.jsonl. Did you mean train.jsonl?"),
        (["task.test_file=test.txt"], "task.test_file: 'test.txt' is none of .parquet, .json"),
        (["task.question_column=qestion"], "has no column 'qestion'. Did you mean question? It has: question, answer"),
        (["task.num_samples=4"], "task.num_samples=4 with task.temperature=0 would give the same text 4 times"),
        (["task.top_p=0", "task.temperature=1"], "task.top_p must be above 0"),
        (["task.main_metric=any_accuracy"], "there is no metric 'any_accuracy' with task.num_samples=1."),
        (["task.validation_rows=12"], "task.validation_rows=12 leaves none of the 12 rows for training"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_helps(folder, overrides, said):
    assert said in refused(folder, *overrides)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "How many?", "answer": "many"}], "test.jsonl, row 1: the answer has no final number"),
        (
            [PROBLEMS[0], {"question": " ", "answer": "1"}],
            "test.jsonl, row 2: 'question' is missing, empty or not a text",
        ),
        (
            [PROBLEMS[0], {"question": "a", "answer": None}],
            "test.jsonl, row 2: 'answer' is missing, empty or not a text",
        ),
        ([{"question": "a", "answer": True}], "row 1: 'answer' is missing, empty or not a text"),
        ([{"question": "a \ud800", "answer": "1"}], "row 1: 'question' contains half of a surrogate pair"),
        ([{"text": "a"}], "has none of the columns query, question, problem, instruction, prompt. It has: text. Set "),
        ([], "test.jsonl has no rows"),
    ],
)
def test_a_broken_row_is_refused_by_its_number(tmp_path, rows, said):
    assert said in refused(write_folder(tmp_path / "data", test=rows))


def test_an_unclear_folder_is_refused(folder, tmp_path):
    write_lines(folder / "train.json", PROBLEMS)
    assert "has train.jsonl and train.json: choose one with task.train_file=train.jsonl" in refused(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has none of MetaMathQA-395K.json, train.jsonl" in refused(empty)


# --- what is learned ------------------------------------------------------------------------------------------------


def test_the_loss_covers_the_solution_and_its_end(backbone, folder):
    task = load(task_settings(folder, "task.max_length=64"))
    task.preprocess(backbone.processor)
    batch = task.collate([task.train.examples[i] for i in range(4)])
    prompts = [len(backbone.processor(pair.prompt)["input_ids"]) for pair in task.train_pairs[:4]]
    for row, start in zip(range(4), prompts, strict=True):
        real = batch["attention_mask"][row].bool()
        labels = batch["labels"][row][real]
        assert (labels[:start] == IGNORED).all()
        assert torch.equal(labels[start:], batch["input_ids"][row][real][start:])
        assert labels[-1] == backbone.processor.eos_token_id


def test_long_texts_are_left_out_and_the_first_remaining_ones_count(backbone, tmp_path):
    long = {"question": "How many " + "very " * 60 + "?", "answer": "#### 1"}
    rows = [PROBLEMS[0], long, *PROBLEMS[1:5]]
    folder = write_folder(tmp_path / "data", train=rows)

    def texts(*overrides):
        task = load(task_settings(folder, "task.max_length=40", *overrides))
        task.preprocess(backbone.processor)
        return task, [example["input_ids"] for example in task.train.examples]

    task, kept = texts("task.train_rows=3")
    wanted = [backbone.processor(pair.text)["input_ids"] for pair in (task.train_pairs[i] for i in (0, 2, 3))]
    assert [ids[:-1].tolist() for ids in kept] == wanted
    assert task.train.lengths == [len(ids) for ids in kept]
    _, cut = texts("task.drop_long=false", "task.train_rows=null")
    assert [len(ids) for ids in cut][1] == 40
    assert len(cut) == 6
    with pytest.raises(UserError, match=r"task\.max_length=3 leaves no training text: raise it, or set"):
        load(task_settings(folder, "task.max_length=3")).preprocess(backbone.processor)


def test_a_prompt_that_the_model_cannot_take_is_refused(backbone, tmp_path):
    long = {"question": "How many " + "very " * 300 + "?", "answer": "#### 1"}
    task = load(task_settings(write_folder(tmp_path / "data", test=[PROBLEMS[0], long])))
    with pytest.raises(UserError, match=r"prompt 2 of split 'test' has \d+ tokens, but the model takes 256"):
        task.preprocess(backbone.processor)


# --- what counts as right -------------------------------------------------------------------------------------------


def test_each_sample_is_a_prediction_of_its_own(backbone, folder):
    task = load(task_settings(folder, "task.num_samples=3", "task.temperature=1.0", "task.max_new_tokens=8"))
    task.preprocess(backbone.processor)
    (split,) = task.evaluation
    assert split.labels == [5.0] * 3 + [7.0] * 3 + [9.0] * 3 + [11.0] * 3
    assert [example["key"] for example in split.examples][:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert all(
        len(example["input_ids"]) == length for example, length in zip(split.examples, split.lengths, strict=True)
    )
    texts = task.written(backbone.model, task.collate(list(split.examples)))
    again = task.written(backbone.model, task.collate(list(split.examples[3:5])))
    assert texts[3:5] == again
    assert len(set(texts)) > 6


def test_scores_over_samples(folder):
    task = load(task_settings(folder, "task.num_samples=3", "task.temperature=1.0"))
    labels = [5.0] * 3 + [7.0] * 3 + [9.0] * 3 + [11.0] * 3

    class OfSplit:
        pass

    OfSplit.labels = labels
    given = [5, 1, 5, math.nan, math.nan, 7, math.nan, math.nan, math.nan, 2, 3, 11]
    assert task.score(OfSplit, given) == {
        "accuracy": 4 / 12,
        "unparsed": 5.0,
        "majority_accuracy": 2
        / 4,  # rows 1 and 2: a text without a number has no vote; of equal votes the first counts
        "any_accuracy": 3 / 4,
    }


def test_predictions_are_final_numbers_and_the_loss_is_that_of_the_solutions(backbone, folder, monkeypatch):
    task = load(task_settings(folder))
    task.preprocess(backbone.processor)
    (split,) = task.evaluation
    batch = task.collate(list(split.examples))
    monkeypatch.setattr(task, "written", lambda model, batch: [" 2+3 #### 5", "it is 7", "#### 9,000", ""])
    with torch.no_grad():
        loss, numbers = task.predict(backbone.model, batch)
        total, count = 0.0, 0
        for pair in task.asked["test"]:
            ids = torch.tensor([backbone.processor(pair.text)["input_ids"]])
            labels = ids.clone()
            labels[:, : len(backbone.processor(pair.prompt)["input_ids"])] = IGNORED
            tokens = int((labels != IGNORED).sum())
            total += float(backbone.model(input_ids=ids, labels=labels).loss) * tokens
            count += tokens
    assert float(loss) == pytest.approx(total / count, rel=1e-4)
    assert numbers.dtype == torch.float64
    assert numbers[[0, 2]].tolist() == [5.0, 9000.0]
    assert numbers[[1, 3]].isnan().all()
    assert task.score(split, numbers.tolist()) == {"accuracy": 0.25, "unparsed": 2.0}
    kept = load(task_settings(folder, "task.last_number=true")).numbers([], ["it is 7"])
    assert kept == [7.0]
