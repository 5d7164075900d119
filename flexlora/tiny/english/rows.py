"""The rows of each GLUE task: texts and a label.

The rows come in sets with one row for each label. The rows of a set differ only in a word form or in their order.
"""

from collections.abc import Callable
from random import Random

from flexlora.tiny.english.sentences import Review, agreement, draw_review, draw_wordings, question, verdict
from flexlora.tiny.english.words import FILM, GENRES, MEAL, Genre

Row = tuple[tuple[str, ...], float]

TRAIN_ROWS, EVALUATION_ROWS = 4096, 600


def acceptability(draw: Random, genre: Genre) -> list[Row]:
    """CoLA: is the subject's agreement correct?"""
    good, bad = agreement(draw)
    return [((good,), 1), ((bad,), 0)]


def sentiment(draw: Random, genre: Genre) -> list[Row]:
    """SST-2: is the review good?"""
    review = draw_review(draw, genre)
    (wording,) = draw_wordings(draw, genre, 1)
    return [((f"{wording.text(said)} .",), int(said.good)) for said in (review, review.contrary)]


def paraphrase(draw: Random, genre: Genre) -> list[Row]:
    """MRPC: do two reviews mean the same?"""
    review = draw_review(draw, genre)
    one, other = draw_wordings(draw, genre, 2)
    return [
        ((f"{one.text(review)} .", f"{other.text(said)} ."), label)
        for label, said in ((1, review), (0, review.contrary))
    ]


def same_question(draw: Random, genre: Genre) -> list[Row]:
    """QQP: do two questions ask the same?"""
    review = draw_review(draw, genre)
    one, other = draw_wordings(draw, genre, 2)
    return [
        ((f"is it true that {one.text(review)} ?", f"is it true that {other.text(asked)} ?"), label)
        for label, asked in ((1, review), (0, review.contrary))
    ]


def entailment(draw: Random, genre: Genre) -> list[Row]:
    """RTE: does the verdict follow from the review? Label 0 means that it does."""
    review = draw_review(draw, genre)
    (wording,) = draw_wordings(draw, genre, 1)
    premise = f"{wording.text(review)} ."
    return [((premise, f"{verdict(said)} ."), label) for label, said in ((0, review), (1, review.contrary))]


def answer(draw: Random, genre: Genre) -> list[Row]:
    """QNLI: does the review answer the question? Label 0 means that it does."""
    review = draw_review(draw, genre)
    (wording,) = draw_wordings(draw, genre, 1)
    asked = f"{question(review)} ?"
    return [((asked, f"{wording.text(said)} ."), label) for label, said in ((0, review), (1, review.contrary))]


def inference(draw: Random, genre: Genre) -> list[Row]:
    """MNLI: label 0 if the verdict follows, 2 if it contradicts the review, 1 if it is another person's verdict."""
    review = draw_review(draw, genre)
    (wording,) = draw_wordings(draw, genre, 1)
    either = review.of_another if draw.random() < 0.5 else review.of_another.contrary
    said = ((0, review), (1, either), (2, review.contrary))
    return [((f"{wording.text(review)} .", f"{verdict(hypothesis)} ."), label) for label, hypothesis in said]


def similarity(draw: Random, genre: Genre) -> list[Row]:
    """STS-B: 2.5 points for the same verdict, and 2.5 points for the same person."""
    review = draw_review(draw, genre)
    (wording,) = draw_wordings(draw, genre, 1)
    others: list[tuple[Review, float]] = [
        (review, 5.0),
        (review.contrary, 2.5),
        (review.of_another, 2.5),
        (review.of_another.contrary, 0.0),
    ]
    return [((f"{wording.text(review)} .", f"{verdict(other)} ."), score) for other, score in others]


TASKS: dict[str, Callable[[Random, Genre], list[Row]]] = {
    "glue/cola": acceptability,
    "glue/sst2": sentiment,
    "glue/mrpc": paraphrase,
    "glue/qqp": same_question,
    "glue/rte": entailment,
    "glue/qnli": answer,
    "glue/mnli": inference,
    "glue/stsb": similarity,
}


def generate(task: str, evaluation: list[str]) -> dict[str, list[Row]]:
    """Generate the rows of `train` and of each evaluation split, identical in every process and for every seed.

    No text or pair of texts occurs twice. MNLI's training and matched sets are about films, and its mismatched set is
    about meals. All other tasks mix films and meals.
    """
    seen: set[tuple[str, ...]] = set()
    splits: dict[str, list[Row]] = {}
    for split in ("train", *evaluation):
        draw = Random(f"{task} {split}")
        genres = GENRES if task != "glue/mnli" else (MEAL,) if split == "mismatched" else (FILM,)
        rows: list[Row] = []
        while len(rows) < (TRAIN_ROWS if split == "train" else EVALUATION_ROWS):
            together = TASKS[task](draw, draw.choice(genres))
            if seen.isdisjoint(texts for texts, _ in together):
                seen.update(texts for texts, _ in together)
                rows += together
        draw.shuffle(rows)
        splits[split] = rows
    return splits
