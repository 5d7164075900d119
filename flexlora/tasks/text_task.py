"""Tasks whose model writes a text after a prompt, of which one number is the prediction: GSM8K and HumanEval."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from flexlora.errors import UserError
from flexlora.settings import TextTaskSettings
from flexlora.tasks.base import Split
from flexlora.tasks.generation import Sampling, continuations
from flexlora.tasks.language_model import answer_log_probabilities
from flexlora.tasks.prompted import WHOLE, Pair, PromptedTask, collate_prompts, collate_training, training_split
from flexlora.tasks.tokens import TokenCache, cache_folder

log = logging.getLogger("flexlora")

PairT = TypeVar("PairT", bound=Pair)


class TextTask(PromptedTask, Generic[PairT]):
    """Training texts, and prompts that the model continues `task.num_samples` times.

    Example number `row * num_samples + sample` of an evaluation split is a sample of the split's row. A family says
    which number a text means, when a text is complete, and how numbers are scored.
    """

    num_labels = None

    def __init__(
        self,
        settings: TextTaskSettings,
        train: Sequence[Pair],
        evaluation: Mapping[str, Sequence[PairT]],
        provenance: dict[str, Any],
        *,
        subset: bool,
    ) -> None:
        check_sampling(settings)
        self.settings = settings
        self.name, self.main_metric = settings.name, settings.main_metric
        self.train_pairs = train
        self.asked = dict(evaluation)
        self.provenance = provenance
        self.subset = subset
        self._every = [pair for pairs in self.asked.values() for pair in pairs]
        self._sampling = None
        if settings.temperature > 0:
            self._sampling = Sampling(settings.sampling_seed, settings.temperature, settings.top_p)

    def numbers(self, pairs: Sequence[PairT], texts: Sequence[str]) -> Sequence[float]:
        """Return the prediction that each text makes for its pair, as a number."""
        raise NotImplementedError

    def reference(self, pair: PairT) -> float:
        """Return the right prediction for a pair."""
        raise NotImplementedError

    def is_complete(self, text: str) -> bool:
        """Search the newest part of a text for its end; a text whose end is not found goes on to `max_new_tokens`."""
        raise NotImplementedError

    def preprocess(self, processor: Any) -> None:
        self.processor = processor
        cache = TokenCache(cache_folder(self.settings.token_cache), processor)
        self.train = training_split(
            self.train_pairs,
            cache,
            processor.eos_token_id,
            min(self.settings.max_length, processor.model_max_length),
            train_on_inputs=self.settings.train_on_inputs,
            drop_long=self.settings.drop_long,
            first=self.settings.train_rows,
        )
        self.evaluation, first = [], 0
        for name, pairs in self.asked.items():
            self.evaluation.append(self._evaluation_split(name, pairs, first, cache))
            first += len(pairs)

    def _evaluation_split(self, name: str, pairs: Sequence[PairT], first: int, cache: TokenCache) -> Split:
        """Tokenise the prompts, and the right texts for the loss; each row is there once for each sample."""
        limit = self.processor.model_max_length
        prompts = cache.tokens(([pair.prompt for pair in pairs],), WHOLE)
        longest = max(prompts.lengths)
        if longest >= limit:
            raise UserError(
                f"prompt {prompts.lengths.index(longest) + 1} of split '{name}' has {longest} tokens, but the model "
                f"takes {limit}: leave the row out, or use a model that takes longer texts"
            )
        room = limit - longest
        if room < self.settings.max_new_tokens:
            log.warning(
                "the model takes %d tokens and the longest prompt has %d: the text after it has at most %d tokens, not "
                "task.max_new_tokens=%d",
                *(limit, longest, room, self.settings.max_new_tokens),
            )
        texts = cache.tokens(([pair.text for pair in pairs],), min(limit, WHOLE))
        times = range(self.settings.num_samples)
        examples = [
            {
                "input_ids": prompts.row(i),
                "texts": [texts.row(i)],
                "start": length,
                "asked": first + i,
                "key": (i, sample),
            }
            for i, length in enumerate(prompts.lengths)
            for sample in times
        ]
        lengths = [length for length in prompts.lengths for _ in times]
        return Split(name, examples, lengths, [self.reference(pair) for pair in pairs for _ in times])

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "texts" not in examples[0]:
            return collate_training(examples, self.processor)
        return {
            **collate_prompts(examples, self.processor),
            "asked": torch.tensor([example["asked"] for example in examples]),
            "key": torch.tensor([example["key"] for example in examples]),
        }

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss, which is the mean over the tokens of the right outputs, and the predictions."""
        weights = answer_log_probabilities(model, batch["text_ids"], batch["text_mask"], batch["scored"])
        loss = -weights.sum() / batch["scored"].sum().clamp(min=1)
        pairs = [self._every[i] for i in batch["asked"].tolist()]
        return loss, torch.tensor(self.numbers(pairs, self.written(model, batch)), dtype=torch.float64)

    def written(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> list[str]:
        """Continue each prompt of an evaluation batch and return the new texts."""
        room = self.processor.model_max_length - int(batch["attention_mask"].sum(dim=1).max())
        return continuations(
            model,
            batch["input_ids"],
            batch["attention_mask"],
            self.processor,
            max_new_tokens=min(self.settings.max_new_tokens, room),
            sampling=self._sampling,
            keys=batch["key"].tolist(),
            is_complete=self.is_complete,
        )

    def by_row(self, predictions: Sequence[Any]) -> list[Sequence[Any]]:
        """Return the predictions of each row's samples."""
        count = self.settings.num_samples
        return [predictions[i : i + count] for i in range(0, len(predictions), count)]


def check_sampling(settings: TextTaskSettings) -> None:
    """Check the settings of sampling.

    Raises:
        UserError: `top_p` is 0, or there are several samples but decoding is greedy.
    """
    if settings.top_p == 0:
        raise UserError("task.top_p must be above 0; 1 allows every token")
    if settings.num_samples > 1 and settings.temperature == 0:
        raise UserError(
            f"task.num_samples={settings.num_samples} with task.temperature=0 would give the same text "
            f"{settings.num_samples} times: give a temperature such as 0.8, or task.num_samples=1"
        )
