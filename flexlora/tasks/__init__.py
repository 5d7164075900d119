"""Tasks load the splits, turn examples into batches and score predictions. `task.family` names the file of a family."""

from flexlora.tasks.base import Split, Task, load_task

__all__ = ["Split", "Task", "load_task"]
