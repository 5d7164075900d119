"""HumanEval: the model writes Python functions, which count if they pass their tests (pass@k).

docs/reference/humaneval.md names the protocol and its sources.
"""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from flexlora.errors import UserError, did_you_mean
from flexlora.settings import CodePrompt, HumanEvalTask
from flexlora.tasks.base import Split
from flexlora.tasks.code_execution import Outcome, isolation, run_programs
from flexlora.tasks.humaneval_text import ENDINGS, WITH_INPUT, WITHOUT_INPUT, Problem, first_code_block, problem
from flexlora.tasks.prompted import Pair
from flexlora.tasks.row_sources import RowFile, Sources, read_file, read_sources
from flexlora.tasks.text_task import TextTask

log = logging.getLogger("flexlora")

TRAIN_FILES = (
    "CodeFeedback-Filtered-Instruction.jsonl",
    "code_alpaca_20k.json",
    "train.jsonl",
    "train.json",
    "train.parquet",
    "train.csv",
)
TEST_FILES = ("HumanEval.jsonl.gz", "HumanEval.jsonl", "test.jsonl", "test.json", "test.parquet")
QUESTIONS = ("query", "instruction", "question", "prompt", "problem")
ANSWERS = ("answer", "output", "response", "completion", "solution")
INPUT = "input"
"""CodeAlpaca's column of what the instruction is about; it is empty in half of the rows."""
COLUMNS = ("prompt", "canonical_solution", "test", "entry_point")
"""Those of HumanEval's columns that are needed."""

# A prediction says what a program did.
PASSED, FAILED, TIMED_OUT, NO_PROGRAM = 1.0, 0.0, -1.0, -2.0


