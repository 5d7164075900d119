"""Instructions or conversations of the user, to fine-tune a causal language model on their answers.

Each answer of the assistant is one example. Nothing is generated in an evaluation: the model scores the right answers.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.settings import InstructionPrompt, InstructionsTask
from flexlora.tasks.base import Split
from flexlora.tasks.conversations import Conversation, Message, conversations, find_columns
from flexlora.tasks.language_model import IGNORED, answer_tokens
from flexlora.tasks.own_files import TRAIN, read_parts, source_facts, split_facts, split_line
from flexlora.tasks.prompted import ALPACA, Pair, PromptedTask, collate_training, training_split
from flexlora.tasks.rows import drawn, held_out
from flexlora.tasks.tokens import Examples, TokenCache, cache_folder

log = logging.getLogger("flexlora")

METRICS = ("token_accuracy", "exact_match")


class Instructions(PromptedTask):
    """A prediction is the number of tokens of an answer that are the model's likeliest token; a label is their number.

    The loss of an evaluation is the mean over the answers of the mean cross-entropy of an answer's tokens.
    """

    num_labels = None

    def __init__(
        self,
        settings: InstructionsTask,
        rows: Mapping[str, Sequence[Conversation]],
        provenance: dict[str, Any],
        *,
        subset: bool,
    ) -> None:
        self.settings = settings
        self.name, self.main_metric = settings.name, settings.main_metric
        self.rows = rows
        self.provenance = provenance
        self.subset = subset

    def preprocess(self, processor: Any) -> None:
        self.processor = processor
        has_template = processor.chat_template is not None
        prompt = self.settings.prompt or (InstructionPrompt.chat if has_template else InstructionPrompt.alpaca)
        is_chat = prompt is InstructionPrompt.chat
        if is_chat and not has_template:
            raise UserError("task.prompt=chat: the model's tokenizer has no chat template: set task.prompt=alpaca")
        log.info("data: prompts by %s", "the tokenizer's chat template" if is_chat else "Alpaca's headings")
        self.provenance["prompt"] = prompt.value
        write = _Chat(processor).pairs if is_chat else _alpaca_pairs
        cache = TokenCache(cache_folder(self.settings.token_cache), processor)
        pairs = {name: [pair for row in rows for pair in write(row)] for name, rows in self.rows.items()}
        splits = {name: self._split(name, of_split, cache) for name, of_split in pairs.items()}
        self.train = splits.pop(TRAIN)
        self.evaluation = list(splits.values())

    def _split(self, name: str, pairs: Sequence[Pair], cache: TokenCache) -> Split:
        """Tokenise the texts of a split, and leave out those of which no token of the answer remains."""
        longest = min(self.settings.max_length, self.processor.model_max_length)
        starts = cache.tokens(([pair.prompt for pair in pairs],), longest).lengths
        kept = [i for i, start in enumerate(starts) if start < longest]
        if not kept:
            raise UserError(f"task.max_length={longest} leaves no room for an answer in split '{name}': raise it")
        if len(kept) < len(pairs):
            what = "%d of %d answers of split '%s' are left out: their prompts alone have task.max_length=%d tokens"
            log.warning(what, len(pairs) - len(kept), len(pairs), name, longest)
        texts = [pairs[i] for i in kept]
        found = training_split(texts, cache, self.processor.eos_token_id, longest, train_on_inputs=True, name=name)
        assert isinstance(found.examples, Examples)
        prompts = [starts[i] for i in kept]
        answers = [length - start for start, length in zip(prompts, found.lengths, strict=True)]
        if name == TRAIN and self.settings.train_on_inputs:
            return found
        return Split(name, Examples(found.examples.tokens, prompts), found.lengths, None if name == TRAIN else answers)

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return collate_training(examples, self.processor)

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        scored = batch["labels"] != IGNORED
        log_probabilities, right = answer_tokens(model, batch["input_ids"], batch["attention_mask"], scored)
        loss = -(log_probabilities.sum(dim=1) / scored.sum(dim=1)).mean()
        return loss, right.sum(dim=1)

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        """Compute the share of the answers' tokens that are the likeliest, and of answers with no other token."""
        assert split.labels is not None
        whole = sum(given == wanted for given, wanted in zip(predictions, split.labels, strict=True))
        return {"token_accuracy": sum(predictions) / sum(split.labels), "exact_match": whole / len(split)}


