"""Tasks: load the splits, turn examples into batches, score predictions. One file a family; `task.family` names it."""

from flexlora.tasks.base import Split, Task, load_task

__all__ = ["Split", "Task", "load_task"]
