"""`scale=tiny` for GSM8K: word problems, and a LLaMA pretrained on arithmetic in words."""

import itertools
import re
from random import Random

import pytest
import torch
from compose_helpers import settings_of_run

from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.results.record import read_record
from flexlora.settings import MathPrompt
from flexlora.tasks.final_number import final_number
from flexlora.tasks.gsm8k import PROMPTS
from flexlora.tiny.models import tiny_calculator
from flexlora.tiny.pretrain_llama import Pretraining
from flexlora.tiny.tasks.arithmetic import TEST, TRAIN, load
from flexlora.tiny.word_problems import GAINS, LOSSES, WORDS, corpus, problems

TINY = ("task=gsm8k", "scale=tiny", "method=lora")


def task(*overrides: str):
    return load(settings_of_run(*TINY, *overrides).task)


def solved(question: str) -> int:
    """The answer to a problem, by a rule of its own: one sentence at a time, gains and losses."""
    first, *rest = question.split(" . ")
    number = WORDS.index(first.split()[2])
    for sentence in rest[:-1]:
        words = sentence.split(" ", 2)[2].split()
        number += WORDS.index(words[-1]) * {True: 1, False: -1}[" ".join(words[:-1]) in GAINS]
        assert " ".join(words[:-1]) in (*GAINS, *LOSSES)
    return number


def test_solutions_calculate_the_answer_step_by_step():
    for row in problems(300, Random(0)):
        assert final_number(row["answer"]) == solved(row["question"])
        sums = re.findall(r"(\w+) (plus|minus) (\w+) is (\w+) \.", row["answer"])
        assert 1 <= len(sums) <= 3
        for start, sign, step, result in sums:
            value = WORDS.index(start) + (1 if sign == "plus" else -1) * WORDS.index(step)
            assert value == WORDS.index(result)
        assert [start for start, *_ in sums[1:]] == [result for *_, result in sums[:-1]]


def test_test_problems_do_not_occur_in_training_and_data_depends_on_no_seed():
    made, again = task(), task("seed=1")
    assert (len(made.train_pairs), len(made.asked["test"])) == (TRAIN, TEST)
    assert not {pair.prompt for pair in made.train_pairs} & {pair.prompt for pair in made.asked["test"]}
    assert made.train_pairs == again.train_pairs
    assert made.provenance == again.provenance
    assert len(task("task.validation_rows=50").asked["validation"]) == 50


def test_pretraining_targets_are_the_next_words_and_no_text_is_a_problem():
    for stage in (0, 1):
        for text in corpus(stage, 300):
            for (_, target), (following, _) in itertools.pairwise(text):
                assert target is None or following.split()[0] == target
            whole = " ".join(piece for piece, _ in text)
            assert "has" not in whole.split()
            assert "####" not in whole
            if whole.startswith("begin with"):
                assert re.fullmatch(r"begin with .* \. .* is (\w+) \. write \d+ \.", whole)


def test_the_small_model_has_a_token_for_every_word(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_calculator, "PRETRAINING", Pretraining(texts=64, steps=(1, 1), batch_size=4))
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path))
    before = torch.get_rng_state()
    backbone = load_backbone(settings_of_run(*TINY).model, None)
    assert torch.equal(torch.get_rng_state(), before)
    assert backbone.revision == tiny_calculator.content_hash()
    unknown = backbone.processor.unk_token_id
    for prompt in MathPrompt:
        made = task(f"task.prompt={prompt.value}")
        made.preprocess(backbone.processor)
        assert not any(unknown in example["input_ids"] for example in made.train.examples)
        assert not any(unknown in text for example in made.evaluation[0].examples for text in example["texts"])
        assert len(made.train) == TRAIN  # no text is as long as task.max_length
    text = backbone.processor.decode(backbone.processor("#### 12")["input_ids"], skip_special_tokens=True)
    assert final_number(text) == 12
    assert PROMPTS[MathPrompt.qa].endswith("A:")


def test_the_hash_covers_the_texts_and_the_pretraining(monkeypatch):
    plain = tiny_calculator.content_hash()
    for target, value in (
        ("flexlora.tiny.small_llama.SHAPE", {"hidden_size": 32}),
        ("flexlora.tiny.word_problems.__file__", __file__),
        ("flexlora.tiny.models.tiny_calculator.PRETRAINING", Pretraining(seed=1)),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(target, value)
            assert tiny_calculator.content_hash() != plain, target


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.data_dir=somewhere", "scale=tiny generates its data: leave out task.data_dir"),
        ("task.train_file=a.json", "scale=tiny generates its data: leave out task.train_file"),
    ],
)
def test_data_of_ones_own_is_refused(override, said):
    with pytest.raises(UserError, match=re.escape(said)):
        task(override)


@pytest.mark.slow
def test_adapting_solves_a_quarter_of_the_problems(flexlora_run, tmp_path):
    """The model solves no problem at the start: the format of a solution is new to it."""
    done = flexlora_run(*TINY, f"output_root={tmp_path}", timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_record(tmp_path / "tiny/gsm8k/llama3_1_8b/lora/default/seed0/result.json")
    assert record.metrics["last"]["accuracy"] >= 1 / 4
