"""The schema of every config group: names and types here, values and comments in `conf/`.

Hydra checks an override against these classes while it composes. `resolve` checks the composed config once more,
strictly and onto fresh classes, because Hydra's own `+key=value` adds a key past a schema without a word.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from flexlora.errors import UserError, did_you_mean, one_line


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
class TunerSettings:
    """`method.*` that every tuner in PEFT's registry has, by PEFT's names."""

    name: str = MISSING
    kind: str = MISSING
    peft_type: str = MISSING
    target_modules: Any = MISSING
    modules_to_save: Any = MISSING


@dataclass
class AdapterSettings(TunerSettings):
    """`method.*` that every low-rank tuner of PEFT's has, by PEFT's names."""

    lora_alpha: int | float = MISSING
    lora_dropout: float = MISSING


@dataclass
class LowRankSettings(AdapterSettings):
    """`method.*` of a tuner whose modules all start with rank r."""

    r: int = MISSING


@dataclass
class LoraSettings(LowRankSettings):
    """`method.*` of LoRA, by PEFT's names. Its other fields are added with `+method.<field>=`."""

    bias: str = MISSING
    use_rslora: bool = MISSING
    use_dora: bool = MISSING
    init_lora_weights: Any = MISSING


@dataclass
class FlexLoraSettings(LowRankSettings):
    """`method.*` of FlexLoRA; what each field means is said by `flexlora.FlexLoraConfig`."""

    tinit: int = MISSING
    tfinal: int = MISSING
    deltaT: int = MISSING
    init_b: int = MISSING
    max_rank: int | None = MISSING
    budget_schedule: str = MISSING
    budget_by: str = MISSING
    budget_unit: str = MISSING
    importance: str = MISSING
    direction: str = MISSING
    selection: str = MISSING
    prune_by: str = MISSING
    spectrum: str = MISSING
    rank_one: str = MISSING
    all_zero: str = MISSING
    growth_energy_quantile: float = MISSING
    growth_init: str = MISSING
    growth_state: str = MISSING
    growth_std: float | None = MISSING
    growth_lambda: float = MISSING
    init_std: float = MISSING
    vector_init: str = MISSING
    orth_reg_weight: float = MISSING
    orth_reg_power: int = MISSING
    beta1: float = MISSING
    beta2: float = MISSING
    lambda_lr_ratio: float = MISSING
    ranks_from: str | None = MISSING


@dataclass
class FlexLoraReleasedSettings(FlexLoraSettings):
    """`method.*` of FlexLoRA with what the released code does to the optimizer at a rank event."""

    reset_moments: bool = MISSING
    drop_weight_decay: bool = MISSING
    rate_to_peak: bool = MISSING
    schedule_twice: bool = MISSING


@dataclass
class AdaLoraSettings(AdapterSettings):
    """`method.*` of AdaLoRA, by PEFT's names."""

    init_r: int = MISSING
    target_r: int = MISSING
    tinit: int = MISSING
    tfinal: int = MISSING
    deltaT: int = MISSING
    beta1: float = MISSING
    beta2: float = MISSING
    orth_reg_weight: float = MISSING


@dataclass
class FLoraSettings(LowRankSettings):
    """`method.*` of FLoRA."""

    init_std: float = MISSING


@dataclass
class MLAESettings(LowRankSettings):
    """`method.*` of MLAE."""

    expert_dropout: float = MISSING


@dataclass
class SoRASettings(LowRankSettings):
    """`method.*` of SoRA."""

    xi: float = MISSING


@dataclass
class LoraDashSettings(LowRankSettings):
    """`method.*` of LoRA-Dash."""

    directions: int = MISSING
    tinit: int = MISSING


@dataclass
class LoriSettings(LowRankSettings):
    """`method.*` of LoRI."""

    sparsity: float = MISSING
    tinit: int | None = MISSING


@dataclass
class DynamicDoraSettings(LowRankSettings):
    """`method.*` of dynamic-rank DoRA."""

    target_r: int = MISSING
    tinit: int | None = MISSING
    tfinal: int | None = MISSING
    deltaT: int = MISSING
    beta: float = MISSING
    dem_weight: float = MISSING


@dataclass
class RiemannianSettings(LowRankSettings):
    """`method.*` of a tuner with A and B under the preconditioned optimizer."""

    reg: float = MISSING