def _alpaca_pairs(conversation: Conversation) -> list[Pair]:
    """Return an example for each answer. Alpaca's prompt has no form for earlier turns: they follow each other."""
    before, found = "", []
    for message in conversation:
        if message["role"] == "assistant":
            prompt, answer = before.rstrip(), f" {message['content']}"
            found.append(Pair(prompt, answer))
            before = f"{prompt}{answer}\n\n"
        elif message["role"] == "system":
            before = f"{message['content']}\n\n"
        elif found:
            before += f"### Instruction:\n{message['content']}\n\n### Response:"
        else:
            before += ALPACA.format(question=message["content"])
    return found


class _Chat:
    """Writes conversations with a tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        begins_itself = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        self.begin = tokenizer.bos_token if begins_itself and tokenizer.bos_token else ""

    def pairs(self, conversation: Conversation) -> list[Pair]:
        """Return an example for each answer: the conversation until then is its prompt."""
        ends = [i for i, message in enumerate(conversation) if message["role"] == "assistant"]
        return [self._pair(conversation[: end + 1]) for end in ends]

    def _pair(self, conversation: Conversation) -> Pair:
        prompt, text = self._written(conversation[:-1], True), self._written(conversation, False)
        if not text.startswith(prompt):
            raise UserError(
                "task.prompt=chat: the tokenizer's chat template writes an answer otherwise than it asks for one: "
                "set task.prompt=alpaca"
            )
        return Pair(prompt, self._until_end(text[len(prompt) :]))

    def _written(self, messages: Sequence[Message], asks: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        except Exception as error:  # a template is a program of the tokenizer's author, and may raise any error
            raise UserError(
                f"task.prompt=chat: the tokenizer's chat template refuses a conversation ({one_line(error)}): "
                "set task.prompt=alpaca"
            ) from error
        return text.removeprefix(self.begin)  # the tokenizer adds this token itself

    def _until_end(self, answer: str) -> str:
        """Return the answer without the white space that templates write after the end-of-sequence token."""
        before, end, after = answer.rpartition(self.tokenizer.eos_token)
        return f"{before}{end}" if end and not after.strip() else answer


def load(settings: InstructionsTask) -> Instructions:
    """Read the conversations in `task.data_dir`, and split them if they have no split.

    Raises:
        UserError: there is no such file, a column is missing, a row is broken, or the metric does not exist.
    """
    if settings.main_metric not in METRICS:
        near = did_you_mean(settings.main_metric, METRICS)
        raise UserError(
            f"task.main_metric: there is no metric '{settings.main_metric}'.{near} There are: {', '.join(METRICS)}."
        )
    root, parts = read_parts(settings.data_dir, "with instructions and outputs, or with chat messages")
    columns = find_columns(settings, parts)
    rows = {name: conversations(part, columns) for name, part in parts.items()}
    seed = None
    if len(rows) == 1:
        rows, seed = _split(settings, rows[TRAIN]), settings.split_seed
    split = split_facts({name: len(part) for name, part in rows.items()}, seed)
    log.info("data: %s", "; ".join(f"{name} {column}" for name, column in columns.facts().items()))
    log.info("%s", split_line(split, "conversations"))
    provenance = {**source_facts(root, parts, "conversations"), "columns": columns.facts(), "split": split}
    if settings.validation_rows is not None:
        kept, held = held_out(settings.validation_rows, len(rows[TRAIN]))
        rows = {TRAIN: [rows[TRAIN][i] for i in kept], "validation": [rows[TRAIN][i] for i in held]}
        provenance["held_out"] = len(held)
    whole = {name: len(part) for name, part in rows.items()}
    limits = {name: settings.max_train_rows if name == TRAIN else settings.max_eval_rows for name in rows}
    rows = {name: part[: limits[name]] for name, part in rows.items()}
    subset = {name: len(part) for name, part in rows.items()} != whole
    return Instructions(settings, rows, provenance, subset=subset)


def _split(settings: InstructionsTask, rows: list[Conversation]) -> dict[str, list[Conversation]]:
    train, test = drawn([0] * len(rows), 1 - settings.test_share, settings.test_share, settings.split_seed)
    if not train or not test:
        raise UserError(
            f"task.test_share={settings.test_share:g} of {len(rows)} rows leaves no {'test' if train else 'training'} "
            "row: give more rows, another share, or files train and test"
        )
    return {TRAIN: [rows[i] for i in train], "test": [rows[i] for i in test]}
