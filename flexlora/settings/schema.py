"""The schema of what belongs to no method: the run, its training, model and task. Values and comments are in `conf/`.

Hydra checks an override against these classes while it composes. A method's fields are declared by its own class.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass, replace
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from flexlora.settings.recipes import register_resolver


class Schedule(Enum):
    """What the rank events' windows count: the paper's steps, scaled to this run's, or this run's own."""

    scaled = "scaled"
    absolute = "absolute"


class Precision(Enum):
    """The arithmetic of forward and backward; parameters and optimizer stay as they are loaded."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class LrScheduler(Enum):
    """How the learning rate falls to 0 after its warmup."""

    linear = "linear"
    cosine = "cosine"


class Dtype(Enum):
    """The type that a backbone's weights are loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# How the linears of a frozen base are packed, by bitsandbytes. OmegaConf reads a member by its name, which no class
# statement can begin with a digit.
Quantization = Enum("Quantization", {"8bit": "8bit", "4bit": "4bit"})


class EvaluationMode(Enum):
    """How a causal LM is asked which option is right."""

    protocol = "protocol"
    fast = "fast"
    likelihood = "likelihood"


class VtabSplit(Enum):
    """Which lists of a VTAB-1K task are trained on and evaluated on: the protocol's, or those to tune on."""

    train800val200_test = "train800val200_test"
    train800_val200 = "train800_val200"


class Normalization(Enum):
    """What is subtracted from an image in [0, 1] and what it is divided by."""

    imagenet = "imagenet"
    model = "model"
    none = "none"


class Interpolation(Enum):
    """How an image is resized."""

    bicubic = "bicubic"
    bilinear = "bilinear"
    model = "model"


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
    """`task.hub.*`: where the hub keeps a data set, and what its splits are called there."""

    path: str = MISSING
    name: str | None = MISSING
    revision: str | None = MISSING
    train: str = MISSING
    evaluation: dict[str, str] = MISSING


@dataclass
class TsvData:
    """`task.tsv.*`: the classic GLUE download. Columns are names where there is a header, positions where not."""

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
    """`task.*` of a GLUE task: one or two texts in, a class or a number out."""

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
    """`task.*` of multiple-choice questions in words: one model trained on all, several test sets."""

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
class VtabTask:
    """`task.*` of a VTAB-1K task: an image in, a class out."""

    name: str = MISSING
    family: str = MISSING
    group: str = MISSING
    num_classes: int = MISSING
    test_rows: int = MISSING
    folders: list[str] = MISSING
    split: VtabSplit = MISSING
    normalization: Normalization = MISSING
    interpolation: Interpolation = MISSING
    random_resized_crop: float | None = MISSING
    horizontal_flip: float = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    data_dir: str | None = MISSING
    max_train_rows: int | None = MISSING
    max_eval_rows: int | None = MISSING
    validation_rows: int | None = MISSING
    image_cache: str | None = MISSING

    @property
    def num_labels(self) -> int:
        """By the name that a backbone knows it by."""
        return self.num_classes


@dataclass
class ModelSettings:
    """`model.*`: a pretrained backbone, from the hub, from a folder, or pretrained here."""

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
    """`method.*`: the fields of a method are declared by its own class and listed in `conf/method/<name>.yaml`."""

    name: str
    kind: str
    """The file of `flexlora/methods` that builds it, or a module of the user's own."""
    fields: dict[str, Any]
    """Everything else in the YAML."""

    def with_fields(self, **changed: Any) -> "MethodSettings":
        """The same method with other values of some fields."""
        return replace(self, fields=self.fields | changed)


@dataclass
class RunSettings:
    """The whole of one run; `resolve` makes `task` an object of its family's schema, `method` a `MethodSettings`."""

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
    recipes: dict[str, Any] = field(default_factory=dict)


def evaluates_held_out(task: Any) -> bool:
    """Whether a task's settings (`task.*`) have it evaluate on rows held out of train, not on the benchmark's own."""
    split = getattr(task, "split", None)
    return getattr(task, "validation_rows", None) is not None or split is VtabSplit.train800_val200


TASK_SCHEMAS: dict[str, type] = {
    "glue": GlueTask,
    "synthetic": GlueTask,
    "commonsense": CommonsenseTask,
    "vtab": VtabTask,
    "digits": VtabTask,
    "small_world": CommonsenseTask,
}


def register_schemas() -> None:
    """Put every schema where the YAML files pull it in (`- /schema/task/glue@task`), and the recipes' resolver."""
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunSettings)
    store.store(group="schema", name="model", node=ModelSettings)
    for name, schema in TASK_SCHEMAS.items():
        store.store(group="schema/task", name=name, node=schema)
    store.store(group="schema/task", name="any", node=_any_of(TASK_SCHEMAS.values()))
    register_resolver()


def _any_of(schemas: Iterable[type]) -> type:
    """A schema with the keys of all these, for the placeholder that stands where a sweep is over tasks.

    Hydra composes the sweep as a whole before its runs, and refuses a key there that the placeholder lacks.
    """
    types: dict[str, Any] = {}
    for known in (known for schema in schemas for known in fields(schema)):
        types[known.name] = known.type if types.get(known.name, known.type) == known.type else Any
    return make_dataclass("AnyOf", [(name, kind, field(default=MISSING)) for name, kind in types.items()])
