"""Arithmetic in words: texts for pretraining that calculate, and word problems that ask for the same calculations.

All numbers are from 0 to 18, in words. A solution calculates step by step and ends with `####` and the number in
digits, as GSM8K's solutions do.
"""

from random import Random

from flexlora.tiny.pretrain_llama import Text

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
LARGEST_STEP = 9
"""The largest number that is added or taken away."""

NAMES = ("anna", "ben", "carla", "david", "emma", "frank", "grace", "henry", "iris", "jack", "kim", "leo")
THINGS = ("apples", "books", "coins", "eggs", "flowers", "stamps", "marbles", "pens")
GAINS = ("finds", "buys", "gets", "wins", "picks", "collects")
LOSSES = ("loses", "sells", "drops", "breaks", "gives away", "throws away")

Step = tuple[bool, int]
"""Whether a number is added, and the number."""


def steps(draw: Random, start: int, count: int) -> list[Step]:
    """Draw `count` steps from `start` whose results are all in `WORDS`."""
    drawn: list[Step] = []
    now = start
    for _ in range(count):
        adds = draw.random() < 0.5
        room = len(WORDS) - 1 - now if adds else now
        if room == 0:
            adds = not adds
            room = len(WORDS) - 1 - now if adds else now
        number = draw.randint(1, min(LARGEST_STEP, room))
        drawn.append((adds, number))
        now += number if adds else -number
    return drawn


def calculation(start: int, todo: list[Step]) -> tuple[str, int]:
    """Write a calculation step by step in words, and return it with its result."""
    sentences = []
    now = start
    for adds, number in todo:
        after = now + number if adds else now - number
        sentences.append(f"{WORDS[now]} {'plus' if adds else 'minus'} {WORDS[number]} is {WORDS[after]} .")
        now = after
    return " ".join(sentences), now


# --- pretraining ------------------------------------------------------------------------------------------------------


def corpus(stage: int, count: int) -> list[Text]:
    """Generate `count` texts of a stage of pretraining: single sums and the digits of numbers, then also exercises."""
    draw = Random(f"sums {stage}")
    kinds = (_sums, _digits) if stage == 0 else (_sums, _digits, _exercise, _exercise, _exercise)
    return [draw.choice(kinds)(draw) for _ in range(count)]


def _sums(draw: Random) -> Text:
    """Four sums, whose results follow from their numbers."""
    pieces: Text = []
    for _ in range(4):
        start = draw.randrange(len(WORDS))
        text, result = calculation(start, steps(draw, start, 1))
        said = text.removesuffix(f" {WORDS[result]} .")
        pieces += [(said, WORDS[result]), (f"{WORDS[result]} .", None)]
    return pieces


def _digits(draw: Random) -> Text:
    """Six numbers in words and in digits."""
    numbers = draw.sample(range(len(WORDS)), 6)
    return [piece for n in numbers for piece in ((f"write {WORDS[n]}", str(n)), (f"{n} .", None))]


def _exercise(draw: Random) -> Text:
    """An exercise and its calculation. Every word of the calculation follows from the earlier text."""
    start = draw.randrange(len(WORDS))
    todo = steps(draw, start, draw.randint(1, 3))
    text, result = calculation(start, todo)
    asked = " , ".join([WORDS[start], *(f"{'plus' if adds else 'minus'} {WORDS[number]}" for adds, number in todo)])
    words = [*text.split(), "write", str(result)]
    pieces: Text = [(f"begin with {asked} .", words[0])]
    return [*pieces, *zip(words, [*words[1:], "."], strict=True), (".", None)]


# --- word problems ----------------------------------------------------------------------------------------------------


def problems(count: int, draw: Random) -> list[dict[str, str]]:
    """Generate `count` different problems of one to three steps, in GSM8K's columns."""
    rows: dict[str, str] = {}
    while len(rows) < count:
        question, answer = _problem(draw)
        rows[question] = answer
    return [{"question": question, "answer": answer} for question, answer in rows.items()]


def _problem(draw: Random) -> tuple[str, str]:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    start = draw.randrange(len(WORDS))
    todo = steps(draw, start, draw.randint(1, 3))
    told = [f"{name} has {WORDS[start]} {thing} ."]
    told += [f"then {name} {draw.choice(GAINS if adds else LOSSES)} {WORDS[number]} ." for adds, number in todo]
    text, result = calculation(start, todo)
    return " ".join([*told, f"how many {thing} does {name} have ?"]), f"{text} #### {result}"
