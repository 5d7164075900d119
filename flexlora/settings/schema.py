"""The schema of the settings except a method's own: run, training, model and task. `conf/` has values and comments.

Hydra checks an override against these classes when it composes a config. A method's own class declares its fields.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass, replace
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from flexlora.settings.image_tasks import ImageSetTask, VtabSplit, VtabTask
from flexlora.settings.own_tasks import InstructionsTask, OwnTableTask
from flexlora.settings.recipes import register_resolver


class Schedule(Enum):
    """The meaning of the windows of rank events: the paper's steps, scaled to this run, or steps of this run."""

    scaled = "scaled"
    absolute = "absolute"


class Precision(Enum):
    """The precision of forward and backward. Parameters and optimizer state keep their own precision."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class LrScheduler(Enum):
    """The way in which the learning rate falls to 0 after the warmup."""

    linear = "linear"
    cosine = "cosine"


class Dtype(Enum):
    """The data type of a backbone's weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# How bitsandbytes quantises the linears of a frozen base. OmegaConf reads a member by its name, and in a class
# statement a name cannot begin with a digit.
Quantization = Enum("Quantization", {"8bit": "8bit", "4bit": "4bit"})


class EvaluationMode(Enum):
    """The way in which the answer of a causal LM to a multiple-choice question is found."""

    protocol = "protocol"
    fast = "fast"
    likelihood = "likelihood"


class MathPrompt(Enum):
    """The text around a word problem."""

    qa = "qa"
    alpaca = "alpaca"


class CodePrompt(Enum):
    """The text around a function to complete: an instruction, or only the beginning of the function."""

    instruction = "instruction"
    completion = "completion"


@dataclass
class TrainingSettings:
    """`training.*`: the loop and its optimizer."""

    epochs: int = MISSING
    max_steps: int | None = MISSING
    learning_rate: float = MISSING
    batch_size: int = MISSING
    eval_batch_size: int = MISSING
    gradient_accumulation: int = MISSING
    weight_decay: float = MISSING
    warmup_ratio: float = MISSING
    warmup_steps: int | None = MISSING
    lr_scheduler: LrScheduler = MISSING
    min_lr_rate: float = MISSING
    max_grad_norm: float | None = MISSING
    precision: Precision = MISSING
    tf32: bool = MISSING
    gradient_checkpointing: bool = MISSING
    shard_base: bool = MISSING
    eval_every: int | None = MISSING
    checkpoint_every: int | None = MISSING
    log_every: int = MISSING
    count_flops: bool = MISSING


@dataclass
class HubData:
    """`task.hub.*`: the name of a data set on the hub, and the names of its splits there."""

    path: str = MISSING
    name: str | None = MISSING
    revision: str | None = MISSING
    train: str = MISSING
    evaluation: dict[str, str] = MISSING


@dataclass
class TsvData:
    """`task.tsv.*`: the files of the classic GLUE download. Columns are names if there is a header, else positions."""

    folder: str = MISSING
    train: str = MISSING
    evaluation: dict[str, str] = MISSING
    header: bool = MISSING
    text: list[Any] = MISSING
    label: Any = MISSING
    width: int | None = MISSING
    broken_rows: int = MISSING


@dataclass
class GlueTask:
    """`task.*` of a GLUE task. The input is one or two texts, and the output is a class or a number."""

    name: str = MISSING
    family: str = MISSING
    num_labels: int = MISSING
    labels: list[str] = MISSING
    label_range: list[float] | None = MISSING
    text: list[str] = MISSING
    metric: str = MISSING
    main_metric: str = MISSING
    max_length: int = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    data_dir: str | None = MISSING
    max_train_rows: int | None = MISSING
    max_eval_rows: int | None = MISSING
    validation_rows: int | None = MISSING
    token_cache: str | None = MISSING
    hub: HubData = MISSING
    tsv: TsvData = MISSING


@dataclass
class CommonsenseTask:
    """`task.*` of multiple-choice questions. One model is trained on all sets and evaluated on several test sets."""

    name: str = MISSING
    family: str = MISSING
    num_labels: int | None = MISSING
    main_metric: str = MISSING
    max_length: int = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    data_dir: str | None = MISSING
    hub_path: str | None = MISSING
    hub_revision: str | None = MISSING
    train_file: str = MISSING
    train_sets: list[str] | None = MISSING
    test_sets: list[str] = MISSING
    train_on_inputs: bool = MISSING
    evaluation_mode: EvaluationMode = MISSING
    num_beams: int = MISSING
    max_new_tokens: int = MISSING
    max_train_rows: int | None = MISSING
    max_eval_rows: int | None = MISSING
    validation_rows: int | None = MISSING
    token_cache: str | None = MISSING


@dataclass
class HubFile:
    """A file of a data set on the hub."""

    path: str = MISSING
    file: str = MISSING
    revision: str | None = MISSING