@dataclass
class LoraRiemannianSettings(LoraSettings):
    """`method.*` of LoRA under the preconditioned optimizer."""

    reg: float = MISSING


@dataclass
class LoraGASettings(LowRankSettings):
    """`method.*` of LoRA-GA, by PEFT's names."""

    bias: str = MISSING
    use_rslora: bool = MISSING
    use_dora: bool = MISSING
    batches: int = MISSING
    direction: str = MISSING
    scale: str = MISSING
    stable_gamma: int = MISSING


@dataclass
class VeraSettings(TunerSettings):
    """`method.*` of VeRA, by PEFT's names."""

    r: int = MISSING
    d_initial: float = MISSING
    vera_dropout: float = MISSING
    projection_prng_key: int = MISSING


@dataclass
class HiraSettings(TunerSettings):
    """`method.*` of HiRA, by PEFT's names."""

    r: int = MISSING
    hira_dropout: float = MISSING


@dataclass
class BottleneckSettings(TunerSettings):
    """`method.*` of Houlsby's and Pfeiffer's adapters."""

    bottleneck: int = MISSING
    non_linearity: str = MISSING
    dropout: float = MISSING
    init_std: float = MISSING


@dataclass
class AdaptFormerSettings(TunerSettings):
    """`method.*` of AdaptFormer."""

    bottleneck: int = MISSING
    non_linearity: str = MISSING
    dropout: float = MISSING
    scale: float = MISSING


@dataclass
class AdapterFusionSettings(TunerSettings):
    """`method.*` of AdapterFusion."""

    adapters: list[str] = MISSING
    init_std: float = MISSING
    value_weight: float = MISSING


@dataclass
class FactSettings(TunerSettings):
    """`method.*` of FacT."""

    r: int = MISSING
    factorization: str = MISSING
    scale: float = MISSING
    dropout: float = MISSING
    width: int | None = MISSING


@dataclass
class SsfSettings(TunerSettings):
    """`method.*` of SSF."""

    init_std: float = MISSING


@dataclass
class VptSettings(TunerSettings):
    """`method.*` of VPT."""

    num_tokens: int = MISSING
    deep: bool = MISSING
    dropout: float = MISSING


@dataclass
class NoahSettings(TunerSettings):
    """`method.*` of NOAH; sizes are a number for all blocks, or a list of one a block."""

    prompt_dim: Any = MISSING
    lora_dim: Any = MISSING
    adapter_dim: Any = MISSING
    dropout: float = MISSING
    subnet: str | None = MISSING


@dataclass
class NoahSupernetSettings(TunerSettings):
    """`method.*` of NOAH's supernet and search."""

    sizes: list[int] = MISSING
    depths: list[int] = MISSING
    dropout: float = MISSING
    max_parameters: int | None = MISSING
    generations: int = MISSING
    population: int = MISSING
    parents: int = MISSING
    mutations: int = MISSING
    crossovers: int = MISSING
    mutation_probability: float = MISSING
    depth_probability: float = MISSING


@dataclass
class MaskSettings:
    """`method.*` of a method that only chooses which parameters of the backbone train."""

    name: str = MISSING
    kind: str = MISSING
    trainable: list[str] = MISSING


@dataclass
class RunSettings:
    """The whole of one run. `task` and `method` are typed by their own group's schema."""

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
METHOD_SCHEMAS: dict[str, type] = {
    "lora": LoraSettings,
    "flexlora": FlexLoraSettings,
    "flexlora_released": FlexLoraReleasedSettings,
    "adalora": AdaLoraSettings,
    "low_rank": LowRankSettings,
    "flora": FLoraSettings,
    "mlae": MLAESettings,
    "sora": SoRASettings,
    "lora_dash": LoraDashSettings,
    "lori": LoriSettings,
    "dynamic_dora": DynamicDoraSettings,
    "riemannian": RiemannianSettings,
    "lora_riemannian": LoraRiemannianSettings,
    "lora_ga": LoraGASettings,
    "vera": VeraSettings,
    "hira": HiraSettings,
    "bottleneck": BottleneckSettings,
    "adaptformer": AdaptFormerSettings,
    "adapter_fusion": AdapterFusionSettings,
    "fact": FactSettings,
    "ssf": SsfSettings,
    "vpt": VptSettings,
    "noah": NoahSettings,
    "noah_supernet": NoahSupernetSettings,
    "mask": MaskSettings,
}

