"""GSM8K: word problems whose solution ends with a number. The model writes the solution, and its number counts.

docs/reference/gsm8k.md names the protocol and its sources.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from flexlora.errors import UserError, did_you_mean
from flexlora.settings import Gsm8kTask, MathPrompt
from flexlora.tasks.base import Split
from flexlora.tasks.final_number import COMPLETE, final_number
from flexlora.tasks.prompted import ALPACA, Pair
from flexlora.tasks.row_sources import RowFile, Sources, read_sources
from flexlora.tasks.rows import held_out
from flexlora.tasks.text_task import TextTask

UNPARSED = math.nan
"""The prediction for a text without a final number. It equals no number, not even itself."""

TRAIN_FILES = ("MetaMathQA-395K.json", "train.jsonl", "train.json", "train.parquet", "train.csv")
TEST_FILES = ("test.jsonl", "test.json", "test.parquet", "test.csv")
QUESTIONS = ("query", "question", "problem", "instruction", "prompt")
ANSWERS = ("response", "answer", "solution", "output", "completion")
TYPE = "type"
"""MetaMathQA's column that says how a row was made: GSM_Rephrased, MATH_AnsAug, ..."""

# What follows the question must begin with a space: as one text, a tokenizer would join "A: " and the next word.
PROMPTS = {
    MathPrompt.qa: "Q: {question}\nA:",
    MathPrompt.alpaca: ALPACA,
}
REPEATED = re.compile(r"\n\s*The answer is:")
ANNOTATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Problem(Pair):
    """A word problem with its solution and the solution's final number."""

    number: float


class Gsm8k(TextTask[Problem]):
    """A prediction is the final number of a solution, or NaN if the solution has none."""

    settings: Gsm8kTask

    def numbers(self, pairs: Sequence[Problem], texts: Sequence[str]) -> Sequence[float]:
        found = [final_number(text, last=self.settings.last_number) for text in texts]
        return [UNPARSED if number is None else number for number in found]

    def reference(self, pair: Problem) -> float:
        return pair.number

    def is_complete(self, text: str) -> bool:
        return COMPLETE.search(text) is not None

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        """Compute the accuracy over all samples, and the number of samples without a final number, counted wrong.

        With several samples also: the accuracy of each row's most frequent number, and the share of the rows with a
        right sample.
        """
        assert split.labels is not None
        right = [given == wanted for given, wanted in zip(predictions, split.labels, strict=True)]
        scores = {"accuracy": fmean(right), "unparsed": float(sum(map(math.isnan, predictions)))}
        if self.settings.num_samples > 1:
            wanted = [labels[0] for labels in self.by_row(split.labels)]
            voted = [_most_frequent(given) for given in self.by_row(predictions)]
            scores["majority_accuracy"] = fmean(given == number for given, number in zip(voted, wanted, strict=True))
            scores["any_accuracy"] = fmean(map(any, self.by_row(right)))
        return scores


def _most_frequent(numbers: Sequence[float]) -> float:
    """Return the most frequent number, the first of equally frequent ones; NaN if there is no number."""
    counted = Counter(number for number in numbers if not math.isnan(number))
    return counted.most_common(1)[0][0] if counted else UNPARSED


def load(settings: Gsm8kTask) -> Gsm8k:
    """Read the training and test rows from `task.data_dir` or from the hub.

    Raises:
        UserError: a folder, file or column is missing, a row is broken, a test row has no final number, or the hub
            cannot be reached.
    """
    sources = read_sources(settings, TRAIN_FILES, TEST_FILES)
    return gsm8k(settings, sources)


@dataclass(frozen=True)
class _Row:
    """A question, its solution, and the place of the row for messages."""

    question: str
    solution: str
    where: str


def gsm8k(settings: Gsm8kTask, sources: Sources) -> Gsm8k:
    """Make the task from these files, cut to `max_train_rows` and `max_eval_rows`.

    Raises:
        UserError: a metric, a column or the wanted type of rows does not exist, a row is broken, or a test row has no
            final number.
    """
    check_metric(settings)
    train, provenance = _rows(sources.train, settings, settings.train_type), sources.provenance
    if sources.test is None:
        kept, held = held_out(settings.validation_rows or 0, len(train))
        name, tests = "validation", [train[i] for i in held]
        train = [train[i] for i in kept]
        provenance = provenance | {"held_out": len(held)}
    else:
        name, tests = "test", _rows(sources.test, settings, None)
    whole = (len(train), len(tests))
    train, tests = train[: settings.max_train_rows], tests[: settings.max_eval_rows]
    prompt = PROMPTS[settings.prompt]
    pairs = [Pair(prompt.format(question=row.question), f" {row.solution}") for row in train]
    asked = [Problem(prompt.format(question=row.question), f" {row.solution}", _reference(row)) for row in tests]
    return Gsm8k(settings, pairs, {name: asked}, provenance, subset=(len(train), len(tests)) != whole)


def check_metric(settings: Gsm8kTask) -> None:
    """Check `task.main_metric`.

    Raises:
        UserError: the metric does not exist, or not for this number of samples.
    """
    known = ["accuracy", *(["majority_accuracy", "any_accuracy"] if settings.num_samples > 1 else [])]
    if settings.main_metric not in known:
        near = did_you_mean(settings.main_metric, known)
        raise UserError(
            f"task.main_metric: there is no metric '{settings.main_metric}' with task.num_samples="
            f"{settings.num_samples}.{near} There are: {', '.join(known)}."
        )


def _rows(file: RowFile, settings: Gsm8kTask, wanted: str | None) -> list[_Row]:
    """Return the rows of a file. If rows have a type, only those whose type contains `wanted` count."""
    question = file.column("task.question_column", settings.question_column, QUESTIONS)
    answer = file.column("task.answer_column", settings.answer_column, ANSWERS)
    texts = zip(file.texts(question), file.texts(answer), strict=True)
    rows = [
        _Row(asked.strip(), _cleaned(solution, settings), f"{file.path}, row {number}")
        for number, (asked, solution) in enumerate(texts, start=1)
    ]
    if wanted is None or TYPE not in file.columns:
        return rows
    kinds = [str(kind) for kind in file.columns[TYPE]]
    rows = [row for row, kind in zip(rows, kinds, strict=True) if wanted in kind]
    if not rows:
        raise UserError(
            f"task.train_type: {file.path} has no row whose type contains '{wanted}'. "
            f"It has: {', '.join(dict.fromkeys(kinds))}"
        )
    return rows


def _cleaned(solution: str, settings: Gsm8kTask) -> str:
    if settings.remove_annotations:
        solution = ANNOTATION.sub("", solution)
    if settings.cut_repeated_answer:
        before, *_ = REPEATED.split(solution, maxsplit=1)
        solution = before if "####" in before else solution
    return solution.strip()


def _reference(row: _Row) -> float:
    """Return the final number of the right solution. It may have no mark, as in a column of bare numbers."""
    number = final_number(row.solution, last=True)
    if number is None:
        raise UserError(f"{row.where}: the answer has no final number, such as '#### 42'")
    return number
