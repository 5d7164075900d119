"""`scale=tiny` for HumanEval: functions of a few steps, and a LLaMA pretrained on steps in words and code."""

import itertools
import re
from random import Random

import pytest
from compose_helpers import settings_of_run

from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.results.record import read_record
from flexlora.settings import CodePrompt
from flexlora.tasks import humaneval
from flexlora.tasks.code_execution import Isolation
from flexlora.tiny.functions import corpus, problems
from flexlora.tiny.models import tiny_coder
from flexlora.tiny.pretrain_llama import Pretraining
from flexlora.tiny.tasks.small_functions import TEST, TRAIN, load

TINY = ("task=humaneval", "scale=tiny", "method=lora", "task.run_generated_code=true")


@pytest.fixture(autouse=True)
def isolated(monkeypatch):
    """Tests that run no program in a process need no isolation."""
    monkeypatch.setattr(humaneval, "isolation", lambda: Isolation.namespaces)


def task(*overrides: str):
    return load(settings_of_run(*TINY, *overrides).task)


def runs(program: str) -> bool:
    """Whether a program of ours, which no model wrote, ends without a failing check."""
    try:
        exec(program, {})
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("style", CodePrompt)
def test_solutions_pass_their_tests_and_those_of_other_steps_fail(style):
    rows = problems(200, Random(0))
    made = [humaneval.problem(r["prompt"], r["canonical_solution"], r["test"], r["entry_point"], style) for r in rows]
    assert all(runs(pair.program(pair.output)) for pair in made)
    wrong = [runs(pair.program("    x = x + 1\n    return x")) for pair in made]
    assert sum(wrong) < 10
    if style is CodePrompt.instruction:  # what the model learns to write, on one line
        assert all(runs(pair.program(r["answer"].split("\n")[1])) for pair, r in zip(made, rows, strict=True))


def test_test_problems_do_not_occur_in_training_and_data_depends_on_no_seed():
    made, again = task(), task("seed=1")
    assert (len(made.train_pairs), len(made.asked["test"])) == (TRAIN, TEST)
    said = [re.search(r'"""(.*?)"""', pair.prompt)[1] for pair in (*made.train_pairs, *made.asked["test"])]
    assert not {*said[:TRAIN]} & {*said[TRAIN:]}
    assert made.train_pairs == again.train_pairs
    assert made.provenance == again.provenance


def test_training_prompts_have_the_form_of_test_prompts():
    made = task()
    begin = "### Instruction:\nComplete the following Python code: \n"
    assert all(begin in pair.prompt for pair in (*made.train_pairs, *made.asked["test"]))


def test_pretraining_targets_are_the_next_words_and_no_text_is_a_problem():
    for stage in (0, 1):
        for text in corpus(stage, 300):
            for (_, target), (following, _) in itertools.pairwise(text):
                assert target is None or following.split()[0] == target
            assert "```" not in "".join(piece for piece, _ in text)


def test_the_small_model_has_a_token_for_every_word(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_coder, "PRETRAINING", Pretraining(texts=64, steps=(1, 1), batch_size=4))
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path))
    backbone = load_backbone(settings_of_run(*TINY).model, None)
    assert backbone.revision == tiny_coder.content_hash()
    unknown = backbone.processor.unk_token_id
    for style in CodePrompt:
        made = task(f"task.prompt={style.value}")
        made.preprocess(backbone.processor)
        assert not any(unknown in example["input_ids"] for example in made.train.examples)
        assert not any(unknown in text for example in made.evaluation[0].examples for text in example["texts"])
        assert len(made.train) == TRAIN  # no text is as long as task.max_length
    answer = "```python\ndef blip ( x ) : x = max ( x , 3 ) ; return x\n```"
    text = backbone.processor.decode(backbone.processor(answer)["input_ids"], skip_special_tokens=True)
    assert text == " ".join(answer.replace("python", " python").split())  # a program with its spaces is a program again


def test_the_hash_covers_the_texts_and_the_pretraining(monkeypatch):
    plain = tiny_coder.content_hash()
    for target, value in (
        ("flexlora.tiny.functions.__file__", __file__),
        ("flexlora.tasks.humaneval_text.__file__", __file__),
        ("flexlora.tiny.models.tiny_coder.PRETRAINING", Pretraining(seed=1)),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(target, value)
            assert tiny_coder.content_hash() != plain, target


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.data_dir=somewhere", "scale=tiny generates its data: leave out task.data_dir"),
        ("task.run_generated_code=false", "task.run_generated_code is false"),
    ],
)
def test_what_cannot_be_is_refused(override, said):
    with pytest.raises(UserError, match=re.escape(said)):
        task(override)


@pytest.mark.slow
def test_adapting_writes_half_of_the_functions(flexlora_run, tmp_path):
    """The model writes no function at the start: the form of a function is new to it."""
    done = flexlora_run(*TINY, f"output_root={tmp_path}", timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "generated programs run" in done.stdout + done.stderr
    record = read_record(tmp_path / "tiny/humaneval/llama3_1_8b/lora/default/seed0/result.json")
    assert record.metrics["last"]["pass_at_1"] >= 1 / 2