# Where a method's `kind` is listed, no key beside its schema's is taken. Kinds that are not listed know their own
# fields better than a schema could: flexlora.methods.peft checks them against PEFT's config class.
STRICT_KINDS: dict[str, type] = {"mask": MaskSettings}

# What a type does not say: the lowest and the highest value of a setting, both allowed. Null is checked by its type.
MAX_SEED = 2**31 - 1
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes, of any file system
MAX_WIDTH = 2**16  # wider than any linear that is adapted, or head that is trained
LIMITS: dict[str, tuple[float, float]] = {
    "training.epochs": (1, math.inf),
    "training.max_steps": (1, math.inf),
    "training.batch_size": (1, math.inf),
    "training.eval_batch_size": (1, math.inf),
    "training.gradient_accumulation": (1, math.inf),
    "training.weight_decay": (0, math.inf),
    "training.warmup_ratio": (0, 1),
    "training.warmup_steps": (0, math.inf),
    "training.eval_every": (0, math.inf),
    "training.checkpoint_every": (1, math.inf),
    "training.log_every": (1, math.inf),
    "task.num_labels": (1, MAX_WIDTH),
    "task.num_classes": (2, MAX_WIDTH),
    "task.random_resized_crop": (0.01, 1),
    "task.horizontal_flip": (0, 1),
    "task.max_length": (1, 2**20),
    "task.tsv.width": (1, math.inf),
    "task.tsv.broken_rows": (0, math.inf),
    "task.num_beams": (1, math.inf),
    "task.max_new_tokens": (1, math.inf),
    "task.max_train_rows": (1, math.inf),
    "task.max_eval_rows": (1, math.inf),
    "task.validation_rows": (1, math.inf),
    "method.r": (0, MAX_WIDTH),
    "method.max_rank": (1, MAX_WIDTH),
    "method.init_r": (1, MAX_WIDTH),
    "paper_steps": (1, math.inf),
    "parameter_budget": (1, math.inf),
    "seed": (0, MAX_SEED),
    "data_seed": (0, MAX_SEED),
}
POSITIVE = ("training.learning_rate", "training.max_grad_norm")
FOLDER_NAMES = ("scale", "variant", "method.name", "model.name")
# What YAML does not give back as it was, what steers a terminal, and the half letters that bytes become which are not
# UTF-8: no file takes those.
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Empty is what a shell makes of a variable that is not set; as a path it would be the working folder.
PATHS = (
    *("output_root", "adapter", "method.ranks_from", "model.path"),
    *("task.data_dir", "task.token_cache", "task.image_cache"),
)


def register_schemas() -> None:
    """Put every schema where the YAML files pull it in (`- /schema/task/glue@_here_`)."""
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunSettings)
    store.store(group="schema", name="model", node=ModelSettings)
    groups = {"task": TASK_SCHEMAS, "method": METHOD_SCHEMAS}
    for group, schemas in groups.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
    store.store(group="schema/task", name="any", node=_any_of(TASK_SCHEMAS.values()))


def _any_of(schemas: Iterable[type]) -> type:
    """A schema with the keys of all these, for the placeholder that stands where a sweep is over tasks.

    Hydra composes the sweep as a whole before its runs, and refuses a key there that the placeholder lacks.
    """
    types: dict[str, Any] = {}
    for known in (known for schema in schemas for known in fields(schema)):
        types[known.name] = known.type if types.get(known.name, known.type) == known.type else Any
    return make_dataclass("AnyOf", [(name, kind, field(default=MISSING)) for name, kind in types.items()])


def resolve(config: DictConfig) -> tuple[RunSettings, dict[str, Any]]:
    """The typed settings of a composed config, and the same as plain JSON-ready data for the record.

    Raises:
        UserError: a key that no schema knows, a value of another type or out of range, or one that is still missing.
    """
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    _refuse_missing(plain)
    run = _strict(plain, RunSettings, "")
    run.task = _strict(plain["task"], _schema(TASK_SCHEMAS, plain["task"]["family"], "task.family"), "task.")
    run.method = dict(plain["method"])
    _strict(run.method, STRICT_KINDS.get(run.method["kind"]), "method.")
    _refuse_out_of_range(plain)
    _refuse_what_no_run_takes(plain)
    return run, plain


