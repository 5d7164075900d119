"""The schema of `task.*` for texts of the user's own. What is null is read from the data."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


@dataclass
class OwnTextTask:
    """`task.*` that all texts of the user share."""

    name: str = MISSING
    family: str = MISSING
    max_length: int = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    data_dir: str | None = MISSING
    test_share: float = MISSING
    split_seed: int = MISSING
    max_train_rows: int | None = MISSING
    max_eval_rows: int | None = MISSING
    validation_rows: int | None = MISSING
    token_cache: str | None = MISSING


class LabelKind(Enum):
    """What the labels of a table of the user are."""

    classes = "classes"
    numbers = "numbers"


@dataclass
class OwnTableTask(OwnTextTask):
    """`task.*` of a table of the user: one or two texts and a label. What is null is read from the data."""

    kind: LabelKind | None = MISSING
    labels: list[str] | None = MISSING
    text: list[str] | None = MISSING
    label: str = MISSING
    metric: str | None = MISSING
    main_metric: str | None = MISSING

    @property
    def num_labels(self) -> int | None:
        """The number of outputs, as far as it is known before the data are read."""
        if self.kind is LabelKind.numbers:
            return 1
        return None if self.labels is None else len(self.labels)


class InstructionPrompt(Enum):
    """The text around an instruction: the chat template of the tokenizer, or the headings of Alpaca."""

    chat = "chat"
    alpaca = "alpaca"


@dataclass
class InstructionsTask(OwnTextTask):
    """`task.*` of instructions with answers, or of conversations, for a causal language model."""

    num_labels: int | None = MISSING
    main_metric: str = MISSING
    prompt: InstructionPrompt | None = MISSING
    messages: str | None = MISSING
    instruction: str | None = MISSING
    input: str | None = MISSING
    output: str | None = MISSING
    train_on_inputs: bool = MISSING
