"""Methods: from settings to an adapted model. One file a kind; `method.kind` names it."""

from flexlora.methods.base import Method, RunContext
from flexlora.plugins import load_plugin
from flexlora.settings import MethodSettings, RunSettings, Schedule, evaluates_held_out

__all__ = ["Method", "RunContext", "build_method", "check_method"]

# Of a run whose steps are not known yet: as many as any window needs.
UNKNOWN_STEPS = 2**31 - 1


def build_method(settings: MethodSettings, context: RunContext) -> Method:
    """The method that `settings` (`method.*`) describes, ready to wrap a model.

    Raises:
        UserError: no such kind, a field the method does not have, a value it does not take.
    """
    method: Method = load_plugin(("flexlora.methods",), settings.kind, "method.kind", "build")(settings.fields, context)
    method.head_modules = method.head_modules or tuple(context.head_modules)
    return method


def check_method(run: RunSettings) -> None:
    """Refuse what `build_method` would refuse whatever the data and the model, before either is loaded.

    Windows are held against `training.max_steps` under schedule=absolute, and against the paper's own steps under
    schedule=scaled; what only the real number of steps shows is left to `build_method`.

    Raises:
        UserError: as `build_method`.
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
