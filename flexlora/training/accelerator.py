"""The accelerator of one run, and the checks of how its processes were launched."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, parse_flag_from_env

from flexlora.errors import UserError, one_line
from flexlora.settings import Precision, RunSettings
from flexlora.training.distributed import WORLD_SIZES


def stay_on_cpu() -> bool:
    """Return whether the run stays on the CPU: the launcher asks for it, or there is no other device.

    Without another device, several processes only find each other if Accelerate is told to use the CPU.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def make_accelerator(settings: RunSettings, path: Path) -> Accelerator:
    """Return the accelerator of one run whose folder is `path`.

    Raises:
        UserError: this device does not support the precision, or the number of processes contradicts the settings.
    """
    # The runs of a sweep share one process. Without this reset, a second Accelerator of another precision is refused.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    training = settings.training
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = training.tf32
    precision = "no" if training.precision is Precision.fp32 else training.precision.value
    _check_launch()
    try:
        accelerator = Accelerator(
            cpu=stay_on_cpu(),
            mixed_precision=precision,
            log_with=settings.trackers or None,
            project_config=ProjectConfiguration(logging_dir=str(path / "tensorboard")),
            # Masks of active directions are buffers. They are already the same on all processes.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as error:
        raise UserError(f"training.precision={training.precision.value}: {one_line(error)}") from error
    if training.count_flops and accelerator.num_processes > 1:
        raise UserError("training.count_flops=true counts what one process does: start a single one")
    if training.shard_base and accelerator.num_processes == 1:
        raise UserError(
            "training.shard_base=true needs several processes (docs/how-to/use-several-gpus.md says how to start them)"
        )
    return accelerator


def _check_launch() -> None:
    """Check that `accelerate launch` got no option that it ignores or that changes the training.

    Raises:
        UserError: the options ask for several processes with `--cpu` (only one is started), for FSDP or for DeepSpeed.
    """
    launched = {*WORLD_SIZES, "LOCAL_RANK"} & set(os.environ)
    # With --cpu and several processes, `accelerate launch` sets MASTER_PORT but starts a single process.
    if parse_flag_from_env("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ and not launched:
        raise UserError(
            "accelerate launch --cpu starts one process, whatever --num_processes says: take --multi_gpu instead of "
            "--cpu, which on a machine without GPUs uses its CPUs, or torchrun --nproc_per_node"
        )
    for flag, name in {"ACCELERATE_USE_FSDP": "--use_fsdp", "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed"}.items():
        if parse_flag_from_env(flag):
            raise UserError(f"accelerate launch {name} would shard the adapter too: take training.shard_base=true")
