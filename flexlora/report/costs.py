"""Tables of what training costs: one for each scale, model and machine, every figure beside its ratio to LoRA's."""

import json
from collections.abc import Callable, Mapping, Sequence

from flexlora.report.build import Row, Sheet, beside_paper, failures, label_rows
from flexlora.report.cells import (
    MARKS,
    Cell,
    Usual,
    is_generated,
    is_part,
    mark_fewer,
    measures_cost,
    method_settings,
    number,
    parameter_cell,
    seeds_cell,
    summarise,
    usual_data,
)
from flexlora.report.table import ADAPTER, Cost, Table
from flexlora.results.collect import Run, without_duplicates
from flexlora.results.record import RunRecord

REFERENCE = "lora"
HOW = (
    "Mean ± sample standard deviation (rounds); the ratio to LoRA's is taken round by round. Training without its "
    "first step, whose products are counted (GFLOP); the last evaluation; memory: the most that tensors took on the "
    "GPU, and that was resident of the process (a MB is 2²⁰ bytes)."
)


def _samples_per_second(record: RunRecord) -> float | None:
    """Examples of all steps but the first over the training's seconds."""
    rows = record.samples.get("train")
    if not rows or not record.epochs or not record.train_seconds or not record.steps:
        return None
    return float(rows * record.epochs * (record.steps - 1) / record.steps / record.train_seconds)


def _last_evaluation(record: RunRecord) -> float | None:
    last = record.metrics.get("last")
    return last.get("eval_seconds") if isinstance(last, dict) else None


# What a column of this name shows, in seconds, bytes, operations.
READ: Mapping[str, Callable[[RunRecord], float | None]] = {
    "train_seconds": lambda record: record.train_seconds,
    "eval_seconds": _last_evaluation,
    "device_bytes": lambda record: record.peak_memory.get("device_bytes"),
    "process_bytes": lambda record: record.peak_memory.get("process_bytes"),
    "flops": lambda record: record.flops,
    "samples_per_second": _samples_per_second,
}


def build_costs(table: Table, runs: Sequence[Run]) -> list[Sheet]:
    """The table of each scale, model and machine that has runs whose cost was measured; the paper's scale first, and
    whole trainings before parts of one."""
    tasks = {column.task for column in table.columns}
    by_place: dict[tuple[bool, str, str, str, str], list[Run]] = {}
    for run in runs:
        record = run.record
        if record.task in tasks and measures_cost(record):
            key = (record.scale != "paper", record.scale, record.model, machine_of(record), _part_of(record))
            by_place.setdefault(key, []).append(run)
    return [_sheet(table, by_place[key], machine=key[3], part=key[4]) for key in sorted(by_place)]


def machine_of(record: RunRecord) -> str:
    """What a step's time hangs on: the GPU, or the CPU's threads."""
    hardware = record.hardware
    threads = hardware.get("torch_threads")
    on_cpu = f"a CPU ({threads} thread{'' if threads == 1 else 's'})"
    return str(hardware.get("accelerator") or on_cpu)


def _part_of(record: RunRecord) -> str:
    """What a run is a part of, if not whole."""
    if _training(record).get("max_steps") is not None:
        return "a part of a training"
    return "a part of the data" if is_part(record) else ""


