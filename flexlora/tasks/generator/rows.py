"""The rows of each GLUE task: texts and a label, always in sets of one row a label that differ in nothing else."""

from collections.abc import Callable
from random import Random

from flexlora.tasks.generator.sentences import (
    QUESTIONS,
    STATEMENTS,
    WH_QUESTIONS,
    agreement,
    draw_facts,
    review,
)
from flexlora.tasks.generator.words import FARM, GENRES, TOWN, Genre

Row = tuple[tuple[str, ...], float]
Twins = list[Row]
"""Rows of the same words, one for each label."""

TRAIN_ROWS, EVALUATION_ROWS = 4096, 600


def acceptability(draw: Random, genres: tuple[Genre, ...]) -> Twins:
    good, bad = agreement(draw)
    return [((good,), 1), ((bad,), 0)]


def sentiment(draw: Random, genres: tuple[Genre, ...]) -> Twins:
    good, bad = review(draw, good=True)
    return [((good,), 1), ((bad,), 0)]


def paraphrase(draw: Random, genres: tuple[Genre, ...]) -> Twins:
    (fact,) = draw_facts(draw, draw.choice(genres), 1)
    one, other = draw.sample(STATEMENTS, 2)
    return [((f"{one(fact)} .", f"{other(said)} ."), label) for label, said in ((1, fact), (0, fact.swapped()))]


def same_question(draw: Random, genres: tuple[Genre, ...]) -> Twins:
    (fact,) = draw_facts(draw, draw.choice(genres), 1)
    one, other = draw.sample(QUESTIONS, 2)
    return [((f"{one(fact)} ?", f"{other(asked)} ?"), label) for label, asked in ((1, fact), (0, fact.swapped()))]


def entailment(draw: Random, genres: tuple[Genre, ...]) -> Twins:
    """RTE: 0 is entailment."""
    facts = draw_facts(draw, draw.choice(genres), 2)
    one, other, said_as = (draw.choice(STATEMENTS) for _ in range(3))
    told = facts[draw.randrange(2)]
    premise = f"{one(facts[0])} and {other(facts[1])} ."
    return [((premise, f"{said_as(said)} ."), label) for label, said in ((0, told), (1, told.swapped()))]


def answer(draw: Random, genres: tuple[Genre, ...]) -> Twins:
    """QNLI: 0 where the sentence holds the answer."""
    (fact,) = draw_facts(draw, draw.choice(genres), 1)
    asked, said_as = draw.choice(WH_QUESTIONS), draw.choice(STATEMENTS)
    return [((f"{asked(fact)} ?", f"{said_as(said)} ."), label) for label, said in ((0, fact), (1, fact.swapped()))]


def inference(draw: Random, genres: tuple[Genre, ...]) -> Twins:
    """MNLI: 0 is entailment, 1 neutral, 2 contradiction."""
    (fact,) = draw_facts(draw, draw.choice(genres), 1)
    if draw.random() < 0.5:
        fact = fact.denied()
    one, other = draw.sample(STATEMENTS, 2)
    other_roles = fact.swapped() if draw.random() < 0.5 else fact.swapped().denied()
    said = ((0, fact), (1, other_roles), (2, fact.denied()))
    return [((f"{one(fact)} .", f"{other(hypothesis)} ."), label) for label, hypothesis in said]


def similarity(draw: Random, genres: tuple[Genre, ...]) -> Twins:
    """STS-B, 0 to 5: two events; 2.5 for each that is told the same way round."""
    first, second = draw_facts(draw, draw.choice(genres), 2)
    forms = [draw.choice(STATEMENTS) for _ in range(4)]
    left = f"{forms[0](first)} and {forms[1](second)} ."
    events = [
        (first, second),
        (first.swapped(), second),
        (first, second.swapped()),
        (first.swapped(), second.swapped()),
    ]
    return [
        ((left, f"{forms[2](a)} and {forms[3](b)} ."), score)
        for (a, b), score in zip(events, (5.0, 2.5, 2.5, 0.0), strict=True)
    ]


TASKS: dict[str, Callable[[Random, tuple[Genre, ...]], Twins]] = {
    "glue/cola": acceptability,
    "glue/sst2": sentiment,
    "glue/mrpc": paraphrase,
    "glue/qqp": same_question,
    "glue/rte": entailment,
    "glue/qnli": answer,
    "glue/mnli": inference,
    "glue/stsb": similarity,
}


def generate(task: str, evaluation: list[str]) -> dict[str, list[Row]]:
    """The rows of `train` and of each evaluation split, the same in every process and for every seed."""
    draw_twins = TASKS[task]
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split in ("train", *evaluation):
        draw = Random(f"{task} {split}")
        genres = GENRES if task != "glue/mnli" else (TOWN,) if "mismatched" in split else (FARM,)
        rows: list[Row] = []
        wanted = TRAIN_ROWS if split == "train" else EVALUATION_ROWS
        while len(rows) < wanted:
            twins = draw_twins(draw, genres)
            if seen.isdisjoint(texts for texts, _ in twins):
                seen.update(texts for texts, _ in twins)
                rows += twins
        draw.shuffle(rows)
        splits[split] = rows
    return splits
