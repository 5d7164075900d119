"""Trackers besides `metrics.jsonl`, through Accelerate: TensorBoard, Weights & Biases and Trackio."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.settings import flat_keys

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "flexlora"
TRACKERS = ("tensorboard", "wandb", "trackio")


def require_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that cannot be used. Accelerate would skip it with only a debug message.

    Raises:
        UserError: the tracker does not exist, or its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                f"trackers: there is no '{name}'.{did_you_mean(name, TRACKERS)} There are: {', '.join(TRACKERS)}."
            )
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed: pip install {name}, or leave it out")


@contextlib.contextmanager
def tracked(accelerator: "Accelerator", name: str, config: Mapping[str, Any], folder: Path) -> Iterator[None]:
    """Start the accelerator's trackers for one run, and finish them however the run ends.

    Args:
        accelerator: the accelerator, made with `log_with` and `project_dir`.
        name: the name of the run in the trackers.
        config: the run's resolved configuration.
        folder: the run's folder; wandb keeps its files in it.

    Raises:
        UserError: a tracker does not start (no account, no network).
    """
    plain = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flat_keys(config).items()
    }
    options = {"wandb": {"name": name, "dir": str(folder)}, "trackio": {"name": name}}
    try:
        accelerator.init_trackers(PROJECT, config=plain, init_kwargs=options)
    except Exception as error:  # each tracker raises its own kinds of errors
        raise UserError(f"trackers: {one_line(error).rstrip('.')}; leave it out, or set it up first") from error
    try:
        yield
    finally:
        # `end_training` is not used: it would also end the process group, which the next run of a sweep needs.
        for tracker in accelerator.trackers:
            tracker.finish()


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of `metrics.jsonl` by their names in trackers: `train/loss`, `eval/ranks/max`."""
    return {
        f"{row['kind']}/{key.replace('.', '/')}": value
        for key, value in flat_keys(row).items()
        if isinstance(value, int | float) and key != "step"
    }
