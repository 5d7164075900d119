"""Commonsense170K's rows, texts and answers equal LLM-Adapters' exactly, and broken rows are refused in one line."""

import json

import pytest
from commonsense_helpers import rows_of_format, task_settings, write_rows
from hypothesis import given
from hypothesis import strategies as st

from flexlora.errors import UserError
from flexlora.tasks.commonsense import load
from flexlora.tasks.commonsense_prompts import answer_sentence, evaluation_prompt, training_text
from flexlora.tasks.commonsense_rows import FORMATS, TEST_SETS, extract, format_of, options_of, read_rows

# Row 1 of openbookqa's test set: the prompt of commonsense_evaluate.py and the training text of finetune.py.
ROW = {
    "instruction": "Pick one.\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}
BLANKS = "                "


def test_a_training_text_equals_that_of_finetune_py():
    assert training_text(ROW, ROW["output"]) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n"
        "\n"
        f"{BLANKS}### Instruction:\n"
        f"{BLANKS}Pick one.\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2\n"
        f"{BLANKS}\n"
        f"{BLANKS}### Response:\n"
        f"{BLANKS}the correct answer is answer2"
    )


def test_a_training_text_with_an_input_has_an_input_section():
    assert training_text(ROW | {"input": "Once."}, "yes") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request. \n"
        "\n"
        f"{BLANKS}### Instruction:\n"
        f"{BLANKS}{ROW['instruction']}\n"
        f"{BLANKS}\n"
        f"{BLANKS}### Input:\n"
        f"{BLANKS}Once.\n"
        f"{BLANKS}\n"
        f"{BLANKS}### Response:\n"
        f"{BLANKS}yes"
    )


def test_a_prompt_equals_that_of_commonsense_evaluate_py():
    assert evaluation_prompt(ROW) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n"
        "\n"
        f"{BLANKS}### Instruction:\n"
        f"{BLANKS}Pick one.\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2\n"
        "\n"
        f"{BLANKS}### Response:\n"
        f"{BLANKS}"
    )


def test_every_real_row_has_its_answer_in_its_output(shared):
    folder = shared / "data" / "commonsense" / "dataset"
    for name in sorted(path.name for path in folder.iterdir()):
        for file in sorted((folder / name).glob("*.json")):
            rows = read_rows(file, name).rows
            assert len(rows) >= 500, file
            for row in rows:
                assert row["output"] == answer_sentence(row["answer"])
                assert extract(row["output"], TEST_SETS[name]) == row["answer"]
                assert row["answer"] in options_of(row)
                assert format_of(row) == TEST_SETS[name]


def test_real_rows_offer_the_options_of_their_instruction(shared):
    rows = read_rows(shared / "data" / "commonsense" / "dataset" / "ARC-Easy" / "test.json", "ARC-Easy").rows
    counts = [len(options_of(row)) for row in rows]
    assert {count: counts.count(count) for count in set(counts)} == {3: 7, 4: 2365, 5: 4}


@pytest.mark.parametrize(
    ("text", "words", "answer"),
    [
        ("the correct answer is answer3", FORMATS[2], "answer3"),
        ("answer2 or answer1", FORMATS[2], "answer2"),
        ("It is untrue, false", FORMATS[0], "true"),  # the surrounding text does not matter
        ("It is true", FORMATS[0], "true"),
        ("True", FORMATS[0], None),  # the protocol searches lower-case words only
        ("", FORMATS[0], None),
        ("answer6", FORMATS[2], None),
        ("solution12", FORMATS[1], "solution1"),
        ("option3 ending2", FORMATS[4], None),
        ("falsetrue", FORMATS[0], "false"),
    ],
)
def test_the_answer_is_the_first_answer_word_in_the_text(text, words, answer):
    assert extract(text, words) == answer


