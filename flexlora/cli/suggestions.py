"""Suggest what a word on the command line was meant to be, when no setting and no flag has its name."""

import re
import sys
from collections.abc import Sequence

from flexlora.cli.choices import known_keys
from flexlora.errors import did_you_mean

# What other programs call a setting. The first name that the run's method or task has is suggested.
OTHER_NAMES = {
    "alpha": ("method.lora_alpha",),
    "bs": ("training.batch_size",),
    "checkpoint": ("adapter",),
    "data": ("task.data_dir",),
    "data_path": ("task.data_dir",),
    "dataset": ("task",),
    "dropout": ("method.lora_dropout",),
    "eval_steps": ("training.eval_every",),
    "logging_steps": ("training.log_every",),
    "lr": ("training.learning_rate",),
    "model_name_or_path": ("model.path",),
    "num_epochs": ("training.epochs",),
    "num_train_epochs": ("training.epochs",),
    "out": ("output_root",),
    "output": ("output_root",),
    "output_dir": ("output_root",),
    "peft": ("method",),
    "per_device_train_batch_size": ("training.batch_size",),
    "rank": ("method.r", "method.max_rank"),
    "report_to": ("trackers",),
    "save_steps": ("training.checkpoint_every",),
    "scheduler": ("training.lr_scheduler",),
    "steps": ("training.max_steps",),
    "train_steps": ("training.max_steps",),
    "wd": ("training.weight_decay",),
}
SEEDS = ("seeds", "num_seeds", "n_seeds")
DEVICES = ("gpu", "gpus", "device", "devices", "cuda")
SEVERAL_DEVICES = " The variable CUDA_VISIBLE_DEVICES=0 chooses a GPU; 'accelerate launch' uses several."
MANY = 10
"""The number of seeds that are written out; more are written as range(N)."""


def meant_setting(key: str) -> str:
    """Return a sentence that suggests the setting meant by `key`, with a space before it, or an empty text."""
    if key in SEEDS:
        return f" Did you mean -m seed={_seeds(_value_of(key))}? A sweep (-m) makes a run for each seed."
    if key in DEVICES:
        return SEVERAL_DEVICES
    known = known_keys()
    exact = _same_setting(key, known)
    return f" Did you mean {exact}?" if exact else did_you_mean(key, known)


def meant_choice(group: str) -> str:
    """Return the end of a sentence that joins the name of a group to the word behind it: `task glue/cola`."""
    words = sys.argv[1:]
    behind = words[words.index(group) + 1 :][:1]
    return f", as in {group}={behind[0]}" if behind and "=" not in behind[0] else f", as in {group}=NAME"


def meant_flags(words: Sequence[str], flags: Sequence[str]) -> str:
    """Return the settings that the unknown flags of a command line name, `task=x` for `--task x`, or an empty text."""
    meant, known = [], known_keys()
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not name.startswith("-") or name in flags:
            continue
        setting = _same_setting(name.lstrip("-").replace("-", "_"), known)
        if setting is None:
            return ""
        following = words[position + 1 :][:1]
        if not equals:
            value = following[0] if following and "=" not in following[0] and following[0][:1] != "-" else "VALUE"
        meant.append(f"{setting}={value}")
    return " ".join(meant)


def _same_setting(word: str, known: Sequence[str]) -> str | None:
    """Return the setting of this name, or of this name without its group: training.epochs for `epochs`."""
    last = word.rpartition(".")[2]
    group, _, rest = word.partition("_")
    same_last = [key for key in known if key.rpartition(".")[2] == last]
    names = (word, f"{group}.{rest}", *OTHER_NAMES.get(last, ()), *same_last)
    return next((name for name in names if name in known), None)


def _value_of(key: str) -> str:
    return next((word.partition("=")[2] for word in sys.argv[1:] if word.partition("=")[0] == key), "")


def _seeds(value: str) -> str:
    """Return the seeds of a sweep, as Hydra writes them: `0,1,2` for 3 and for [0,1,2]."""
    listed = re.findall(r"\d+", value)
    if len(listed) > 1:
        return ",".join(listed)
    count = int(listed[0]) if listed and len(listed[0]) < 5 else 3
    return f"range({count})" if count > MANY else ",".join(map(str, range(max(1, count))))
