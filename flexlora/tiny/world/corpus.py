"""What a small language model reads before it is ever asked: the small world stated, and choices in other words.

A text is pieces, each with what is to be said after it where that follows from what stands before. None of the
benchmark's eight formats occurs, nor a sentence of its answers.
"""

from collections.abc import Callable
from functools import partial
from random import Random

from flexlora.tasks.commonsense_prompts import training_text
from flexlora.tasks.commonsense_rows import FORMATS
from flexlora.tiny.world.things import PEOPLE, QUALITIES

Text = list[tuple[str, str | None]]

NAMES = (*PEOPLE, *(word for words in FORMATS[1:] for word in words))
"""Whoever, and whatever, has something: people, and the words that number options."""


def facts(draw: Random) -> Text:
    """Some things and what they are."""
    pieces: Text = []
    for _ in range(6):
        quality = draw.choice(sorted(QUALITIES))
        pieces += [(f"the {draw.choice(QUALITIES[quality])} is", quality), (f"{quality} .", None)]
    return pieces


def choice(draw: Random, *, judged: bool) -> Text:
    """Who of a few has what is asked for; judged, after each it is to be said whose it is if it is that, else "false".

    No verdict stands in the text, from where it would be read off; and it is said after the full stop, a word that is
    always the same, from where a model soon learns to look back at name and thing.
    """
    count = draw.randint(2, 5)
    qualities = draw.sample(sorted(QUALITIES), count)
    right = draw.randrange(count)
    names = draw.sample(NAMES, count)
    of_things = draw.random() < 0.5
    pieces: Text = [(f"who has something like {_word(qualities[right], draw, thing=draw.random() < 0.5)} ?", None)]
    for number, (name, quality) in enumerate(zip(names, qualities, strict=True)):
        verdict = name if number == right else "false"
        pieces.append((f"{name} : {_word(quality, draw, thing=of_things)} .", verdict if judged else None))
    return [*pieces, ("so it is", names[right]), (f"{names[right]} .", None)]


def instructed(draw: Random) -> Text:
    """A choice as an instruction that is followed, in the template of Alpaca: who has it, or what it is that he has."""
    (question, _), *options, (_, name), _ = choice(draw, judged=True)
    response = name
    if draw.random() < 0.7:
        question = question.replace("who has something", "what is")
        *_, response, _ = next(option for option, said in options if said == name).split()
    text = " ".join([question, *(option for option, _ in options)])
    return [(training_text({"instruction": text, "input": ""}, ""), response), (response or "", None)]


def _word(quality: str, draw: Random, *, thing: bool) -> str:
    return draw.choice(QUALITIES[quality]) if thing else quality


CURRICULUM: tuple[dict[Callable[[Random], Text], int], ...] = (
    {facts: 1, partial(choice, judged=True): 4},
    {facts: 1, partial(choice, judged=True): 1, partial(choice, judged=False): 1, instructed: 2},
)
"""What is read one after the other, and how many parts of it are of each kind. Begun with the last of it, choosing is
not learned at all."""


def corpus(stage: int, count: int) -> list[Text]:
    """So many texts of a stage of the curriculum."""
    draw = Random(f"stage {stage}")
    kinds = CURRICULUM[stage]
    return [draw.choices(list(kinds), list(kinds.values()))[0](draw) for _ in range(count)]
