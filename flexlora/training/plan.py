"""The plan of a run, known before the run starts: its steps, and what its method is told about them.

The job executes this plan and `flexlora-doctor` prints it, so the two cannot disagree.
"""

import logging
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flexlora.settings import RunSettings, TrainingSettings, evaluates_held_out
from flexlora.training.batching import batches_per_epoch, steps_per_epoch

if TYPE_CHECKING:
    from flexlora.methods import Method, RunContext
    from flexlora.models import Backbone

log = logging.getLogger("flexlora")


@dataclass(frozen=True)
class Steps:
    """The steps of a training on all processes together."""

    rows: int
    """The number of examples of the training split."""
    batches: int
    """The number of forward passes of an epoch, on all processes."""
    per_epoch: int
    """The number of optimizer steps of an epoch."""
    total: int
    """The number of optimizer steps of the whole training."""
    warmup: int
    """The number of optimizer steps over which the learning rate rises."""

    def __str__(self) -> str:
        return f"{self.rows:,} rows, {self.per_epoch:,} optimizer steps an epoch, {self.total:,} in all"


def plan_steps(training: TrainingSettings, rows: int, processes: int = 1) -> Steps:
    """Return the steps of training on `rows` examples: `max_steps`, or `epochs` times the steps of an epoch."""
    an_epoch = steps_per_epoch(rows, training.batch_size, training.gradient_accumulation, processes)
    total = training.epochs * an_epoch if training.max_steps is None else training.max_steps
    return Steps(
        rows=rows,
        batches=batches_per_epoch(rows, training.batch_size, processes),
        per_epoch=an_epoch,
        total=total,
        warmup=warmup_steps(total, training),
    )


def warmup_steps(total_steps: int, training: TrainingSettings) -> int:
    """Return the number of steps over which the learning rate rises.

    It is `warmup_steps`, but at most `total_steps`. Without that setting it is `warmup_ratio` of all steps, rounded up.
    """
    if training.warmup_steps is not None:
        return min(training.warmup_steps, total_steps)
    return math.ceil(training.warmup_ratio * total_steps)


def run_context(settings: RunSettings, backbone: "Backbone", total_steps: int) -> "RunContext":
    """Return what a method is told before it wraps the model. Its windows and its capacity depend on the steps."""
    from flexlora.methods import RunContext

    return RunContext(
        total_steps=total_steps,
        schedule=settings.schedule,
        paper_steps=settings.paper_steps,
        seed=settings.seed,
        target_modules=backbone.target_modules,
        head_modules=backbone.head_modules,
        task_type=backbone.task_type,
        held_out=evaluates_held_out(settings.task),
    )


def make_method(
    settings: RunSettings, backbone: "Backbone", total_steps: int
) -> "tuple[Method, dict[str, Any] | None]":
    """Build the run's method. Also return, for the record, what was chosen to fit the parameter budget.

    The second value is None if no parameter budget is set.
    """
    from flexlora.methods import build_method
    from flexlora.methods.parameter_budget import fit_to_budget

    context = run_context(settings, backbone, total_steps)
    if settings.parameter_budget is None:
        return build_method(settings.method, context), None
    fit = fit_to_budget(settings.method, context, backbone.model, settings.parameter_budget)
    log.info("%s", fit)
    return build_method(settings.method.with_fields(**fit.changed), context), asdict(fit)


def windows_line(schedule: dict[str, Any]) -> str:
    """Return one line that says how a method's windows (tinit, tfinal, deltaT) were scaled to this run's steps."""
    if schedule["factor"] == 1.0:
        return "windows as given: " + ", ".join(f"{name} {value}" for name, value in schedule["used"].items())
    changes = ", ".join(f"{name} {before} → {schedule['used'][name]}" for name, before in schedule["given"].items())
    return (
        f"windows scaled by {schedule['factor']:.4g} "
        f"({schedule['total_steps']} steps here, {schedule['paper_steps']} in the recipe): {changes}"
    )
