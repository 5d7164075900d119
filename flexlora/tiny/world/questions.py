"""Questions about the small world in the formats of the eight test sets, as LLM-Adapters writes them.

Every answer depends only on the quality of a thing. The question itself does not reveal it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from flexlora.tasks.commonsense_prompts import answer_sentence
from flexlora.tasks.commonsense_rows import TEST_SETS, Row
from flexlora.tiny.world.things import PEOPLE

Things = Mapping[str, tuple[str, ...]]
"""Maps a quality to the things that have it."""


@dataclass(frozen=True)
class Question:
    """The text of a question and its options, the right one first."""

    text: str
    options: tuple[str, ...]


def is_it_so(things: Things, draw: Random) -> Question:
    """boolq: does a thing have a quality? In half of the questions it does."""
    quality, other = draw.sample(sorted(things), 2)
    said = draw.choice((quality, other))
    right = said == quality
    return Question(f"is the {_one(things, quality, draw)} {said}", ("true", "false") if right else ("false", "true"))


def how_to_get(things: Things, draw: Random) -> Question:
    """piqa: which of two things has the quality that somebody needs?"""
    quality, other = draw.sample(sorted(things), 2)
    text = f"How does {draw.choice(PEOPLE)} get something {quality}?"
    return Question(text, tuple(f"Take the {_one(things, each, draw)}" for each in (quality, other)))


def how_it_was(things: Things, draw: Random) -> Question:
    """social_i_qa: which of three qualities does somebody find in a thing?"""
    qualities = draw.sample(sorted(things), 3)
    text = f"{draw.choice(PEOPLE)} tried the {_one(things, qualities[0], draw)}. How was it?"
    return Question(text, tuple(qualities))


def how_it_ends(things: Things, draw: Random) -> Question:
    """hellaswag: which of four endings is true of a thing?"""
    qualities = draw.sample(sorted(things), 4)
    text = f"Outside: {draw.choice(PEOPLE)} came to the {_one(things, qualities[0], draw)}, which"
    return Question(text, tuple(f"is {quality}" for quality in qualities))


def which_was_meant(things: Things, draw: Random) -> Question:
    """winogrande: which of two things fills the blank?"""
    quality, other = draw.sample(sorted(things), 2)
    right, wrong = _one(things, quality, draw), _one(things, other, draw)
    first, second = draw.sample((right, wrong), 2)
    text = f"{draw.choice(PEOPLE)} left the {first} beside the {second} because _ was {quality}."
    return Question(text, (right, wrong))


def which_is(things: Things, draw: Random) -> Question:
    """ARC-Easy: which of four things has a quality?"""
    qualities = draw.sample(sorted(things), 4)
    return Question(f"Which of these is {qualities[0]}?", tuple(_one(things, each, draw) for each in qualities))


def which_is_like(things: Things, draw: Random) -> Question:
    """ARC-Challenge: which of four things has the same quality as another thing? The answer takes two steps."""
    qualities = draw.sample(sorted(things), 4)
    like, right = draw.sample(things[qualities[0]], 2)
    wrong = (_one(things, each, draw) for each in qualities[1:])
    return Question(f"Which of these is like the {like}?", (right, *wrong))


def what_it_is(things: Things, draw: Random) -> Question:
    """openbookqa: which of four qualities does a thing have?"""
    qualities = draw.sample(sorted(things), 4)
    return Question(f"The {_one(things, qualities[0], draw)} is", tuple(qualities))


ASKED: dict[str, Callable[[Things, Random], Question]] = {
    "boolq": is_it_so,
    "piqa": how_to_get,
    "social_i_qa": how_it_was,
    "hellaswag": how_it_ends,
    "winogrande": which_was_meant,
    "ARC-Easy": which_is,
    "ARC-Challenge": which_is_like,
    "openbookqa": what_it_is,
}

_ANSWER = ("Please choose the correct answer to the question: {question}", " ")
LAYOUTS: dict[str, tuple[str, str]] = {
    "boolq": ("Please answer the following question with true or false, question: {question}?", ""),
    "piqa": ("Please choose the correct solution to the question: {question}", "\n\n"),
    "social_i_qa": _ANSWER,
    "hellaswag": ("Please choose the correct ending to complete the given sentence: {question}", " "),
    "winogrande": (
        "Please choose the correct answer to fill in the blank to complete the given sentence: {question}",
        " ",
    ),
    "ARC-Easy": _ANSWER,
    "ARC-Challenge": _ANSWER,
    "openbookqa": _ANSWER,
}
"""For each set: the start of its instructions, and the separator between the options."""


def rows(test_set: str, things: Things, count: int, draw: Random) -> list[Row]:
    """Generate `count` rows of a set about `things`. The right option is about equally often in each position."""
    return [_row(test_set, ASKED[test_set](things, draw), draw) for _ in range(count)]


def _row(test_set: str, question: Question, draw: Random) -> Row:
    begin, between = LAYOUTS[test_set]
    text = begin.format(question=question.text)
    words = TEST_SETS[test_set][: len(question.options)]
    if test_set == "boolq":
        answer = question.options[0]
    else:
        order = draw.sample(range(len(words)), len(words))
        answer = words[order.index(0)]
        options = [f"{word.capitalize()}: {question.options[i]}." for word, i in zip(words, order, strict=True)]
        text += "\n\n" + between.join(options)
    before = " " if test_set == "winogrande" else "\n\n"  # as in the real rows
    text += f"{before}Answer format: {'/'.join(words)}"
    return {"instruction": text, "input": "", "output": answer_sentence(answer), "answer": answer}


def _one(things: Things, quality: str, draw: Random) -> str:
    return draw.choice(things[quality])
