"""Checks whether a model's training fits the device, from its shapes and before its weights are loaded."""

from typing import TYPE_CHECKING, Any

from flexlora.errors import UserError
from flexlora.settings import RunSettings
from flexlora.training.plan import make_method, plan_steps

if TYPE_CHECKING:
    from flexlora.tasks import Split, Task

GIB = 2**30
# Below this many bytes of weights the step is not computed: loading and trying the model is faster.
WORTH_A_LOOK = GIB


def refuse_what_cannot_fit(settings: RunSettings, task: "Task", device: str, processes: int = 1) -> None:
    """Check that the weights, and for a large model a whole training step, fit in the device's free memory.

    Only kinds of models whose shapes are known without their weights are checked (`flexlora.models.sketch`). A base
    that is sharded over processes is not checked: the share of each process depends on their number.

    Raises:
        UserError: the model does not fit; the message has the numbers.
    """
    from flexlora.models import sketch
    from flexlora.training.memory import free_memory, step_memory

    training = settings.training
    backbone = None if training.shard_base else sketch(settings.model, task.num_labels)
    free = free_memory(device)
    if backbone is None or free is None:
        return
    whole, packed = backbone.weight_bytes()
    name, available = settings.model.path or settings.model.name, f"{_gib(free[0])} of {device} is free"
    held = settings.model.quantization.value if whole != packed and settings.model.quantization else None
    kind = held or settings.model.dtype.value
    smaller = [] if held else ["model.quantization=4bit"]
    if packed > free[0]:
        remedy = f": {smaller[0]} packs it, or take a larger device" if smaller else ""
        raise UserError(f"{name} does not fit: its weights take {_gib(packed)} in {kind}, and {available}{remedy}")
    if packed < WORTH_A_LOOK:
        return
    if training.gradient_checkpointing:
        backbone.recompute_activations()
    else:
        smaller.append("training.gradient_checkpointing=true")
    task.preprocess(backbone.processor)
    method, _ = make_method(settings, backbone, plan_steps(training, len(task.train), processes).total)
    batch = largest_batch(task, [task.train], training.batch_size)
    need = step_memory(
        method.wrap(backbone.model),
        backbone.logits,
        method,
        training,
        batch,
        largest_batch(task, task.evaluation, training.eval_batch_size),
        device.partition(":")[0],
    )
    peak = need.peak - (whole - packed)
    if peak > free[0]:
        what = "an evaluation" if need.evaluation_decides else "a training step"
        size = "eval_batch_size" if need.evaluation_decides else "batch_size"
        remedies = [f"training.{size} below {getattr(training, size)}", *smaller]
        raise UserError(
            f"{name} does not fit: {what} takes {_gib(peak)}, {_gib(packed)} of it the weights in {kind}, "
            f"and {available}: {', '.join(remedies)}"
        )


def largest_batch(task: "Task", splits: "list[Split]", rows: int) -> Any:
    """Make a batch of the longest examples of the split that has the longest one. No batch of a run is larger."""
    split = max(splits, key=lambda split: max(split.lengths))
    order = sorted(range(len(split)), key=lambda i: -split.lengths[i])
    return task.collate([split.examples[i] for i in order[:rows]])


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
