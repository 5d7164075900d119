"""FlexLoRA's numbers for a task, from the recipes in `conf/method/flexlora.yaml`, for scripts without the runner."""

from __future__ import annotations

from typing import Any

from flexlora.conf_path import conf_dir
from flexlora.errors import did_you_mean


def recipe(like: str) -> dict[str, Any]:
    """Return FlexLoRA's recipe for a task: `training.learning_rate`, `method.tinit`, `paper_steps` and others.

    Args:
        like: a task (`glue/cola`, `vtab/cifar100`) or a benchmark (`glue`, `commonsense170k`). A task without a row of
            its own has its benchmark's.

    Raises:
        ValueError: there is no recipe of this name.
    """
    from flexlora.settings.recipes import file_of, method_table  # here, because it imports Hydra

    rows = method_table("flexlora", [conf_dir()])
    is_task = file_of("task", like, [conf_dir()]) is not None
    name = like if like in rows or not is_task else like.partition("/")[0]
    if name not in rows:
        raise ValueError(f"there is no recipe '{like}'.{did_you_mean(like, rows)} There are: {', '.join(rows)}.")
    return dict(rows[name])
