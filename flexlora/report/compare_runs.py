"""Find the differences between two runs: settings, machine, results, and the first step at which they differ."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from safetensors import SafetensorError, deserialize

from flexlora.errors import UserError, one_line
from flexlora.reading import read_bytes
from flexlora.results.collect import Run
from flexlora.results.files import read_json_lines
from flexlora.results.folder import LOCATION_KEYS
from flexlora.results.predictions import BEST, LAST, read_answers
from flexlora.settings import flat_keys

ABSENT = "–"
SHOWN = 12
# Fields of metrics.jsonl and of evaluations that contain a measured time.
CLOCKS = frozenset({"train_seconds", "eval_seconds"})
# The keys of the record, by the section that shows their differences.
RECORD = {
    "run": ("scale", "task", "model", "method", "variant", "seed", "data_seed"),
    "settings": ("config",),
    "data and backbone": ("data", "samples", "subset", "backbone"),
    "versions and hardware": ("versions", "git", "hardware"),
    "outcome": (
        *("status", "error", "steps", "total_steps", "epochs", "train_loss", "tokens", "main_metric"),
        *("parameters", "parameter_budget", "adapter_bytes", "schedule", "rank_events", "flops"),
    ),
}
MEASURED = ("started", "total_seconds", "train_seconds", "eval_seconds", "peak_memory", "resumed_at")
NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True)
class Difference:
    """One difference: its name, and its value in each of the two runs."""

    what: str
    first: str
    second: str


@dataclass(frozen=True)
class Section:
    """The differences of one kind. `more` is the number of unlisted ones. `counts`: whether they make runs unequal."""

    title: str
    differences: list[Difference]
    more: int = 0
    counts: bool = True


def compare(first: Run, second: Run) -> list[Section]:
    """Return the differences of two runs, section by section. Sections without a difference are left out.

    Raises:
        UserError: a file of one of the runs is broken. The message says which file and why.
    """
    one, other = asdict(first.record), asdict(second.record)
    sections = {title: _of_record(one, other, keys) for title, keys in RECORD.items()}
    try:
        sections["evaluations"] = _evaluations(first, second)
        sections["metrics.jsonl, from here on"] = _first_row(first.path, second.path)
        sections["rank events"] = _rank_events(first.path, second.path)
        sections["predictions"] = _predictions(first.path, second.path)
        sections["weights"] = _weights(first.path, second.path)
    except (OSError, ValueError) as error:
        raise UserError(one_line(error)) from error
    listed = [Section(title, found[:SHOWN], len(found[SHOWN:])) for title, found in sections.items() if found]
    measured = _of_record(one, other, MEASURED)
    return listed + ([Section("clocks and interruptions", measured, counts=False)] if measured else [])


def _of_record(one: Mapping[str, Any], other: Mapping[str, Any], keys: Iterable[str]) -> list[Difference]:
    found = []
    for key in keys:
        ours, theirs = ({key: record[key]} for record in (one, other))
        if key == "config":
            ours, theirs = (dict(record[key]) for record in (one, other))
        found += _of_mappings(flat_keys(ours), flat_keys(theirs))
    return found


def _of_mappings(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[Difference]:
    absent = object()
    keys = [
        key for key in {**one, **other} if key not in LOCATION_KEYS and one.get(key, absent) != other.get(key, absent)
    ]
    return [Difference(prefix + key, *_texts(one.get(key, ABSENT), other.get(key, ABSENT))) for key in keys]


def _texts(one: Any, other: Any) -> tuple[str, str]:
    """Return both values as text. Floats have six digits, or all digits if six digits would be equal."""
    shown = [f"{value:.6g}" if isinstance(value, float) else _text(value) for value in (one, other)]
    return (_text(one), _text(other)) if shown[0] == shown[1] else (shown[0], shown[1])


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _without_clocks(row: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if row is None else {key: value for key, value in flat_keys(row).items() if key not in CLOCKS}


def _by_step(run: Run) -> dict[float, dict[str, Any]]:
    """Return a run's evaluations by step, without the measured times.

    Raises:
        ValueError: an evaluation is damaged. The message says which one.
    """
    found = {}
    for number, row in enumerate(run.record.history, start=1):
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int | float):
            raise ValueError(f"{run.path / 'result.json'}: entry {number} of its history is no evaluation after a step")
        found[step] = _without_clocks(row)
    return found


def _evaluations(first: Run, second: Run) -> list[Difference]:
    rows = [_by_step(run) for run in (first, second)]
    found = []
    for step in sorted({**rows[0], **rows[1]}):
        ours, theirs = (by_step.get(step) for by_step in rows)
        if ours is None or theirs is None:
            words = [ABSENT if row is None else "evaluated" for row in (ours, theirs)]
            found.append(Difference(f"step {step}", words[0], words[1]))
        else:
            found += _of_mappings(ours, theirs, f"step {step}: ")
    return found


def _first_row(first: Path, second: Path) -> list[Difference]:
    """Return the differences in the first line of metrics.jsonl that differs."""
    lines = zip_longest(*(read_json_lines(run / "metrics.jsonl") for run in (first, second)))
    for number, (ours, theirs) in enumerate(lines, start=1):
        one, other = _without_clocks(ours), _without_clocks(theirs)
        if one != other:
            place = f"line {number}, step {(one or other).get('step', '?')}"
            if not one or not other:
                words = [json.dumps(row.get("kind", "?")) if row else "ended before" for row in (one, other)]
                return [Difference(place, words[0], words[1])]
            return _of_mappings(one, other, f"{place}: ")
    return []


def _rank_events(first: Path, second: Path) -> list[Difference]:
    """Return the differences in the number of events, and in the fields of the first event that differs."""
    one, other = (list(read_json_lines(run / "ranks.jsonl")) for run in (first, second))
    found = [] if len(one) == len(other) else [Difference("number of events", str(len(one)), str(len(other)))]
    pairs = list(zip(one, other, strict=False))
    apart = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    if apart:
        ours, theirs = apart[0]
        found.append(Difference("events that differ", str(len(apart)), f"of {len(pairs)} that both have"))
        steps = [event.get("step", "?") for event in (ours, theirs)]
        place = f"step {steps[0]}: " if steps[0] == steps[1] else ""
        for key in dict.fromkeys((*ours, *theirs)):
            one_value, other_value = ours.get(key), theirs.get(key)
            if isinstance(one_value, dict) and isinstance(other_value, dict):
                found += _of_mappings(one_value, other_value, f"{place}{key} of ")
            elif isinstance(one_value, list) and isinstance(other_value, list):
                ours_alone, theirs_alone = _alone(one_value, other_value), _alone(other_value, one_value)
                if ours_alone or theirs_alone:
                    words = [", ".join(alone) or ABSENT for alone in (ours_alone, theirs_alone)]
                    found.append(Difference(f"{place}{key}, there alone", words[0], words[1]))
            else:
                found += _of_mappings({key: one_value}, {key: other_value}, place)
    return found


def _alone(one: list[Any], other: list[Any]) -> list[str]:
    return [str(item) for item in one if item not in other]


def _predictions(first: Path, second: Path) -> list[Difference]:
    """Return the number of examples of each split whose answers differ."""
    found = []
    for name in (LAST, BEST):
        there = [(run / name).is_file() for run in (first, second)]
        if there[0] != there[1]:
            found.append(Difference(name, *("kept" if kept else ABSENT for kept in there)))
        if not all(there):
            continue
        one, other = (read_answers(run / name) for run in (first, second))
        if one.step != other.step:
            found.append(Difference(f"{name}: step", str(one.step), str(other.step)))
        for split in {**one.predictions, **other.predictions}:
            ours, theirs = one.predictions.get(split), other.predictions.get(split)
            if ours is None or theirs is None or len(ours) != len(theirs):
                counts = [ABSENT if answers is None else f"{len(answers)} examples" for answers in (ours, theirs)]
                found.append(Difference(f"{name}: {split}", counts[0], counts[1]))
            elif changed := int((ours != theirs).sum()):
                found.append(Difference(f"{name}: {split}", f"{changed} answers differ", f"of {len(ours)}"))
    return found


def _weights(first: Path, second: Path) -> list[Difference]:
    """Return the differences of the saved adapters, tensor by tensor."""
    one, other = (_tensors(run / "adapter") for run in (first, second))
    found = []
    for name in sorted({*one, *other}):
        ours, theirs = one.get(name), other.get(name)
        if ours == theirs:
            continue
        if ours is None or theirs is None:
            found.append(Difference(name, *(ABSENT if tensor is None else "saved" for tensor in (ours, theirs))))
        elif ours[:2] != theirs[:2]:
            found.append(Difference(name, *(f"{kind} {list(shape)}" for kind, shape, _ in (ours, theirs))))
        else:
            found.append(Difference(name, *_farthest(*ours[::2], theirs[2])))
    return found


Tensor = tuple[str, tuple[int, ...], bytes]


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Return the type, shape and bytes of every tensor in the folder's safetensors files."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            tensors = deserialize(read_bytes(file))
        except SafetensorError as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from error
        for name, tensor in tensors:
            place = f"{file.relative_to(folder)}: {name}"
            found[place] = (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
    return found


def _farthest(kind: str, ours: bytes, theirs: bytes) -> tuple[str, str]:
    """Return both values of the entry that differs most."""
    if kind not in NUMPY_TYPES:
        return "other bytes", "than these"
    one, other = (np.frombuffer(data, NUMPY_TYPES[kind]).astype(np.float64) for data in (ours, theirs))
    place = int(np.nan_to_num(np.abs(one - other), nan=np.inf).argmax())
    return _texts(float(one[place]), float(other[place]))


def as_text(first: Run, second: Run, sections: list[Section], width: int) -> str:
    """Return a page for a terminal that is `width` characters wide."""
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, emoji=False, markup=False)
    console.print(f"A  {first.path}\nB  {second.path}", soft_wrap=True)
    for section in sections:
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column(section.title, overflow="fold")
        for name in ("A", "B"):
            table.add_column(name, overflow="fold")
        for difference in section.differences:
            table.add_row(difference.what, difference.first, difference.second)
        console.print()
        console.print(table)
        if section.more:
            console.print(f"and {section.more} more")
    differ = [section.title for section in sections if section.counts]
    words = f"They differ in: {', '.join(differ)}." if differ else "They are equal but for clocks and interruptions."
    console.print(f"\n{words}", soft_wrap=True)
    return "\n".join(line.rstrip() for line in file.getvalue().split("\n"))
