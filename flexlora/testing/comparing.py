"""Compare the folders of two runs bit for bit."""

import json
from pathlib import Path
from typing import Any

from flexlora.results.predictions import BEST, LAST, read_answers
from flexlora.results.record import read_record

# Seconds differ between two runs. Everything else must be equal.
CLOCKS = {"train_seconds", "eval_seconds"}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the complete lines, without measured times. A run may still be writing the last line."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [without_clocks(json.loads(line)) for line in lines]


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of metrics without its measured times."""
    return {key: value for key, value in row.items() if key not in CLOCKS}


def differences(first: Path, second: Path) -> list[str]:
    """Return the differences between the folders of two runs: rows, rank events, tensors, predictions, the record."""
    from safetensors.torch import load_file

    found = [name for name in ("metrics.jsonl", "ranks.jsonl") if rows_of(first / name) != rows_of(second / name)]
    ours, theirs = (sorted(p.relative_to(f) for p in (f / "adapter").rglob("*.safetensors")) for f in (first, second))
    if ours != theirs or not ours:
        return [*found, "adapter"]
    for file in ours:
        before, after = load_file(first / file), load_file(second / file)
        found += [f"{file}: {key}" for key in before.keys() ^ after.keys()]
        found += [f"{file}: {key}" for key in before.keys() & after.keys() if not before[key].equal(after[key])]
    for name in (LAST, BEST):
        one, other = read_answers(first / name), read_answers(second / name)
        same = one.step == other.step and one.predictions.keys() == other.predictions.keys()
        if not same or any((one.predictions[key] != other.predictions[key]).any() for key in one.predictions):
            found.append(name)
    a, b = read_record(first / "result.json"), read_record(second / "result.json")
    for name in ("status", "steps", "tokens", "rank_events", "parameters", "train_loss"):
        if getattr(a, name) != getattr(b, name):
            found.append(f"result.json: {name}")
    if [*map(without_clocks, a.history)] != [*map(without_clocks, b.history)]:
        found.append("result.json: history")
    return found
