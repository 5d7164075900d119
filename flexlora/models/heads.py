"""The head of an encoder: which parts come from the checkpoint, and whether its classes are the task's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# transformers' own names of classes, which say nothing about them.
UNNAMED = re.compile(r"label[ _]?\d+", re.IGNORECASE)


@dataclass
class Head:
    """The facts about a head for the record and the log. Parts are modules, such as `classifier.out_proj`."""

    kept: list[str] = field(default_factory=list)
    """The parts with the checkpoint's weights."""
    new: list[str] = field(default_factory=list)
    """The parts that are freshly initialised."""
    classes: str | None = None
    """How the classes of a kept last layer were matched; None if that layer is new."""

    def __str__(self) -> str:
        parts = []
        if self.kept:
            parts.append(f"{', '.join(self.kept)} from the checkpoint" + (f" ({self.classes})" if self.classes else ""))
        if self.new:
            again = f" ({self.classes})" if self.classes and not self.kept else ""
            parts.append(f"{', '.join(self.new)} new{again}")
        return "head: " + "; ".join(parts)


def parts_of_head(model: Any, head_modules: Sequence[str], new: Sequence[str]) -> Head:
    """Sort the head's parts by where their weights come from; `new` are the parameters that the checkpoint lacks."""
    names = [name for name, _ in model.named_parameters() if not set(head_modules).isdisjoint(name.split("."))]
    fresh = {name.rpartition(".")[0] for name in names if name in new}
    parts = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return Head(kept=[part for part in parts if part not in fresh], new=[part for part in parts if part in fresh])


def match_classes(model: Any, head: Head, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Match the last layer of a kept head to the task's classes, and name them in the model's configuration.

    If the classes are the same in another order, the layer's rows are put in the task's order. If the classes
    differ, the layer is initialised again. If the checkpoint's classes have no names, the layer is kept.

    Args:
        model: a classifier of transformers.
        head: its head, updated in place.
        theirs: the names of the checkpoint's classes, in the order of its outputs.
        ours: the names of the task's classes; empty for a regression.
    """
    name, layer = _last_layer(model)
    if ours and name in head.kept:
        order = class_order(theirs, ours)
        if order is None:
            weight, bias = layer.weight.data, layer.bias.data
            weight.normal_(0.0, model.config.initializer_range)
            bias.zero_()
            head.kept.remove(name)
            head.new.append(name)
            head.classes = f"the checkpoint's has other classes: {', '.join(theirs)}"
        elif order == list(range(len(ours))):
            nameless = all(UNNAMED.fullmatch(each) for each in theirs)
            head.classes = f"its classes {'have no names and ' if nameless else ''}are taken as {', '.join(ours)}"
        else:
            layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]
            head.classes = f"its classes are put in the task's order: {', '.join(theirs)} → {', '.join(ours)}"
    if ours:
        model.config.id2label = dict(enumerate(ours))
        model.config.label2id = {label: number for number, label in enumerate(ours)}


def unnamed(count: int) -> list[str]:
    """Return transformers' names of classes without names."""
    return [f"LABEL_{number}" for number in range(count)]


def class_names(written: Mapping[str, Any], count: int) -> list[str]:
    """Return the names of `count` classes from a config.json's content; those of `unnamed` if it has no names."""
    named = written.get("id2label")
    names = {str(key): str(name) for key, name in named.items()} if isinstance(named, dict) else {}
    keys = [str(number) for number in range(count)]
    return [names[key] for key in keys] if names.keys() == set(keys) else unnamed(count)


def class_order(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Return the number of each of our classes in `theirs`; None if the classes differ.

    Case does not matter, and a space, `-` and `_` are equal. Classes without names count as ours.
    """
    if all(UNNAMED.fullmatch(name) for name in theirs):
        return list(range(len(ours)))
    before, now = [_plain(name) for name in theirs], [_plain(name) for name in ours]
    if sorted(before) != sorted(now) or len(set(now)) < len(now):
        return None
    return [before.index(name) for name in now]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _last_layer(model: Any) -> tuple[str, Any]:
    """Return the name of the linear layer that makes the logits, and the layer."""
    from torch import nn

    return [
        (name, m) for name, m in model.named_modules() if "classifier" in name.split(".") and isinstance(m, nn.Linear)
    ][-1]