def flat_keys(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """`{"training": {"epochs": 8}}` as `{"training.epochs": 8}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _refuse_missing(plain: Mapping[str, Any]) -> None:
    missing = [key for key, value in flat_keys(plain).items() if value == "???"]
    if not missing:
        return
    task, method = plain["task"]["name"], plain["method"]["name"]
    strange = [key for key in missing if not key.startswith(("training.", "method."))]
    if strange:  # a YAML of the user's own that leaves a key of its schema out
        raise UserError(f"{', '.join(strange)} is not set: give it in the YAML, or as {strange[0]}=VALUE.")
    raise UserError(
        f"{', '.join(missing)} is not set: there is no recipe for method {method} on task {task} "
        f"(conf/recipe/{task}/{method}.yaml). Give it, as in {missing[0]}=VALUE."
    )


def _refuse_what_no_run_takes(plain: Mapping[str, Any]) -> None:
    """Of any setting, those of methods and those without limits of their own too."""
    for key, value in flat_keys(plain).items():
        for item in value if isinstance(value, list) else [value]:
            if CONTROL.search(f"{key}{item}"):
                raise UserError(f"{key} holds a line break, a control character or what is not UTF-8: {item}")
            if isinstance(item, int) and abs(item) > MAX_SEED:
                raise UserError(f"{key} must be between {-MAX_SEED} and {MAX_SEED}, not {item}")
            if isinstance(item, float) and not math.isfinite(item):
                raise UserError(f"{key} must be a finite number, not {item}")


def _schema(schemas: Mapping[str, type], name: str, key: str) -> type:
    if name not in schemas:
        raise UserError(f"there is no {key} '{name}'.{did_you_mean(name, schemas)} There are: {', '.join(schemas)}.")
    return schemas[name]


def _refuse_out_of_range(plain: Mapping[str, Any]) -> None:
    values = flat_keys(plain)
    for key, (lowest, highest) in LIMITS.items():
        value = values.get(key)
        if isinstance(value, int | float) and not lowest <= value <= highest:  # other types are another check's
            allowed = f"at least {lowest}" if highest == math.inf else f"between {lowest} and {highest}"
            raise UserError(f"{key} must be {allowed}, not {value}")
    for key in POSITIVE:
        value = values.get(key)
        if isinstance(value, int | float) and not value > 0:
            raise UserError(f"{key} must be above 0, not {value}")
    for key in FOLDER_NAMES:
        value = values.get(key)
        if value is not None and ("/" in value or not _is_folder_name(value)):
            raise UserError(f"{key} names one folder of a run's path: '{value}' is no folder's name")
    task = values["task.name"]
    if not all(_is_folder_name(part) for part in task.split("/")):
        raise UserError(f"task.name names folders of a run's path, as in glue/cola: '{task}' does not")
    for key in PATHS:
        if values.get(key) == "":
            raise UserError(f"{key} is empty: give a folder's name, or leave it out")
        if values.get(key) is not None:
            _check_path(key, values[key])


def _check_path(key: str, path: str) -> None:
    encoded = path.encode(errors="surrogatepass")
    if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise UserError(f"{key} is longer than a path may be: {path}")
    try:
        Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}: {path} is of a user without a home here") from error


def _is_folder_name(name: str) -> bool:
    return name not in {"", ".", ".."} and name.isprintable() and len(name.encode()) <= LONGEST_NAME


def _strict(values: Mapping[str, Any], schema: type | None, prefix: str) -> Any:
    """`values` as an object of `schema`, or as they are where there is none."""
    if schema is None:
        return dict(values)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except ConfigKeyError as error:
        key = f"{prefix}{error.full_key}"
        known = {f"{prefix}{name}" for name in [*flat_keys(values), *(f.name for f in fields(schema))]}
        known = {name for name in known if name != key and not key.startswith(f"{name}.")}
        raise UserError(f"there is no setting '{key}'.{did_you_mean(key, known)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{prefix}{error.full_key}: {one_line(error)}") from error
