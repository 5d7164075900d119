"""Read the folder of an adapter that PEFT saved. Only its two files are read. Nothing is unpickled or downloaded."""

import json
import logging
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flexlora.errors import UserError, one_line
from flexlora.reading import TEXT, read_bytes, regular
from flexlora.results.files import file_sha256
from flexlora.results.record import RunRecord, read_record
from flexlora.text_files import decode

if TYPE_CHECKING:
    from peft import PeftConfig

log = logging.getLogger("flexlora")

ADAPTER = "adapter"
"""The name of the folder in a run's folder that contains the adapter."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's file names. PEFT is not imported here: its import registers our tuners, and one of them reads adapters."""

# Fields that describe the origin of the adapter.
ORIGIN = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("runtime_config", "task_type"),
}
# Fields that determine the tensors and their shapes. They need no check, because the tensors themselves are compared.
TENSORS = {
    *("exclude_modules", "layers_pattern", "layers_to_transform", "max_rank", "modules_to_save", "rank_pattern"),
    *("target_modules", "width"),
}
# Fields that determine how tensors start or change. Every field with "dropout" in its name is also one of them.
TRAINING = {
    *("all_zero", "beta", "beta1", "beta2", "budget_by", "budget_schedule", "budget_unit", "corda_config"),
    *("d_initial", "deltaT", "eva_config", "loftq_config", "lora_ga_config"),
    *("dem_weight", "direction", "growth_energy_quantile", "growth_init", "growth_lambda", "growth_state"),
    *("growth_std", "importance", "init_b", "init_std", "init_weights", "lambda_lr_ratio", "orth_reg_power"),
    *("orth_reg_weight", "prune_by", "rank_one", "reg", "seed", "selection", "spectrum", "target_r", "tfinal"),
    *("tinit", "total_step", "value_weight", "vector_init", "xi"),
}
# Values of `init_lora_weights` that do not change the backbone's own weights.
KEEPS_BACKBONE = (None, True, False, "gaussian", "eva", "orthogonal")


def read_config(folder: Path) -> dict[str, Any]:
    """Read the values of the folder's configuration.

    Raises:
        ValueError: the folder has no configuration, or the file is not a configuration of an adapter.
    """
    file = folder / CONFIG
    if not file.is_file():  # PEFT would ask the hub
        raise ValueError(f"{folder} is not an adapter saved by PEFT: it has no {CONFIG}")
    try:
        values = json.loads(decode(read_bytes(file, TEXT), file))
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise ValueError(f"cannot read {file}: {one_line(error)}") from error
    if not isinstance(values, dict) or not isinstance(values.get("peft_type"), str):
        raise ValueError(f"{file} is not the configuration of an adapter: it names no peft_type")
    return values


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the folder's tensors.

    Raises:
        ValueError: the folder has no safetensors file, or the file is damaged.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}: weights in other files are not read")
    try:
        return load_file(regular(file))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot load {folder}: {one_line(error)}") from error


def refuse_other_update(values: dict[str, Any], ours: "PeftConfig", folder: Path) -> None:
    """Check that a saved configuration and the run's configuration give the same ΔW if the tensors are the same.

    Raises:
        ValueError: the adapter is of another method, or a field that changes ΔW differs or is not known.
    """
    mine = str(getattr(ours.peft_type, "value", ours.peft_type))
    if values["peft_type"] != mine:
        raise ValueError(f"{folder} has a {values['peft_type']} adapter, but this method is {mine}")
    known = {field.name: field for field in fields(ours)}
    unknown = sorted(name for name, value in values.items() if name not in known and value)
    if unknown:
        raise ValueError(
            f"{folder} was saved with the field {unknown[0]}, which this version of PEFT does not have: "
            "it may change the adapter"
        )
    differences = []
    for name, field in known.items():
        if name in ORIGIN | TENSORS | TRAINING or "dropout" in name:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        theirs, own = (_plain(value) for value in (values.get(name, default), getattr(ours, name)))
        if name == "init_lora_weights" and theirs in KEEPS_BACKBONE and own in KEEPS_BACKBONE:
            continue
        if theirs != own:
            differences.append((name, theirs, own))
    if differences:
        before, now = (", ".join(f"{name}={row[at]}" for name, *row in differences) for at in (0, 1))
        raise ValueError(
            f"{folder} was saved with {before}, but this run has {now}: its update would be another. "
            f"Set {' '.join(f'method.{name}={theirs}' for name, theirs, _ in differences)}"
        )


def checked_record(folder: Path) -> RunRecord | None:
    """Check an adapter's files against the record of the run that wrote it. Return the record, or None without one.

    Raises:
        ValueError: a file differs from the record or is missing, or the record cannot be read.
    """
    file = folder.resolve().parent / "result.json"
    if not file.exists():
        return None
    try:
        record = read_record(file)
    except ValueError as error:
        raise ValueError(
            f"the checksums of {folder} cannot be read ({one_line(error)}): "
            "copy the adapter to another folder to use it unchecked"
        ) from error
    inside = {Path(name): stamp["sha256"] for name, stamp in record.files.items()}
    written = {str(name.relative_to(ADAPTER)): sha256 for name, sha256 in inside.items() if name.parts[0] == ADAPTER}
    for name, sha256 in (record.adapter_sha256 | written).items():
        saved = folder / name
        if not saved.is_file():
            raise ValueError(f"{saved} is missing, but its run wrote it")
        if file_sha256(saved) != sha256:
            raise ValueError(f"{saved} is not what its run wrote: it is damaged, or was changed since")
    return record


def log_kept_head(names: Iterable[str]) -> None:
    """Log which modules of the head come from the adapter. `names` are the names of their tensors."""
    modules = dict.fromkeys(name.removeprefix("base_model.model.").rpartition(".")[0] for name in names)
    if modules:
        log.info("adapter: the saved head is kept: %s", ", ".join(modules))


def _plain(value: Any) -> Any:
    """Return a field's value in the form that JSON gives."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return json.loads(json.dumps(asdict(value)))
    if isinstance(value, set | frozenset):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value