@given(st.sampled_from(FORMATS), st.text(alphabet="truefalsnwi 12345odgp"), st.text(alphabet="truefalsnwi 12345odgp"))
def test_more_text_never_changes_an_answer(words, text, more):
    """An evaluation may therefore stop at the first answer word."""
    answer = extract(text, words)
    assert answer is None or extract(text + more, words) == answer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].pop("answer"), "row 2: 'answer' is missing, empty or not a text"),
        (lambda rows: rows[1].update(answer=""), "row 2: 'answer' is missing, empty or not a text"),
        (lambda rows: rows[0].update(answer="maybe"), "row 1: answer 'maybe' is not one of true, false"),
        (lambda rows: rows[2].pop("instruction"), "row 3: 'instruction' is missing, empty or not a text"),
        (lambda rows: rows[2].update(output=None), "row 3: 'output' is missing, empty or not a text"),
        (lambda rows: rows[2].update(input=3), "row 3: 'input' is not a text"),
        (
            lambda rows: rows.__setitem__(2, "text"),
            "row 3: the row is not an object with instruction, output and answer",
        ),
    ],
)
def test_a_broken_row_is_named_with_its_file(tmp_path, change, message):
    rows = [dict(row) for row in rows_of_format(FORMATS[0], 3)]
    change(rows)
    file = tmp_path / "test.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_rows(file, "boolq")
    assert str(error.value) == f"{file}, {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[{]", "is not JSON: "),
        (b"\xff\xfe\xff", "is UTF-16, not UTF-8"),
        (b"{}", "is not a list of rows"),
        (b"[]", "has no rows"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    file = tmp_path / "test.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_rows(file, "boolq")
    assert str(error.value).startswith(f"{file} {message}")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


def test_a_folder_gives_the_training_file_and_the_test_sets(folder):
    task = load(task_settings(data_dir=str(folder), test_sets=["winogrande", "boolq"]))
    assert len(task.train_rows) == 96
    assert {name: len(rows) for name, rows in task.evaluation_rows.items()} == {"winogrande": 12, "boolq": 12}
    assert list(task.evaluation_rows) == ["winogrande", "boolq"]
    assert not task.subset
    assert set(task.provenance["sha256"]) == {
        "commonsense_170k.json",
        "dataset/winogrande/test.json",
        "dataset/boolq/test.json",
    }


def test_train_sets_take_the_place_of_the_training_file(folder):
    task = load(task_settings(data_dir=str(folder), train_sets=["winogrande"]))
    assert len(task.train_rows) == 48
    assert {row["answer"] for row in task.train_rows} == set(FORMATS[4])


def test_a_row_limit_makes_a_subset(folder):
    task = load(task_settings(data_dir=str(folder), max_train_rows=5, max_eval_rows=3))
    assert (len(task.train_rows), len(task.evaluation_rows["boolq"]), task.subset) == (5, 3, True)


def test_held_out_rows_replace_the_test_sets(folder):
    task = load(task_settings(data_dir=str(folder), validation_rows=10))
    held = task.evaluation_rows["validation"]
    assert (len(task.train_rows), len(held)) == (86, 10)
    assert {words for row in held for words in [format_of(row)]} == {FORMATS[0], FORMATS[4]}
    assert task.main_metric == "average"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_sets": []}, "task.test_sets is an empty list: name one or more of boolq, piqa"),
        ({"test_sets": ["bolq"]}, "task.test_sets: there is no set 'bolq'. Did you mean boolq? There are: boolq"),
        ({"test_sets": ["boolq", "boolq"]}, "task.test_sets names a set twice: boolq, boolq"),
        ({"train_sets": []}, "task.train_sets is an empty list"),
        ({"test_sets": ["piqa"]}, "task.data_dir: neither {folder}/dataset nor {folder} has piqa/test.json"),
        ({"train_sets": ["piqa"]}, "task.data_dir: neither {folder}/dataset nor {folder} has piqa/train.json"),
        ({"train_file": "x.json"}, "task.data_dir: neither {folder}/ft-training_set nor {folder} has x.json"),
        ({"data_dir": "/nowhere"}, "task.data_dir: there is no folder /nowhere"),
        ({"data_dir": None}, "task.data_dir is not set: set it to a folder in LLM-Adapters' layout"),
        (
            {"main_metric": "boolq_acuracy"},
            "task.main_metric: there is no metric 'boolq_acuracy'. Did you mean boolq_accuracy?",
        ),
        ({"validation_rows": 96}, "task.validation_rows=96 leaves none of the 96 rows for training"),
    ],
)
def test_missing_files_and_wrong_settings_are_refused_in_one_line(folder, changes, message):
    with pytest.raises(UserError) as error:
        load(task_settings(**{"data_dir": str(folder), **changes}))
    assert str(error.value).startswith(message.format(folder=folder))
