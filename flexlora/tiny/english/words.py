"""The vocabulary. The two genres of reviews share only function words: MNLI's mismatched set is the other genre."""

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
    """The subject of a review, the sides it may have, and pairs of opposite words for good and bad sides."""

    subject: str
    sides: tuple[str, ...]
    opposites: tuple[tuple[str, str], ...]


NOUNS = tuple(map(Noun, ("dog", "cat", "horse", "goat", "doctor", "teacher", "singer", "baker", "lawyer", "pilot")))
TRANSITIVE = tuple(map(Verb, ("chase", "follow", "guard", "greet", "help", "call", "thank", "visit")))
INTRANSITIVE = tuple(map(Verb, ("play", "rest", "wait", "jump")))
PREPOSITIONS = ("near", "behind", "beside")

FILM = Genre(
    "film",
    ("plot", "acting", "music", "ending", "dialogue", "photography"),
    (("superb", "dull"), ("moving", "clumsy"), ("clever", "silly"), ("funny", "tedious"), ("fresh", "stale")),
)
MEAL = Genre(
    "meal",
    ("soup", "service", "wine", "dessert", "bread", "coffee"),
    (("tasty", "bland"), ("delicious", "bitter"), ("warm", "cold"), ("rich", "thin"), ("lovely", "awful")),
)
GENRES = (FILM, MEAL)

_FUNCTION_WORDS = """
the that did has have itself themselves although everybody nobody found heard was is it true i they me them
left pleased displeased why good bad . , ?
"""


def other_forms(word: str) -> tuple[str, ...]:
    """The words that replace `word` in a wrong text: `chase` for `chases`, `dull` for `superb`."""
    return _OTHER_FORMS.get(word, ())


def _paradigms() -> list[tuple[str, ...]]:
    return [
        *((verb.present(True), verb.present(False)) for verb in (*TRANSITIVE, *INTRANSITIVE)),
        *((verb.word, verb.past) for verb in TRANSITIVE),
        *(pair for genre in GENRES for pair in genre.opposites),
        ("itself", "themselves"),
        ("did", "has"),
        ("did", "have"),
        ("everybody", "nobody"),
        ("pleased", "displeased"),
        ("good", "bad"),
        ("i", "they"),
        ("me", "them"),
    ]


_OTHER_FORMS: dict[str, tuple[str, ...]] = {}
for _forms in _paradigms():
    for _form in _forms:
        _OTHER_FORMS[_form] = _OTHER_FORMS.get(_form, ()) + tuple(other for other in _forms if other != _form)

VOCABULARY = tuple(
    dict.fromkeys(
        [
            *_FUNCTION_WORDS.split(),
            *PREPOSITIONS,
            *(noun.form(plural) for noun in NOUNS for plural in (False, True)),
            *(word for genre in GENRES for word in (genre.subject, *genre.sides)),
            *_OTHER_FORMS,
        ]
    )
)
"""All words of the generated texts, in a fixed order."""
