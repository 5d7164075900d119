"""Functions of one number that take one to three steps: texts for pretraining, and problems in HumanEval's columns.

A step is said in words and written in Python: "multiply by three" is `x = x * 3`. A function is written on one line,
because the small model's tokens are words and marks without line breaks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from flexlora.tasks.humaneval_text import INSTRUCTION
from flexlora.tiny.pretrain_llama import Text

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = (
    *("blip", "crad", "dorn", "elvo", "fimp", "gask", "hulo", "inka", "jost", "kerb", "lund", "mivo"),
    *("narp", "ostu", "pell", "quin", "rask", "sorn", "tivo", "ulmo", "vask", "wern", "yolt", "zamp"),
)


@dataclass(frozen=True)
class Kind:
    """A kind of step. `{word}` and `{digit}` stand for its number, if it has one."""

    said: str
    code: str
    result: Callable[[int, int], int]


KINDS = (
    Kind("add {word}", "x = x + {digit}", lambda x, n: x + n),
    Kind("subtract {word}", "x = x - {digit}", lambda x, n: x - n),
    Kind("multiply by {word}", "x = x * {digit}", lambda x, n: x * n),
    Kind("take the remainder by {word}", "x = x % {digit}", lambda x, n: x % n),
    Kind("take the larger of it and {word}", "x = max ( x , {digit} )", max),
    Kind("take the smaller of it and {word}", "x = min ( x , {digit} )", min),
    Kind("square it", "x = x * x", lambda x, n: x * x),
    Kind("negate it", "x = - x", lambda x, n: -x),
    Kind("drop the sign", "x = abs ( x )", lambda x, n: abs(x)),
)

Step = tuple[int, int]
"""The numbers of a step's kind and of its number, from 0."""


def steps(draw: Random, count: int) -> tuple[Step, ...]:
    """Draw `count` steps."""
    return tuple((draw.randrange(len(KINDS)), draw.randrange(len(NUMBERS))) for _ in range(count))


def said(step: Step) -> str:
    """Return a step in words."""
    kind, number = step
    return KINDS[kind].said.format(word=NUMBERS[number])


def in_order(todo: Sequence[Step]) -> str:
    """Return steps in words."""
    return ", then ".join(said(step) for step in todo)


def code(step: Step) -> str:
    """Return a step in Python, with a space between all tokens."""
    kind, number = step
    return KINDS[kind].code.format(digit=number + 1)


def result(todo: Sequence[Step], x: int) -> int:
    """Take the steps from `x`."""
    for kind, number in todo:
        x = KINDS[kind].result(x, number + 1)
    return x


# --- pretraining ------------------------------------------------------------------------------------------------------


def corpus(stage: int, count: int) -> list[Text]:
    """Generate `count` texts for pretraining: single steps first, then also orders of several steps.

    The texts have neither the form of a problem nor that of a function.
    """
    draw = Random(f"functions {stage}")
    kinds = (_translated,) if stage == 0 else (_translated, _order, _order, _order)
    return [draw.choice(kinds)(draw) for _ in range(count)]


def _translated(draw: Random) -> Text:
    """Four single steps in words and in code. Every word of the code follows from the earlier text."""
    pieces: Text = []
    for step in steps(draw, 4):
        pieces += _followed(f"step : {said(step)} . code :", f"{code(step)} .")
    return pieces


def _order(draw: Random) -> Text:
    """A name and one to three steps in words, in either of two forms, then the name and the code."""
    name, todo = draw.choice(NAMES), steps(draw, draw.randint(1, 3))
    asked = in_order(todo)
    order = draw.choice((f"order {name} : {asked} .", f'def {name}(x): """{asked}."""'))
    return _followed(f"{order} code :", f"def {name} : {' ; '.join(code(step) for step in todo)} .")


def _followed(asked: str, words: str) -> Text:
    """Return a text whose `words`, after `asked`, all follow from the earlier text."""
    first, *others = words.split()
    return [(asked, first), *zip([first, *others[:-1]], others, strict=True), (others[-1], None)]


# --- problems ---------------------------------------------------------------------------------------------------------


def problems(count: int, draw: Random) -> list[dict[str, str]]:
    """Generate `count` problems with different steps, in HumanEval's and CodeFeedback's columns."""
    orders: dict[str, dict[str, str]] = {}
    while len(orders) < count:
        todo = steps(draw, draw.randint(1, 3))
        orders[in_order(todo)] = _problem(draw, todo)
    return list(orders.values())


def _problem(draw: Random, todo: tuple[Step, ...]) -> dict[str, str]:
    name = draw.choice(NAMES)
    prompt = f'def {name}(x):\n    """{in_order(todo).capitalize()}."""\n'
    lines = [*(code(step) for step in todo), "return x"]
    checks = [f"    assert candidate({x}) == {result(todo, x)}\n" for x in sorted(draw.sample(range(-12, 13), 6))]
    return {
        "prompt": prompt,
        "canonical_solution": "".join(f"    {line}\n" for line in lines),
        "test": f"def check(candidate):\n{''.join(checks)}",
        "entry_point": name,
        "query": INSTRUCTION.format(prompt=prompt),
        "answer": f"```python\ndef {name} ( x ) : {' ; '.join(lines)}\n```",
    }