@dataclass
class TextTaskSettings:
    """`task.*` that all tasks share in which a causal LM continues a prompt, as in GSM8K."""

    name: str = MISSING
    family: str = MISSING
    num_labels: int | None = MISSING
    main_metric: str = MISSING
    max_length: int = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    data_dir: str | None = MISSING
    train_file: str | None = MISSING
    test_file: str | None = MISSING
    train_hub: HubFile = MISSING
    test_hub: HubFile = MISSING
    drop_long: bool = MISSING
    train_rows: int | None = MISSING
    train_on_inputs: bool = MISSING
    max_new_tokens: int = MISSING
    temperature: float = MISSING
    top_p: float = MISSING
    num_samples: int = MISSING
    sampling_seed: int = MISSING
    max_train_rows: int | None = MISSING
    max_eval_rows: int | None = MISSING
    validation_rows: int | None = MISSING
    token_cache: str | None = MISSING


@dataclass
class Gsm8kTask(TextTaskSettings):
    """`task.*` of word problems whose solution ends with a number."""

    prompt: MathPrompt = MISSING
    question_column: str | None = MISSING
    answer_column: str | None = MISSING
    train_type: str | None = MISSING
    cut_repeated_answer: bool = MISSING
    remove_annotations: bool = MISSING
    last_number: bool = MISSING


@dataclass
class HumanEvalTask(TextTaskSettings):
    """`task.*` of functions to write, whose programs are run."""

    prompt: CodePrompt = MISSING
    question_column: str | None = MISSING
    answer_column: str | None = MISSING
    first_code_block: bool = MISSING
    pass_at: list[int] = MISSING
    run_generated_code: bool = MISSING
    program_timeout: float = MISSING


@dataclass
class ModelSettings:
    """`model.*`: a backbone from the hub, from a folder, or pretrained by this package (scale=tiny)."""

    name: str | None = MISSING
    kind: str = MISSING
    scale: str = MISSING
    path: str | None = MISSING
    revision: str | None = MISSING
    use_safetensors: bool = MISSING
    dtype: Dtype = MISSING
    quantization: Quantization | None = MISSING


@dataclass
class MethodSettings:
    """`method.*`: the method's own class declares its fields, and `conf/method/<name>.yaml` lists them."""

    name: str
    kind: str
    """The module of `flexlora/methods` that builds the method, or a module of the user (a name with a dot)."""
    fields: dict[str, Any]
    """All other settings of the YAML."""

    def with_fields(self, **changed: Any) -> "MethodSettings":
        """Return the same method with other values of some fields."""
        return replace(self, fields=self.fields | changed)


@dataclass
class RunSettings:
    """All settings of a run. `resolve` turns `task` into its family's schema, and `method` into a `MethodSettings`."""

    task: Any = MISSING
    method: Any = MISSING
    model: ModelSettings = MISSING
    training: TrainingSettings = MISSING
    schedule: Schedule = MISSING
    paper_steps: int | None = MISSING
    seed: int = MISSING
    data_seed: int = MISSING
    scale: str = MISSING
    variant: str | None = MISSING
    output_root: str = MISSING
    trackers: list[str] = MISSING
    adapter: str | None = MISSING
    parameter_budget: int | None = MISSING
    dry: bool = MISSING
    benchmark: str | None = None
    recipes_like: str | None = None
    recipes: dict[str, Any] = field(default_factory=dict)
    for_a_start: dict[str, str] = field(default_factory=dict)
    """The settings from a row of `recipes_like`, which was not tuned for the data, with the name of the row."""


def evaluates_held_out(task: Any) -> bool:
    """Return whether `task` evaluates on held-out training rows instead of the benchmark's evaluation rows."""
    split = getattr(task, "split", None)
    return getattr(task, "validation_rows", None) is not None or split is VtabSplit.train800_val200


TASK_SCHEMAS: dict[str, type] = {
    "glue": GlueTask,
    "synthetic": GlueTask,
    "own_table": OwnTableTask,
    "instructions": InstructionsTask,
    "commonsense": CommonsenseTask,
    "vtab": VtabTask,
    "digits": VtabTask,
    "image_sets": ImageSetTask,
    "digit_sets": ImageSetTask,
    "small_world": CommonsenseTask,
    "gsm8k": Gsm8kTask,
    "arithmetic": Gsm8kTask,
    "humaneval": HumanEvalTask,
    "small_functions": HumanEvalTask,
}


def register_schemas() -> None:
    """Register every schema under its name in the YAML files (`- /schema/task/glue@task`), and `${recipe:KEY}`."""
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunSettings)
    store.store(group="schema", name="model", node=ModelSettings)
    for name, schema in TASK_SCHEMAS.items():
        store.store(group="schema/task", name=name, node=schema)
    store.store(group="schema/task", name="any", node=_any_of(TASK_SCHEMAS.values()))
    register_resolver()


def _any_of(schemas: Iterable[type]) -> type:
    """Return a schema with the keys of all `schemas`, for the placeholder task `none`.

    Hydra composes a sweep over tasks with the placeholder before its runs, and refuses a key that it lacks.
    """
    types: dict[str, Any] = {}
    for known in (known for schema in schemas for known in fields(schema)):
        types[known.name] = known.type if types.get(known.name, known.type) == known.type else Any
    return make_dataclass("AnyOf", [(name, kind, field(default=MISSING)) for name, kind in types.items()])
