"""Sentences with long-distance agreement, and reviews whose verdict depends on their structure."""

from dataclasses import dataclass, replace
from random import Random

from flexlora.tiny.english.words import GENRES, INTRANSITIVE, NOUNS, PREPOSITIONS, TRANSITIVE, Genre


def agreement(draw: Random) -> tuple[str, str]:
    """Make a sentence with long-distance agreement, and the same sentence with one form changed to break it.

    Another noun, singular or plural at random, is between the two agreeing words. Neighbouring words therefore do not
    reveal which sentence is correct.
    """
    plural, other, third = (draw.random() < 0.5 for _ in range(3))
    nouns = zip(draw.sample(NOUNS, 3), (plural, other, third), strict=True)
    subject, between, last = (f"the {noun.form(number)}" for noun, number in nouns)
    inner, outer = draw.sample(TRANSITIVE, 2)
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


def simple_agreement(draw: Random) -> str:
    """Make a sentence whose subject agrees with the verb right after it."""
    plural, other = draw.random() < 0.5, draw.random() < 0.5
    subject, object_ = draw.sample(NOUNS, 2)
    if draw.random() < 0.5:
        return f"the {subject.form(plural)} {draw.choice(INTRANSITIVE).present(plural)} ."
    return f"the {subject.form(plural)} {draw.choice(TRANSITIVE).present(plural)} the {object_.form(other)} ."


def _either(pattern: str, endings: tuple[str, str]) -> tuple[str, str]:
    """Fill the gap of `pattern` with each of the two endings."""
    return pattern.format(endings[0]), pattern.format(endings[1])


@dataclass(frozen=True)
class Review:
    """The content of a review: its subject, its author (I or they), and whether it is good."""

    genre: Genre
    mine: bool
    good: bool

    @property
    def contrary(self) -> "Review":
        """The same review with the opposite verdict."""
        return replace(self, good=not self.good)

    @property
    def of_another(self) -> "Review":
        """The same verdict by the other author."""
        return replace(self, mine=not self.mine)


def draw_review(draw: Random, genre: Genre | None = None) -> Review:
    return Review(genre or draw.choice(GENRES), draw.random() < 0.5, draw.random() < 0.5)


@dataclass(frozen=True)
class Wording:
    """The wording of a review. A good and a bad review use the same words: praise and blame swap places.

    The review names a good and a bad side, and the main clause decides; or it says what everybody or nobody found.
    """

    sides: tuple[str, str]
    words: tuple[str, str]
    """One word of praise and one of blame."""
    kind: int
    by_nobody: bool

    def text(self, review: Review) -> str:
        first, second = self.sides
        praise, blame = self.words
        main, side = (praise, blame) if review.good else (blame, praise)
        who = "i" if review.mine else "they"
        if self.kind == 0:
            return f"although {who} found the {first} {side} , the {second} was {main}"
        if self.kind == 1:
            return f"{who} found the {first} {main} , although the {second} was {side}"
        if self.by_nobody:
            return f"{who} heard that nobody found the {first} {side}"
        return f"{who} heard that everybody found the {first} {main}"


def draw_wordings(draw: Random, genre: Genre, count: int) -> list[Wording]:
    """Draw `count` wordings that share no side and no word of praise or blame."""
    sides = draw.sample(genre.sides, 2 * count)
    praise = draw.sample([good for good, _ in genre.opposites], count)
    blame = draw.sample([bad for _, bad in genre.opposites], count)
    return [
        Wording((sides[2 * i], sides[2 * i + 1]), words, draw.randrange(3), draw.random() < 0.5)
        for i, words in enumerate(zip(praise, blame, strict=True))
    ]


def simple_review(draw: Random, review: Review) -> str:
    """Make a review of one side, with one word of praise or blame."""
    praise, blame = draw.choice(review.genre.opposites)
    who, side = "i" if review.mine else "they", draw.choice(review.genre.sides)
    return f"{who} found the {side} {praise if review.good else blame}"


def verdict(review: Review) -> str:
    """State the verdict of the review in one short sentence."""
    who, how = "me" if review.mine else "them", "pleased" if review.good else "displeased"
    return f"the {review.genre.subject} left {who} {how}"


def question(review: Review) -> str:
    """Make the question that such a review answers."""
    return f"why was the {review.genre.subject} {'good' if review.good else 'bad'}"
