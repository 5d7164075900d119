"""Methods turn settings into an adapted model. `method.kind` names the file of a kind."""

from flexlora.methods.base import Method, RunContext
from flexlora.plugins import load_plugin
from flexlora.settings import MethodSettings, RunSettings, Schedule, evaluates_held_out

__all__ = ["Method", "RunContext", "build_method", "check_method"]

# The number of steps that is assumed while the real number is not known. It is larger than any window.
UNKNOWN_STEPS = 2**31 - 1


def build_method(settings: MethodSettings, context: RunContext) -> Method:
    """Build the method that `settings` (`method.*`) describes, ready to wrap a model.

    Raises:
        UserError: the kind does not exist, the method does not have a field, or a value is invalid.
    """
    method: Method = load_plugin(("flexlora.methods",), settings.kind, "method.kind", "build")(settings.fields, context)
    method.head_modules = method.head_modules or tuple(context.head_modules)
    return method


def check_method(run: RunSettings) -> None:
    """Check the method's settings before data and model are loaded.

    Windows are checked against `training.max_steps` with schedule=absolute, and against the paper's steps with
    schedule=scaled. `build_method` makes the checks that need the real number of steps.

    Raises:
        UserError: the kind does not exist, the method does not have a field, or a value is invalid.
    """
    scaled = run.schedule is Schedule.scaled and run.paper_steps is not None
    steps = run.paper_steps if scaled else run.training.max_steps
    context = RunContext(
        total_steps=steps or UNKNOWN_STEPS,
        schedule=run.schedule,
        paper_steps=run.paper_steps,
        seed=run.seed,
        target_modules=".*",
        held_out=evaluates_held_out(run.task),
    )
    build_method(run.method, context)
