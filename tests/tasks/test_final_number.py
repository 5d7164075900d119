"""The final number of a solution: every way to write it, all of GSM8K's real solutions, and what is no number."""

import json

import pytest

from flexlora.tasks.final_number import COMPLETE, final_number

WRITTEN = [
    ("#### 1,080", 1080),
    ("####72", 72),
    ("#### 109,200,000", 109_200_000),
    ("#### -7", -7),
    ("#### \u221212", -12),
    ("#### $3.50", 3.5),
    ("#### -$3.50", -3.5),
    ("#### $-3.50", -3.5),
    ("#### \\$18", 18),
    ("#### 50%", 50),
    ("#### 5.", 5),
    ("#### .5", 0.5),
    ("#### 18.00", 18),
    ("#### 1/2", 0.5),
    ("#### 2 1/2 hours", 2.5),
    ("#### 42 apples and 3 pears", 42),
    ("#### 3 + 4 = 7 apples", 7),
    ("#### x = -4", -4),
    ("#### 10-12", 10),
    ("The answer is: 7.", 7),
    ("So the answer is $1,234.00 dollars.", 1234),
    ("\\boxed{42}", 42),
    ("so \\boxed{\\text{72 cm}} it is", 72),
    ("\\boxed{\\frac{3}{4}}", 0.75),
    ("\\boxed{1{,}080}", 1080),
    ("first #### 3\nthen #### 4", 4),
    ("#### 5\nThe answer is: 6", 5),
    ("\\boxed{8} The answer is 9", 8),
    ("The answer is 5\nno, the answer is 6", 6),
    ("#### none\nThe answer is 6", 6),
    ("#### 12\n\nQ: how many are left?\nA: 1\n#### 13", 12),
    ("#### 12\n### Instruction:\nnext\n#### 13", 12),
]


@pytest.mark.parametrize(("text", "number"), WRITTEN, ids=[text for text, _ in WRITTEN])
def test_a_number_is_read_however_it_is_written(text, number):
    assert final_number(text) == number
    assert final_number(f"48/2 = <<48/2=24>>24, and 3 more. {text}") == number
    assert final_number(text, last=True) == number


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("", None),
        ("no number", None),
        ("#### five", None),
        ("#### 1/0", None),
        ("#### " + "9" * 5000, None),
        ("He has 20-5 left", 5),
        ("it is 3 or -4 ", -4),
        ("f(3)-4", 4),
        ("7 cats, 8 dogs", 8),
    ],
)
def test_a_text_without_a_mark_has_a_number_only_if_the_last_one_counts(text, last):
    assert final_number(text) is None
    assert final_number(text, last=True) == last


def test_every_real_solution_has_the_number_after_its_mark(shared):
    count = 0
    for split in ("train", "test"):
        for line in (shared / "data" / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            answer = json.loads(line)["answer"]
            assert final_number(answer) == float(answer.split("####")[1].replace(",", "")), answer
            count += 1
    assert count == 7473 + 1319


@pytest.mark.parametrize(
    ("text", "complete"),
    [("= 7\n#### 7\n", True), ("#### 1,0", False), ("#### \n", False), ("7\n\nQ: Tom", True), ("is 7.\nSo", False)],
)
def test_a_text_is_complete_when_its_number_cannot_change(text, complete):
    assert (COMPLETE.search(text) is not None) is complete