def _sheet(table: Table, found: list[Run], machine: str, part: str) -> Sheet:
    runs, notes = without_duplicates(found)
    scale, model = runs[0].record.scale, runs[0].record.model
    by_task: dict[str, list[Run]] = {}
    rows: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.record.task, []).append(run)
        rows.setdefault((run.record.method, run.record.variant), []).append(run)
    columns = [ADAPTER, *(c for c in table.columns if isinstance(c, Cost) and _is_shown(c, by_task.get(c.task, [])))]
    costs = [column for column in columns if isinstance(column, Cost)]
    usual = {task: usual_data(seen) for task, seen in by_task.items()}

    ours = []
    for method, variant in sorted(rows, key=lambda key: (_place(table, key[0]), key)):
        of_row = rows[method, variant]
        cells = [_cell(of_row, column, usual[column.task]) for column in costs]
        row = Row("ours", method, method, variant, [parameter_cell(of_row, ADAPTER), *cells], method_settings(of_row))
        row.ratios = [Cell(), *(_ratio(of_row, by_task[column.task], column) for column in costs)]
        ours.append(row)
    for i in range(1, len(columns)):
        marked = mark_fewer([row.cells[i] for row in ours])
        for row, cell in zip(ours, marked, strict=True):
            row.cells[i] = cell

    why = _why_not_the_papers(table, runs, machine, part)
    groups = [[row] for row in ours]
    if why is None:
        groups = beside_paper(table, ours, columns)
        _set_printed_ratios([row for group in groups for row in group if row.kind == "paper"])
        shown = {None, *(column.task for column in columns)}
        notes = [text for task, text in table.footnotes if task in shown] + notes
    for row in ours:
        row.difference = []  # another machine's seconds
    shared = label_rows(ours)
    scores = [cell for row in ours for cell in row.cells[1:] if cell.n]
    common = frozenset.intersection(*(cell.marks for cell in scores)) if scores else frozenset()
    captions = [f"On {machine}. {HOW}"]
    captions += [f"All rows: {', '.join(sorted(shared))}."] if shared else []
    captions += [f"All figures: {text}." for mark, text in MARKS.items() if mark in common]
    title = f"{table.paper_title} · {model}"
    if why is not None:
        title = f"{table.tasks}, {model}, scale={scale}: {why}; these figures say nothing about the paper"
    return Sheet(table, scale, model, "last", title, captions, columns, groups, notes + failures(runs), common)


def _place(table: Table, method: str) -> int:
    return table.methods.index(method) if method in table.methods else len(table.methods)


def _is_shown(column: Cost, runs: Sequence[Run]) -> bool:
    return any(not column.optional or _value(run.record, column) is not None for run in runs)


def _value(record: RunRecord, column: Cost) -> float | None:
    value = number(READ[column.metric](record)) if record.status == "done" else None
    return None if value is None else value / column.unit


def _cell(runs: Sequence[Run], column: Cost, usual: Usual) -> Cell:
    return seeds_cell([run for run in runs if run.record.task == column.task], lambda r: _value(r, column), usual)


def _training(record: RunRecord) -> dict[str, object]:
    found = record.config.get("training")
    return found if isinstance(found, dict) else {}


def _circumstances(record: RunRecord) -> str:
    """What two runs must share for the ratio of their costs to say something of their methods."""
    training = {key: value for key, value in _training(record).items() if key != "learning_rate"}
    return json.dumps([record.task, record.seed, record.samples, training], sort_keys=True)


def _ratio(runs: Sequence[Run], of_task: Sequence[Run], column: Cost) -> Cell:
    """Of each round's figure to LoRA's in the same circumstances; of LoRA's variants the row's own comes first."""
    references: dict[tuple[str, str], float] = {}
    for run in of_task:
        value = _value(run.record, column)
        if run.record.method == REFERENCE and value:
            references[_circumstances(run.record), run.record.variant] = value
    ratios = []
    for run in runs:
        value, here = _value(run.record, column), _circumstances(run.record)
        found = {variant: reference for (there, variant), reference in references.items() if there == here}
        if run.record.task == column.task and run.record.method != REFERENCE and value is not None and found:
            ratios.append(value / found.get(run.record.variant, found[min(found)]))
    return summarise(ratios) if ratios else Cell()


def _set_printed_ratios(papers: Sequence[Row]) -> None:
    reference = next((row.printed for row in papers if row.method == REFERENCE), None)
    for row in papers if reference is not None else ():
        if row.method != REFERENCE:
            pairs = zip(row.printed, reference or (), strict=True)
            row.ratios = [Cell(mean=value / other) if value and other else Cell() for value, other in pairs]


def _why_not_the_papers(table: Table, runs: Sequence[Run], machine: str, part: str) -> str | None:
    """Why these figures cannot stand under the paper's title; None where they can."""
    records = [run.record for run in runs]
    first = records[0]
    if first.scale == "tiny" or any(map(is_generated, records)):
        return "a small model or generated data"
    if first.scale != "paper" or first.model != table.paper_model:
        return f"another model than the paper's {table.paper_model}"
    if not all(record.hardware.get("accelerator") for record in records):
        return f"on {machine}"
    return part or None
