"""`scale=tiny` for Commonsense170K: questions about a small world, and a LLaMA pretrained on texts about it."""

import re
from random import Random

import pytest
import torch
from compose_helpers import settings_of_run

from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.results.record import read_record
from flexlora.tasks.commonsense_rows import FORMATS, TEST_SETS, extract, format_of, options_of
from flexlora.tiny import small_llama
from flexlora.tiny.models import tiny_llama
from flexlora.tiny.pretrain_llama import Pretraining, pretrain
from flexlora.tiny.tasks.small_world import TEST, TRAIN, load
from flexlora.tiny.world import ASKED, ASKED_IN_TRAINING, CURRICULUM, QUALITIES, corpus, rows
from flexlora.tiny.world.questions import LAYOUTS

TINY = ("task=commonsense170k", "scale=tiny", "method=lora")
SHORT = Pretraining(texts=64, steps=(1, 1), batch_size=4)
STAGES = range(len(CURRICULUM))
EVERY = [thing for things in QUALITIES.values() for thing in things]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def quality_of(thing: str) -> str:
    return next(quality for quality, things in QUALITIES.items() if thing in things)


def kind(word: str) -> str:
    """The quality that the word names, or the quality of the thing that it names."""
    return word if word in QUALITIES else quality_of(word)


def task(*overrides: str):
    return load(settings_of_run(*TINY, *overrides).task)


def test_every_thing_has_one_quality():
    assert len(EVERY) == len(set(EVERY)) == 64
    assert not set(EVERY) & set(QUALITIES)
    assert [quality_of(thing) for thing in QUALITIES["sour"]] == ["sour"] * 8


def test_the_task_has_eight_test_sets_and_one_training_set():
    made = task()
    assert list(made.evaluation_rows) == list(TEST_SETS) == list(ASKED) == list(LAYOUTS)
    assert {len(test) for test in made.evaluation_rows.values()} == {TEST}
    assert len(made.train_rows) == TRAIN * len(TEST_SETS)
    again = task("seed=1")
    assert made.train_rows == again.train_rows
    assert made.provenance == again.provenance
    few = task("task.test_sets=[piqa]", "task.train_sets=[boolq,piqa]", "task.max_eval_rows=10")
    assert {name: len(test) for name, test in few.evaluation_rows.items()} == {"piqa": 10}
    assert {format_of(row) for row in few.train_rows} == {FORMATS[0], FORMATS[1]}


@pytest.mark.parametrize("name", TEST_SETS)
def test_exactly_one_option_has_the_quality_asked_for(name):
    """The test reads each question by its own rule and finds exactly one right option."""
    for row in rows(name, QUALITIES, 200, Random(0)):
        assert row["answer"] in TEST_SETS[name]
        assert row["output"] == f"the correct answer is {row['answer']}"
        assert extract(row["output"], TEST_SETS[name]) == row["answer"]
        question, _, listed = row["instruction"].partition("Answer format:")[0].partition("\n\n")
        asked = [word for word in words(question) if word in QUALITIES or word in EVERY]
        if name == "boolq":
            thing, quality = asked
            assert row["answer"] == ("true" if quality_of(thing) == quality else "false")
            continue
        wanted = kind(asked[-1])
        found: dict[str, list[str]] = {}
        for word in words(listed):
            if word in TEST_SETS[name]:
                option = word
            elif word in QUALITIES or word in EVERY:
                found.setdefault(option, []).append(kind(word))
        assert tuple(found) == options_of(row)
        assert [option for option, (quality,) in found.items() if quality == wanted] == [row["answer"]]


def test_all_options_are_right_equally_often():
    for name in TEST_SETS:
        made = rows(name, QUALITIES, 1000, Random(0))
        offered = options_of(made[0])
        for option in offered:
            share = sum(row["answer"] == option for row in made) / 1000
            assert abs(share - 1 / len(offered)) < 0.05, (name, option)


def test_things_of_test_questions_do_not_occur_in_training_questions():
    made = task()
    trained = {word for row in made.train_rows for word in words(row["instruction"])} & set(EVERY)
    tested = {word for test in made.evaluation_rows.values() for row in test for word in words(row["instruction"])}
    assert trained == {thing for things in QUALITIES.values() for thing in things[:ASKED_IN_TRAINING]}
    assert tested & set(EVERY) == set(EVERY) - trained


def test_pretraining_states_every_fact_and_contains_no_benchmark_question():
    texts = [" ".join(piece for piece, _ in text) for stage in STAGES for text in corpus(stage, 2000)]
    for thing in EVERY:
        assert any(f"the {thing} is {quality_of(thing)} ." in text for text in texts)
    for begin, _ in LAYOUTS.values():
        assert not any(begin.partition("{")[0].lower() in text.lower() for text in texts)
    assert not any("the correct answer" in text or "Answer format" in text for text in texts)


def test_the_targets_of_a_choice_follow_from_the_earlier_text():
    """The target of a choice is the name of the only owner whose thing has the quality asked for."""
    choices = [text for text in corpus(0, 300) if text[0][0].startswith("who")]
    assert len(choices) > 200
    for (question, _), *options, (_, answer), (end, _) in choices:
        wanted = kind(words(question)[-1])  # the question is such as "who has something like fire ?"
        holders = []
        for piece, said in options:
            name, what = piece.removesuffix(" .").split(" : ")
            holds = kind(what) == wanted
            assert said == (name if holds else "false")
            holders += [name] * holds
        assert holders == [answer]
        assert end == f"{answer} ."


