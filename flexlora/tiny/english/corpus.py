"""The text for pretraining a small encoder: one or two grammatical sentences without labels."""

from random import Random

from flexlora.tiny.english.sentences import (
    agreement,
    draw_review,
    draw_wordings,
    question,
    simple_agreement,
    simple_review,
    verdict,
)

Text = tuple[str, ...]


def corpus(count: int) -> list[Text]:
    """Generate `count` texts. The second of two sentences means the same as the first, or answers it."""
    draw = Random("corpus")
    return [_text(draw) for _ in range(count)]


def primer(count: int) -> list[Text]:
    """Generate `count` simple texts: agreement of neighbouring words, or a one-word opinion and its verdict."""
    draw = Random("primer")
    return [_simple_text(draw) for _ in range(count)]


def _simple_text(draw: Random) -> Text:
    if draw.random() < 0.4:
        return (simple_agreement(draw),)
    review = draw_review(draw)
    if draw.random() < 0.2:
        return (f"is it true that {simple_review(draw, review)} ?", f"{verdict(review)} .")
    return (f"{simple_review(draw, review)} .", f"{verdict(review)} .")


def _text(draw: Random) -> Text:
    kind = draw.random()
    if kind < 0.15:
        return _simple_text(draw)
    if kind < 0.5:
        return (agreement(draw)[0],)
    review = draw_review(draw)
    (wording,) = draw_wordings(draw, review.genre, 1)
    if kind < 0.9:
        return (f"{wording.text(review)} .", f"{verdict(review)} .")
    return (f"{question(review)} ?", f"{wording.text(review)} .")
