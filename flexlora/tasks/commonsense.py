"""Multiple-choice questions: one training set and several test sets (Commonsense170K).

A causal language model is trained on whole texts and tested by the protocol of LLM-Adapters.
docs/reference/commonsense.md names the source of each part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from flexlora.errors import UserError, did_you_mean
from flexlora.hub import trouble_with, what_failed
from flexlora.paths import existing_folder
from flexlora.settings import CommonsenseTask, EvaluationMode
from flexlora.tasks.base import Split
from flexlora.tasks.commonsense_prompts import RESPONSE, answer_sentence, evaluation_prompt, training_text
from flexlora.tasks.commonsense_rows import FORMATS, TEST_SETS, Row, extract, format_of, options_of, read_rows
from flexlora.tasks.generation import generate
from flexlora.tasks.language_model import answer_log_probabilities
from flexlora.tasks.prompted import WHOLE, Pair, PromptedTask, collate_prompts, collate_training, training_split
from flexlora.tasks.rows import held_out
from flexlora.tasks.tokens import TokenCache, cache_folder

UNPARSED = -1


@dataclass
class Commonsense(PromptedTask):
    """A commonsense task: its rows as read and, after `preprocess`, its splits.

    A prediction is the index of an answer word in the row's format, or -1 if the model's text contains none of them.
    """

    settings: CommonsenseTask
    train_rows: Sequence[Row]
    evaluation_rows: dict[str, Sequence[Row]]
    provenance: dict[str, Any]
    subset: bool
    train: Split = field(init=False)
    evaluation: list[Split] = field(init=False)
    processor: Any = field(init=False)

    num_labels = None

    def __post_init__(self) -> None:
        self.name = self.settings.name
        self._ranks = self.settings.evaluation_mode is EvaluationMode.likelihood
        self._prefix = "likelihood_" if self._ranks else ""
        figures = [f"{name}_{self._prefix}accuracy" for name in self.evaluation_rows]
        if self.settings.main_metric not in ("average", *figures):
            near = did_you_mean(self.settings.main_metric, figures)
            raise UserError(
                f"task.main_metric: there is no metric '{self.settings.main_metric}'.{near} "
                f"There are: average, {', '.join(figures)}."
            )
        self.main_metric = self.settings.main_metric
        if self.main_metric == "average":
            self.main_metric = f"{self._prefix}average"

    def preprocess(self, processor: Any) -> None:
        self.processor = processor
        cache = TokenCache(cache_folder(self.settings.token_cache), processor)
        self.train = training_split(
            [Pair(training_text(row, ""), row["output"]) for row in self.train_rows],
            cache,
            processor.eos_token_id,
            self.settings.max_length,
            train_on_inputs=self.settings.train_on_inputs,
        )
        self.evaluation = [self._test_split(name, rows, cache) for name, rows in self.evaluation_rows.items()]

    def _test_split(self, name: str, rows: Sequence[Row], cache: TokenCache) -> Split:
        """Tokenise the prompts and the texts to score: the right answer's, or every option's in likelihood mode."""
        prompts = cache.tokens(([evaluation_prompt(row) for row in rows],), WHOLE)
        starts = cache.tokens(([training_text(row, "") for row in rows],), WHOLE).lengths
        offered = [options_of(row) if self._ranks else (row["answer"],) for row in rows]
        every = [(row, option) for row, options in zip(rows, offered, strict=True) for option in options]
        texts = cache.tokens(([training_text(row, answer_sentence(option)) for row, option in every],), WHOLE)
        examples, first = [], 0
        for i, (row, options) in enumerate(zip(rows, offered, strict=True)):
            words = format_of(row)
            examples.append(
                {
                    "input_ids": prompts.row(i),
                    "texts": [texts.row(first + number) for number in range(len(options))],
                    "start": starts[i],
                    "format": FORMATS.index(words),
                    "options": [words.index(option) for option in options],
                    "answer": words.index(row["answer"]),
                }
            )
            first += len(options)
        return Split(name, examples, prompts.lengths, [example["answer"] for example in examples])

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "texts" in examples[0]:
            return self._collate_questions(examples)
        return collate_training(examples, self.processor)

    def _collate_questions(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Batch the prompts and all texts to score, with the row and the option of each text."""
        return {
            **collate_prompts(examples, self.processor),
            "option": torch.tensor([option for example in examples for option in example["options"]]),
            "format": torch.tensor([example["format"] for example in examples]),
            "answer": torch.tensor([example["answer"] for example in examples]),
        }

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss and the answers. The loss is the mean over the tokens of the right answer's sentence."""
        weights = answer_log_probabilities(model, batch["text_ids"], batch["text_mask"], batch["scored"])
        is_right = batch["option"] == batch["answer"][batch["row"]]
        loss = -weights[is_right].sum() / batch["scored"][is_right].sum().clamp(min=1)
        return loss, self._likeliest(batch, weights) if self._ranks else self.answered(model, batch)

    def _likeliest(self, batch: dict[str, torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """Find the most likely option of each row, the first one among equals."""
        widest = max(len(words) for words in FORMATS)
        table = weights.new_full((len(batch["format"]), widest), -torch.inf)
        table[batch["row"], batch["option"]] = weights
        return table.argmax(dim=1)

    def answered(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Generate an answer to each prompt and return the index of its first answer word, or -1 if it has none."""
        words = [FORMATS[i] for i in batch["format"].tolist()]
        ask = partial(
            generate,
            model,
            batch["input_ids"],
            batch["attention_mask"],
            self.processor,
            max_new_tokens=self.settings.max_new_tokens,
        )
        if self.settings.evaluation_mode is EvaluationMode.fast:
            made = ask(is_answer=lambda row, text: extract(text, words[row]) is not None)
        else:
            made = ask(num_beams=self.settings.num_beams)
        answers = []
        for text, options in zip(self.processor.batch_decode(made, skip_special_tokens=True), words, strict=True):
            answer = extract(text.split(RESPONSE)[1], options)
            answers.append(UNPARSED if answer is None else options.index(answer))
        return torch.tensor(answers, device=made.device)

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        """Compute `<set>_accuracy`, and `<set>_unparsed`: the number of texts without an answer word, counted wrong."""
        right = [example["answer"] == given for example, given in zip(split.examples, predictions, strict=True)]
        scores = {f"{split.name}_{self._prefix}accuracy": fmean(right)}
        if not self._ranks:
            scores[f"{split.name}_unparsed"] = float(sum(given == UNPARSED for given in predictions))
        return scores

    def aggregate(self, scores: dict[str, float]) -> dict[str, float]:
        """Compute the unweighted mean of the test sets' accuracies, as in the paper's last column."""
        accuracies = [scores[f"{name}_{self._prefix}accuracy"] for name in self.evaluation_rows]
        return {f"{self._prefix}average": fmean(accuracies)}


def load(settings: CommonsenseTask) -> Commonsense:
    """Read the training rows and the test sets from `task.data_dir` or from the hub.

    Raises:
        UserError: a set does not exist, a folder or file is missing, a row is broken, or the hub cannot be reached.
    """
    check_sets(settings)
    root, provenance = (_folder if settings.hub_path is None or settings.data_dir is not None else _from_hub)(settings)
    try:
        files = {split: _find(root, file) for split, file in _train_files(settings).items()}
        tests = {name: _find(root, file) for name, file in _test_files(settings).items()}
        train = [read_rows(path, name.partition("/")[0] if "/" in name else None) for name, path in files.items()]
        evaluation = {name: read_rows(path, name) for name, path in tests.items()}
    except OSError as error:
        raise UserError(f"task.data_dir: cannot read {error.filename}: {error.strerror}") from error
    provenance["sha256"] = {
        str(path.relative_to(root)): file.sha256
        for path, file in zip([*files.values(), *tests.values()], [*train, *evaluation.values()], strict=True)
    }
    rows = [row for file in train for row in file.rows]
    return commonsense(settings, rows, {name: file.rows for name, file in evaluation.items()}, provenance)


def commonsense(
    settings: CommonsenseTask, train: Sequence[Row], evaluation: Mapping[str, Sequence[Row]], provenance: dict[str, Any]
) -> Commonsense:
    """Make the task from these rows, cut to `max_train_rows` and `max_eval_rows`."""
    whole = [len(rows) for rows in (train, *evaluation.values())]
    if settings.validation_rows is not None:
        kept, held = held_out(settings.validation_rows, len(train))
        train, evaluation = [train[i] for i in kept], {"validation": [train[i] for i in held]}
        provenance = provenance | {"held_out": len(held)}
    train = train[: settings.max_train_rows]
    evaluation = {name: rows[: settings.max_eval_rows] for name, rows in evaluation.items()}
    kept_rows = [len(rows) for rows in (train, *evaluation.values())]
    return Commonsense(settings, train, dict(evaluation), provenance, subset=kept_rows != whole)


def check_sets(settings: CommonsenseTask) -> None:
    """Check `task.train_sets` and `task.test_sets`.

    Raises:
        UserError: a named set does not exist, a set is named twice, or a list is empty.
    """
    for key in ("train_sets", "test_sets"):
        names = getattr(settings, key)
        if names is not None:
            _check_sets(f"task.{key}", names)


def _check_sets(key: str, names: Sequence[str]) -> None:
    if not names:
        raise UserError(f"{key} is an empty list: name one or more of {', '.join(TEST_SETS)}")
    for name in names:
        if name not in TEST_SETS:
            near = did_you_mean(name, TEST_SETS)
            raise UserError(f"{key}: there is no set '{name}'.{near} There are: {', '.join(TEST_SETS)}.")
    if len(set(names)) < len(names):
        raise UserError(f"{key} names a set twice: {', '.join(names)}")


def _folder(settings: CommonsenseTask) -> tuple[Path, dict[str, Any]]:
    if settings.data_dir is None:
        raise UserError(
            "task.data_dir is not set: set it to a folder in LLM-Adapters' layout "
            f"({settings.train_file}, dataset/<set>/test.json), such as a clone of AGI-Edgerunners/LLM-Adapters"
        )
    root = existing_folder("task.data_dir", settings.data_dir)
    return root, {"source": "folder", "layout": "LLM-Adapters", "path": str(root), "revision": None}


@dataclass(frozen=True)
class Wanted:
    """A file of the data set: it is in `folder`, as in LLM-Adapters' repository, or at the top level."""

    folder: str
    name: str

    @property
    def places(self) -> tuple[str, str]:
        return f"{self.folder}/{self.name}", self.name

    def found(self, root: Path) -> Path | None:
        return next((root / place for place in self.places if (root / place).is_file()), None)


def _train_files(settings: CommonsenseTask) -> dict[str, Wanted]:
    if settings.train_sets is None:
        return {"train": Wanted("ft-training_set", settings.train_file)}
    return {f"{name}/train": Wanted("dataset", f"{name}/train.json") for name in settings.train_sets}


def _test_files(settings: CommonsenseTask) -> dict[str, Wanted]:
    return {name: Wanted("dataset", f"{name}/test.json") for name in settings.test_sets}


def _find(root: Path, file: Wanted) -> Path:
    path = file.found(root)
    if path is not None:
        return path
    raise UserError(f"task.data_dir: neither {root / file.folder} nor {root} has {file.name}")


def _from_hub(settings: CommonsenseTask) -> tuple[Path, dict[str, Any]]:
    """Fetch only the needed files of `task.hub_path`: LLM-Adapters' repository has many others."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    path = settings.hub_path
    assert path is not None
    disable_progress_bars()
    hint = "task.data_dir=DIR takes a folder in the same layout"
    files = [*_train_files(settings).values(), *_test_files(settings).values()]
    trouble = trouble_with(path, "dataset", settings.hub_revision)
    try:
        root = Path(
            snapshot_download(
                path,
                repo_type="dataset",
                revision=settings.hub_revision,
                allow_patterns=[place for file in files for place in file.places],
                local_files_only=trouble is not None,
            )
        )
    except Exception as error:  # the cache and the network libraries raise many kinds of errors
        if trouble is not None:
            raise UserError(f"{path} is not in the local cache and {trouble}; {hint}") from error
        raise UserError(f"cannot load {path} from the hub: {what_failed(error)}; {hint}") from error
    for file in files:
        if file.found(root) is None:
            if trouble is not None:
                raise UserError(f"{file.name} of {path} is not in the local cache and {trouble}; {hint}")
            raise UserError(f"task.hub_path: {path} has neither {' nor '.join(file.places)}; {hint}")
    # The cache names a snapshot's folder after its commit.
    return root, {"source": "hub", "layout": "LLM-Adapters", "path": path, "revision": root.name}
