"""The text that a small model is pretrained on: true to the grammar, one or two sentences, no labels."""

from random import Random

from flexlora.tasks.generator.sentences import (
    QUESTIONS,
    STATEMENTS,
    WH_QUESTIONS,
    agreement,
    draw_facts,
    review,
)
from flexlora.tasks.generator.words import GENRES

Text = tuple[str, ...]


def corpus(count: int) -> list[Text]:
    """`count` texts of one or two sentences; the second of two says what the first says, or answers it."""
    draw = Random("corpus")
    return [_text(draw) for _ in range(count)]


def _text(draw: Random) -> Text:
    kind = draw.random()
    if kind < 0.3:
        return (agreement(draw)[0],)
    if kind < 0.45:
        good = draw.random() < 0.5
        return (review(draw, good)[0], f"i {'liked' if good else 'disliked'} the film .")
    facts = draw_facts(draw, draw.choice(GENRES), 1)
    fact = facts[0]
    if draw.random() < 0.3:
        fact = fact.denied()
    restated = f"{draw.choice(STATEMENTS)(fact)} ."
    if kind < 0.75:
        return (f"{draw.choice(STATEMENTS)(fact)} .", restated)
    if kind < 0.88:
        return (f"{draw.choice((*WH_QUESTIONS, *QUESTIONS))(facts[0])} ?", f"{draw.choice(STATEMENTS)(facts[0])} .")
    first, second = draw_facts(draw, draw.choice(GENRES), 2)
    told = draw.choice((first, second))
    return (
        f"{draw.choice(STATEMENTS)(first)} and {draw.choice(STATEMENTS)(second)} .",
        f"{draw.choice(STATEMENTS)(told)} .",
    )
