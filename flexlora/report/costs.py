"""Build the tables of training costs: one for each scale, model and machine, with each figure's ratio to LoRA's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flexlora.report.cells import Cell, summarise
from flexlora.report.frame import Figure, frame_of
from flexlora.report.paper_rows import beside_paper
from flexlora.report.record_values import is_generated, is_part, measures_cost, settings_of
from flexlora.report.sheet import (
    Row,
    Sheet,
    common_marks,
    failures,
    footnotes_of,
    label_rows,
    our_rows,
    what_all_share,
)
from flexlora.report.table import ADAPTER, Column, Cost, Table
from flexlora.results.collect import Run, distinct_runs
from flexlora.results.record import RunRecord

REFERENCE = "lora"
HOW = (
    "Mean ± sample standard deviation (rounds). The ratio to LoRA's is taken round by round. Training time leaves out "
    "the first step, whose operations are counted (GFLOP). Evaluation time is the last evaluation's. GPU memory is the "
    "peak that tensors took, process memory the peak resident size (1 MB is 2²⁰ bytes)."
)


def build_costs(table: Table, runs: Sequence[Run]) -> list[Sheet]:
    """Return the table of each scale, model and machine that has runs whose cost was measured.

    The paper's scale comes first, and whole trainings come before parts of a training.
    """
    tasks = {column.task for column in table.columns}
    by_place: dict[tuple[bool, str, str, str, str], list[Run]] = {}
    for run in runs:
        record = run.record
        if record.task in tasks and measures_cost(record):
            key = (record.scale != "paper", record.scale, record.model, machine_of(record), _part_of(record))
            by_place.setdefault(key, []).append(run)
    return [_sheet(table, by_place[key], machine=key[3], part=key[4]) for key in sorted(by_place)]


def machine_of(record: RunRecord) -> str:
    """Return the hardware that determines the time of a step: the GPU, or the number of CPU threads."""
    hardware = record.hardware
    threads = hardware.get("torch_threads")
    on_cpu = f"a CPU ({threads} thread{'' if threads == 1 else 's'})"
    return str(hardware.get("accelerator") or on_cpu)


def _part_of(record: RunRecord) -> str:
    """Return the words for a run that trained only in part, or an empty text for a whole run."""
    if settings_of(record, "training").get("max_steps") is not None:
        return "a part of a training"
    return "a part of the data" if is_part(record) else ""


def _sheet(table: Table, found: Sequence[Run], machine: str, part: str) -> Sheet:
    runs, copies = distinct_runs(found)
    scale, model = runs[0].record.scale, runs[0].record.model
    columns = [ADAPTER, *(column for column in table.columns if _is_shown(column, runs))]
    rows = our_rows(table, runs, columns, "last")
    _set_ratios(rows, runs, columns)
    shared, common = label_rows(rows), common_marks(rows, columns)

    why = _why_not_the_papers(table, runs, machine, part)
    groups = [[row] for row in rows]
    title = f"{table.paper_title} · {model}"
    if table.paper_model is None:
        title = f"{table.tasks}, {model}, scale={scale}{f': {part}' if part else ''}"
    elif why is None:
        groups = beside_paper(table, rows, columns, with_differences=False)  # the paper used another machine
        _set_printed_ratios([row for group in groups for row in group if row.kind == "paper"])
    else:
        title = f"{table.tasks}, {model}, scale={scale}: {why}; these figures say nothing about the paper"
    return Sheet(
        table,
        scale,
        model,
        "last",
        title,
        captions=[f"On {machine}. {HOW}", *what_all_share(shared, common)],
        columns=columns,
        groups=groups,
        notes=[*footnotes_of(table, columns, why is None), *copies, *failures(runs)],
        common_marks=common,
    )


def _is_shown(column: Column, runs: Sequence[Run]) -> bool:
    """Return whether a run has the column's task and, if the column is optional, also has its figure."""
    of_task = [run.record for run in runs if run.record.task == column.task]
    return any(not column.optional or column.value(record, "last") is not None for record in of_task)


def _circumstances(record: RunRecord) -> str:
    """Return everything that two runs must share so that the ratio of their costs compares only their methods."""
    training = {key: value for key, value in settings_of(record, "training").items() if key != "learning_rate"}
    return json.dumps([record.task, record.seed, record.samples, training], sort_keys=True)


def _set_ratios(rows: Sequence[Row], runs: Sequence[Run], columns: Sequence[Column]) -> None:
    """Set the ratio of each cost to LoRA's cost."""
    circumstances = {run.path: _circumstances(run.record) for run in runs}
    for i, column in enumerate(columns):
        if isinstance(column, Cost):
            figures = [one for one in frame_of(runs, [column], "last") if one.value is not None]
            references = {
                (circumstances[one.run.path], one.run.record.variant): one.value
                for one in figures
                if one.run.record.method == REFERENCE and one.value
            }
            for row in rows:
                of_row = [one for one in figures if one.row == (row.method, row.variant)]
                ratio = None if row.method == REFERENCE else _ratio(of_row, references, circumstances)
                row.cells[i] = replace(row.cells[i], ratio=ratio)


def _ratio(
    figures: Sequence[Figure], references: Mapping[tuple[str, str], float], circumstances: Mapping[Path, str]
) -> Cell | None:
    """Return the mean ratio to LoRA's figure in the same round and circumstances.

    The same variant of LoRA is used if there is one, otherwise the first variant by name.
    """
    ratios = []
    for one in figures:
        here = circumstances[one.run.path]
        found = {variant: reference for (there, variant), reference in references.items() if there == here}
        if one.value is not None and found:
            ratios.append(one.value / found.get(one.run.record.variant, found[min(found)]))
    return summarise(ratios) if ratios else None


def _set_printed_ratios(papers: Sequence[Row]) -> None:
    reference = next((row.cells for row in papers if row.method == REFERENCE), None)
    for row in papers if reference is not None else ():
        if row.method != REFERENCE:
            pairs = zip(row.cells, reference or (), strict=True)
            row.cells = [replace(cell, ratio=_printed_ratio(cell, other)) for cell, other in pairs]


def _printed_ratio(cell: Cell, reference: Cell) -> Cell | None:
    return Cell(mean=cell.printed / reference.printed) if cell.printed and reference.printed else None


def _why_not_the_papers(table: Table, runs: Sequence[Run], machine: str, part: str) -> str | None:
    """Return the reason why these figures cannot be compared with the paper's, or None if they can."""
    records = [run.record for run in runs]
    first = records[0]
    if first.scale == "tiny" or any(map(is_generated, records)):
        return "a small model or generated data"
    if first.scale != "paper" or first.model != table.paper_model:
        return f"another model than the paper's {table.paper_model}"
    if not all(record.hardware.get("accelerator") for record in records):
        return f"on {machine}"
    return part or None
