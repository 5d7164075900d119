"""The words. Two genres share nothing but function words, so that MNLI's mismatched set is of other words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """A countable noun with a regular plural."""

    word: str

    def form(self, plural: bool) -> str:
        return f"{self.word}s" if plural else self.word


@dataclass(frozen=True)
class Verb:
    """A regular verb: `chase`, `chases`, `chased`."""

    word: str

    def present(self, plural: bool) -> str:
        return self.word if plural else f"{self.word}s"

    @property
    def past(self) -> str:
        return f"{self.word}d" if self.word.endswith("e") else f"{self.word}ed"


@dataclass(frozen=True)
class Genre:
    """What a text is about."""

    nouns: tuple[Noun, ...]
    transitive: tuple[Verb, ...]


def _genre(nouns: str, transitive: str) -> Genre:
    return Genre(tuple(map(Noun, nouns.split())), tuple(map(Verb, transitive.split())))


FARM = _genre("dog cat horse goat duck hen pig owl", "chase follow guard greet lick fear")
TOWN = _genre("doctor teacher singer baker lawyer nurse driver pilot", "help call thank visit admire trust")
GENRES = (FARM, TOWN)
INTRANSITIVE = tuple(map(Verb, ("play", "rest", "wait", "jump")))

PREPOSITIONS = ("near", "behind", "beside")
ASPECTS = ("plot", "acting", "music", "ending", "dialogue", "photography")
GOOD = ("superb", "moving", "clever", "charming", "funny", "fresh")
BAD = ("dull", "clumsy", "tedious", "silly", "bland", "weak")
"""Words of sentiment. Alone they say nothing: every review has as much of the one as of the other."""

_FUNCTION_WORDS = """
the that by was is it true not did who has have although and but nobody everybody found came for i
itself themselves liked disliked film . , ?
"""


def _forms() -> list[str]:
    nouns = [noun.form(plural) for genre in GENRES for noun in genre.nouns for plural in (False, True)]
    transitive = [form for genre in GENRES for verb in genre.transitive for form in (*_present(verb), verb.past)]
    return nouns + transitive + [form for verb in INTRANSITIVE for form in _present(verb)]


def _present(verb: Verb) -> tuple[str, str]:
    return verb.present(True), verb.present(False)


VOCABULARY = tuple(dict.fromkeys([*_FUNCTION_WORDS.split(), *PREPOSITIONS, *ASPECTS, *GOOD, *BAD, *_forms()]))
"""Every word that is ever generated, in a fixed order."""


def other_forms(word: str) -> tuple[str, ...]:
    """The forms that `word` is mistaken for where its grammar is wrong: `dogs` for `dog`, `chase` for `chases`."""
    return _OTHER_FORMS.get(word, ())


def _paradigms() -> list[tuple[str, ...]]:
    nouns = [(noun.form(False), noun.form(True)) for genre in GENRES for noun in genre.nouns]
    transitive = [(*_present(verb), verb.past) for genre in GENRES for verb in genre.transitive]
    return [
        *nouns,
        *transitive,
        *map(_present, INTRANSITIVE),
        ("itself", "themselves"),
        ("did", "has"),
        ("did", "have"),
    ]


_OTHER_FORMS: dict[str, tuple[str, ...]] = {}
for _forms_of_one in _paradigms():
    for _form in _forms_of_one:
        _OTHER_FORMS[_form] = _OTHER_FORMS.get(_form, ()) + tuple(f for f in _forms_of_one if f != _form)

KINDS: dict[str, int] = {}
"""The words that may change places: each noun, each verb, each aspect, each adjective has its kind's number."""
for _kind, _words in enumerate(
    (
        [noun.form(plural) for genre in GENRES for noun in genre.nouns for plural in (False, True)],
        ASPECTS,
        (*GOOD, *BAD),
    )
):
    KINDS |= dict.fromkeys(_words, _kind)
