"""Sentences: who does what to whom in several voices, agreement over a distance, reviews with a main clause."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from flexlora.tasks.generator.words import ASPECTS, BAD, GENRES, GOOD, INTRANSITIVE, PREPOSITIONS, Genre, Verb


@dataclass(frozen=True)
class Fact:
    """Somebody did something to somebody, or did not."""

    agent: str
    verb: Verb
    patient: str
    negated: bool = False

    def swapped(self) -> "Fact":
        """The same words, the other way round."""
        return replace(self, agent=self.patient, patient=self.agent)

    def denied(self) -> "Fact":
        """The contrary."""
        return replace(self, negated=not self.negated)


def draw_facts(draw: Random, genre: Genre, count: int) -> list[Fact]:
    """Facts that share no noun and no verb."""
    nouns = [noun.word for noun in draw.sample(genre.nouns, 2 * count)]
    verbs = draw.sample(genre.transitive, count)
    return [Fact(nouns[2 * i], verb, nouns[2 * i + 1]) for i, verb in enumerate(verbs)]


Form = Callable[[Fact], str]


def _not(fact: Fact) -> str:
    return "not " if fact.negated else ""


def active(fact: Fact) -> str:
    if fact.negated:
        return f"the {fact.agent} did not {fact.verb.word} the {fact.patient}"
    return f"the {fact.agent} {fact.verb.past} the {fact.patient}"


def passive(fact: Fact) -> str:
    return f"the {fact.patient} was {_not(fact)}{fact.verb.past} by the {fact.agent}"


def agent_cleft(fact: Fact) -> str:
    return f"it was {_not(fact)}the {fact.agent} that {fact.verb.past} the {fact.patient}"


def patient_cleft(fact: Fact) -> str:
    return f"it was {_not(fact)}the {fact.patient} that the {fact.agent} {fact.verb.past}"


STATEMENTS: tuple[Form, ...] = (active, passive, agent_cleft, patient_cleft)

QUESTIONS: tuple[Form, ...] = (
    lambda fact: f"did the {fact.agent} {fact.verb.word} the {fact.patient}",
    lambda fact: f"was the {fact.patient} {fact.verb.past} by the {fact.agent}",
    lambda fact: f"was it the {fact.agent} that {fact.verb.past} the {fact.patient}",
    lambda fact: f"was it the {fact.patient} that the {fact.agent} {fact.verb.past}",
    lambda fact: f"is it true that the {fact.agent} {fact.verb.past} the {fact.patient}",
)

WH_QUESTIONS: tuple[Form, ...] = (
    lambda fact: f"who {fact.verb.past} the {fact.patient}",
    lambda fact: f"who was the {fact.patient} {fact.verb.past} by",
    lambda fact: f"who did the {fact.agent} {fact.verb.word}",
    lambda fact: f"who was {fact.verb.past} by the {fact.agent}",
)


def agreement(draw: Random) -> tuple[str, str]:
    """A sentence whose subject agrees with something far off, and the same with one form changed so that it does not.

    A noun of a number of its own stands between the two, so that no neighbouring words tell them apart.
    """
    genre = draw.choice(GENRES)
    plural, other, third = (draw.random() < 0.5 for _ in range(3))
    nouns = zip(draw.sample(genre.nouns, 3), (plural, other, third), strict=True)
    subject, between, last = (f"the {noun.form(number)}" for noun, number in nouns)
    inner, outer = draw.sample(genre.transitive, 2)
    plain = draw.choice(INTRANSITIVE)
    near = f"{subject} {draw.choice(PREPOSITIONS)} {between}"

    verbs = plain.present(plural), plain.present(not plural)
    if draw.random() < 0.5:
        verbs = f"{outer.present(plural)} {last}", f"{outer.present(not plural)} {last}"
    kind = draw.randrange(5)
    if kind == 0:
        return _either(f"{near} {{}} .", verbs)
    if kind == 1:
        return _either(f"{subject} that {between} {inner.present(other)} {{}} .", verbs)
    if kind == 2:
        return _either(f"{subject} that {inner.present(plural)} {between} {{}} .", verbs)
    if kind == 3:
        reflexives = ("themselves", "itself") if plural else ("itself", "themselves")
        return _either(f"{near} {outer.past} {{}} .", reflexives)
    if draw.random() < 0.5:
        return _either(f"did {near} {{}} {last} ?", (outer.word, outer.past))
    return _either(f"{'have' if plural else 'has'} {near} {{}} {last} ?", (outer.past, outer.word))


def _either(pattern: str, endings: tuple[str, str]) -> tuple[str, str]:
    """`pattern` with the one and with the other in its gap."""
    return pattern.format(endings[0]), pattern.format(endings[1])


def review(draw: Random, good: bool) -> tuple[str, str]:
    """A review that is good or not, and its mirror image with the opposite verdict.

    Both sides of a film are named, one good and one bad: which of them counts is a matter of the sentence's build. Or
    there is one side only, and either everybody found it so or nobody did.
    """
    first, second = draw.sample(ASPECTS, 2)
    praise, blame = draw.choice(GOOD), draw.choice(BAD)
    words = (praise, blame) if good else (blame, praise)
    kind = draw.randrange(5)
    if kind == 0:
        return _mirrored(f"although the {second} was {{1}} , the {first} was {{0}} .", words)
    if kind == 1:
        return _mirrored(f"the {first} was {{0}} , although the {second} was {{1}} .", words)
    if kind == 2:
        return _mirrored(f"the {first} was {{0}} and the {second} was {{1}} , but i came for the {first} .", words)
    if kind == 3:
        return _mirrored(f"the {second} was {{1}} and the {first} was {{0}} , but i came for the {first} .", words)
    if draw.random() < 0.5:
        return _mirrored(f"everybody found the {first} {{0}} .", words)
    return _mirrored(f"nobody found the {first} {{1}} .", words)


def _mirrored(pattern: str, words: tuple[str, str]) -> tuple[str, str]:
    return pattern.format(*words), pattern.format(*words[::-1])
