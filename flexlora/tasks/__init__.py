"""Tasks load the splits, turn examples into batches and score predictions. `task.family` names the file of a family."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexlora.tasks.base import Split, Task, load_task

__all__ = ["Split", "Task", "load_task"]


def __getattr__(name: str) -> Any:
    """Import `base` when one of its names is used, so that modules without torch are imported without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flexlora.tasks import base

    return getattr(base, name)