class HumanEval(TextTask[Problem]):
    """A prediction is 1 if a written program passes its test; 0, -1 and -2 say how it fails."""

    settings: HumanEvalTask

    def numbers(self, pairs: Sequence[Problem], texts: Sequence[str]) -> Sequence[float]:
        """Run the programs, with as many at a time as each process on this machine has CPU cores."""
        programs = [pair.program(text) for pair, text in zip(pairs, texts, strict=True)]
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = max(1, len(os.sched_getaffinity(0)) // processes)
        return [_number(outcome) for outcome in run_programs(programs, self.settings.program_timeout, workers)]

    def reference(self, pair: Problem) -> float:
        return PASSED

    def is_complete(self, text: str) -> bool:
        return ENDINGS[self.settings.prompt].search(text) is not None

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        """Compute `pass_at_<k>`, and how many programs timed out or were no Python, which count as failed."""
        passed = [sum(given == PASSED for given in row) for row in self.by_row(predictions)]
        scores = {_metric(k): fmean(pass_at_k(self.settings.num_samples, c, k) for c in passed) for k in self._ks}
        counts = {"timed_out": TIMED_OUT, "no_python": NO_PROGRAM}
        return scores | {name: float(sum(given == n for given in predictions)) for name, n in counts.items()}

    @property
    def _ks(self) -> list[int]:
        return sorted(set(self.settings.pass_at))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate the chance that one of k samples passes, without bias: 1 - C(n-c, k) / C(n, k).

    Args:
        n: the number of samples that were drawn.
        c: the number of samples that passed.
        k: at most n.
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _number(outcome: Outcome) -> float:
    if outcome.passed:
        return PASSED
    if outcome.reason.startswith("timed out"):
        return TIMED_OUT
    return NO_PROGRAM if outcome.reason.startswith(("SyntaxError", "IndentationError", "TabError")) else FAILED


def _metric(k: int) -> str:
    return f"pass_at_{k}"


def load(settings: HumanEvalTask) -> HumanEval:
    """Read the training rows and the problems from `task.data_dir` or from the hub.

    Raises:
        UserError: generated programs may not run or cannot be isolated, a setting is wrong, a folder, file or column is
            missing, a row is broken, or the hub cannot be reached.
    """
    check_settings(settings)
    return humaneval(settings, read_sources(settings, TRAIN_FILES, TEST_FILES))


def humaneval(settings: HumanEvalTask, sources: Sources) -> HumanEval:
    """Make the task from these files, cut to `max_train_rows` and `max_eval_rows`.

    Raises:
        UserError: a column is missing or a row is broken.
    """
    assert sources.test is not None
    train, problems = _pairs(sources.train, settings), _problems(sources.test, settings.prompt)
    whole = (len(train), len(problems))
    train, problems = train[: settings.max_train_rows], problems[: settings.max_eval_rows]
    subset = (len(train), len(problems)) != whole
    return HumanEval(settings, train, {"test": problems}, sources.provenance, subset=subset)


def check_settings(settings: HumanEvalTask) -> None:
    """Check what must hold before anything is read, and say how programs are isolated.

    Raises:
        UserError: generated programs may not run or cannot be isolated, rows are held out, or a metric does not exist.
    """
    if not settings.run_generated_code:
        raise UserError(
            "task.run_generated_code is false, but HumanEval runs programs that the model writes: set it to true if "
            "they may run here, isolated (docs/explanation/running-generated-code.md)"
        )
    if settings.validation_rows is not None:
        raise UserError("task.validation_rows: HumanEval's training rows have no tests, so none can be held out")
    if not settings.pass_at or not all(1 <= k <= settings.num_samples for k in settings.pass_at):
        raise UserError(
            f"task.pass_at={list(settings.pass_at)}: give one or more numbers from 1 to task.num_samples="
            f"{settings.num_samples}"
        )
    metrics = [_metric(k) for k in settings.pass_at]
    if settings.main_metric not in metrics:
        near = did_you_mean(settings.main_metric, metrics)
        raise UserError(
            f"task.main_metric: there is no metric '{settings.main_metric}' with task.pass_at={list(settings.pass_at)}."
            f"{near} There are: {', '.join(metrics)}."
        )
    log.info("%s", isolation().value)


def _pairs(file: RowFile, settings: HumanEvalTask) -> list[Pair]:
    """Return the training texts. With `task.first_code_block`, rows without a code block are left out."""
    questions = file.texts(file.column("task.question_column", settings.question_column, QUESTIONS))
    answers = file.texts(file.column("task.answer_column", settings.answer_column, ANSWERS))
    inputs = file.columns.get(INPUT, [""] * len(file))
    pairs = []
    for number, (question, answer, given) in enumerate(zip(questions, answers, inputs, strict=True), 1):
        if not isinstance(given, str | None):
            raise UserError(f"{file.path}, row {number}: '{INPUT}' is not a text")
        output = first_code_block(answer) if settings.first_code_block else answer
        if output is None:
            continue
        template = WITH_INPUT if given and given.strip() else WITHOUT_INPUT
        pairs.append(Pair(template.format(instruction=question.strip(), input=(given or "").strip()), output.strip()))
    if not pairs:
        raise UserError(
            f"task.first_code_block: no row of {file.path} has a code block (```): set it to false, as for CodeAlpaca"
        )
    if len(pairs) < len(file):
        log.info("%d of %d training rows have no code block: they are left out", len(file) - len(pairs), len(file))
    return pairs


def read_problems(path: Path, style: CodePrompt = CodePrompt.completion) -> list[Problem]:
    """Read the problems of a file in HumanEval's columns.

    Raises:
        UserError: the file cannot be read, a column is missing or a row is broken.
    """
    return _problems(read_file(path), style)


def _problems(file: RowFile, style: CodePrompt) -> list[Problem]:
    missing = [name for name in COLUMNS if name not in file.columns]
    if missing:
        raise UserError(f"{file.path} has no column '{missing[0]}'. HumanEval's are: {', '.join(COLUMNS)}")
    columns = [file.texts(name) for name in COLUMNS]
    for number, name in enumerate(columns[-1], 1):
        if not name.isidentifier():
            raise UserError(f"{file.path}, row {number}: entry_point '{name}' is not the name of a function")
    return [problem(code, solution, test, name, style) for code, solution, test, name in zip(*columns, strict=True)]