def test_an_instruction_is_answered_with_the_owner_or_the_owned_thing():
    names = contents = 0
    for text in corpus(len(CURRICULUM) - 1, 600):
        if len(text) != 2:
            continue
        (instruction, response), (end, nothing) = text
        assert (end, nothing) == (response, None)
        question, _, options = instruction.partition("### Instruction:")[2].partition("###")[0].partition(" ? ")
        wanted = kind(words(question)[-1])
        holders = dict(option.split(" : ") for option in options.strip().removesuffix(" .").split(" . "))
        right = {name: what for name, what in holders.items() if kind(what) == wanted}
        assert [(response,)] == ([tuple(right)] if "who" in question else [tuple(right.values())])
        names += "who" in question
        contents += "who" not in question
    assert names > 50
    assert contents > 100


@pytest.fixture
def short(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_llama, "Pretraining", lambda: SHORT)
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path / "cache"))


def test_the_small_llama_has_a_token_for_every_word(short):
    backbone = load_backbone(settings_of_run(*TINY).model, None)
    assert type(backbone.model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in backbone.model.parameters()) < 300_000
    assert backbone.revision == tiny_llama.content_hash(SHORT)
    made = task()
    made.preprocess(backbone.processor)
    unknown = backbone.processor.unk_token_id
    assert not any(unknown in example["input_ids"] for example in made.train.examples)
    assert max(made.train.lengths) < made.settings.max_length  # nothing is cut, and every text has its end
    for split in made.evaluation:
        assert not any(unknown in text for example in split.examples for text in example["texts"])
    prompt = backbone.processor.decode(made.evaluation[0].examples[0]["input_ids"], skip_special_tokens=True)
    assert prompt.endswith("### Response:")  # the protocol cuts a generated text here


def test_the_hash_covers_everything_that_determines_the_language_model(monkeypatch):
    plain = tiny_llama.content_hash(SHORT)
    assert tiny_llama.content_hash(Pretraining()) != plain
    for target, value in (
        ("flexlora.tiny.small_llama.SHAPE", small_llama.SHAPE | {"hidden_size": 32}),
        ("flexlora.tiny.small_llama.SPECIAL", small_llama.SPECIAL | {"pad_token": "<p>"}),
        ("flexlora.tasks.commonsense_prompts.__file__", __file__),
        ("flexlora.tasks.commonsense_rows.__file__", __file__),
        ("flexlora.tiny.models.tiny_llama.source_hash", lambda *parts: "another pretraining"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(target, value)
            assert tiny_llama.content_hash(SHORT) != plain, target
    assert tiny_llama.content_hash(SHORT) == plain


def test_pretraining_lowers_the_loss_and_restores_the_random_state(short, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_backbone(settings_of_run(*TINY).model, None)
    assert torch.equal(torch.get_rng_state(), before)
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_llama._tokenizer()
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **small_llama.SHAPE))
    losses = pretrain(model, tokenizer, Pretraining(texts=400, steps=(60, 1), batch_size=8), corpus)
    assert len(losses) == 61
    assert sum(losses[50:60]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("task.data_dir=somewhere",), "scale=tiny generates its data: leave out task.data_dir"),
        (("task.hub_path=me/mine",), "scale=tiny generates its data: leave out task.hub_path"),
        (("task.test_sets=[piqua]",), "task.test_sets: there is no set 'piqua'. Did you mean piqa?"),
        (("task.test_sets=[]",), "task.test_sets is an empty list"),
    ],
)
def test_unsupported_settings_are_refused(overrides, said):
    with pytest.raises(UserError) as refused:
        task(*overrides)
    assert said in str(refused.value)


def test_a_local_model_is_refused():
    settings = settings_of_run(*TINY).model
    settings.path = "somewhere"
    with pytest.raises(UserError, match="scale=tiny makes its own small model"):
        load_backbone(settings, None)


def unadapted_average() -> float:
    """The average score of the pretrained model on the test questions, before any training."""
    settings = settings_of_run(*TINY)
    backbone, made = load_backbone(settings.model, None), task()
    made.preprocess(backbone.processor)
    scores: dict[str, float] = {}
    for split in made.evaluation:
        batch = made.collate([split.examples[i] for i in range(len(split))])
        with torch.no_grad():
            scores |= made.score(split, made.answered(backbone.model.eval(), batch).tolist())
    return made.aggregate(scores)["average"]


@pytest.mark.slow
def test_adapting_beats_the_unadapted_model_and_chance_and_ranks_change(flexlora_run, tmp_path):
    """The average gains at least 0.10. One matrix ends at rank 10 or more, one at rank 6 or less.

    The model must know things that occur in no training question. LoRA learns to answer in test_tiny_gsm8k.
    """
    done = flexlora_run(*TINY[:2], "method=flexlora", "training.epochs=2", f"output_root={tmp_path}", timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("this happens once") <= 1
    chance = sum(1 / len(options_of(test[0])) for test in task().evaluation_rows.values()) / len(TEST_SETS)
    nothing_known = max(unadapted_average(), chance)
    record = read_record(tmp_path / "tiny/commonsense170k/llama3_8b/flexlora/training.epochs-2/seed0/result.json")
    assert record.metrics["last"]["average"] >= nothing_known + 0.10
    ranks = record.rank_events["final_ranks"].values()
    assert len(ranks) == 20
    assert min(ranks) <= 8 - 2
    assert max(ranks) >= 8 + 2
