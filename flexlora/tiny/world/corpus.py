"""The text for pretraining a small language model: statements about the small world, and choices among options.

A text is a list of pieces. Where the next word follows from the earlier text, the piece names it as its target. The
text contains none of the benchmark's eight formats and none of its answer sentences.
"""

from collections.abc import Callable
from functools import partial
from random import Random

from flexlora.tasks.commonsense_prompts import training_text
from flexlora.tasks.commonsense_rows import FORMATS
from flexlora.tiny.pretrain_llama import Text
from flexlora.tiny.world.things import PEOPLE, QUALITIES

NAMES = (*PEOPLE, *(word for words in FORMATS[1:] for word in words))
"""The possible owners in a choice: people, and the words that number options."""


def facts(draw: Random) -> Text:
    """Generate a text that states the qualities of six things."""
    pieces: Text = []
    for _ in range(6):
        quality = draw.choice(sorted(QUALITIES))
        pieces += [(f"the {draw.choice(QUALITIES[quality])} is", quality), (f"{quality} .", None)]
    return pieces


def choice(draw: Random, *, judged: bool) -> Text:
    """Generate a choice: which of a few owners has the thing asked for.

    If `judged`, the target after each option is its owner's name if the option is right, and "false" otherwise. The
    text does not contain these verdicts, so the model cannot copy them. The verdict is predicted at the full stop,
    which is always the same token: from there a model quickly learns to look back at the name and the thing.
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
    """Generate a choice as an instruction with its response, in Alpaca's template: who has it, or what is owned."""
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
"""The stages of pretraining, in order, with the weight of each kind of text. A model that starts with the last stage
does not learn to choose."""


def corpus(stage: int, count: int) -> list[Text]:
    """Generate `count` texts of a stage of the curriculum."""
    draw = Random(f"stage {stage}")
    kinds = CURRICULUM[stage]
    return [draw.choices(list(kinds), list(kinds.values()))[0](draw) for _ in range(count)]
