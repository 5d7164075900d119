"""Readers of GLUE's files that share no code with the project's: they decide what a damaged file says."""

import json
from typing import Any

from flexlora.settings import GlueTask

Table = tuple[list[tuple[str, ...]], list[Any]]


class Refused(Exception):
    """By a reader of this file's."""


def must(fact: object) -> None:
    if not fact:
        raise Refused


def unlike(read: str) -> bool:
    """Whether a text holds half letters, which no tokenizer takes."""
    return any(0xD800 <= ord(letter) <= 0xDFFF for letter in read)


def strict_text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused from error


def strict_tsv(content: bytes, task: GlueTask) -> Table:
    """The rows of a classic file, by splitting all of it at once."""
    lines = strict_text(content.removeprefix(b"\xef\xbb\xbf")).split("\n")
    rows = [line.removesuffix("\r").split("\t") for line in (lines if lines[-1] else lines[:-1])]
    names = rows.pop(0) if task.tsv.header and rows else list(range(task.tsv.width or 0))
    must(rows)
    wanted = [task.tsv.label, *task.tsv.text]
    must(all(names.count(name) == 1 for name in wanted))
    whole = [row for row in rows if len(row) == len(names)]
    must(whole and len(rows) - len(whole) <= task.tsv.broken_rows)
    label, *texts = (names.index(name) for name in wanted)
    return [tuple(row[at] for at in texts) for row in whole], [strict_label(row[label], task, False) for row in whole]


def strict_label(value: Any, task: GlueTask, is_hub: bool) -> int | float:
    if task.num_labels == 1:
        must(isinstance(value, str | int | float) and not isinstance(value, bool))
        try:
            number = float(value)
        except (ValueError, OverflowError) as error:
            raise Refused from error
        must(task.label_range[0] <= number <= task.label_range[1])  # type: ignore[index]
        return number
    if isinstance(value, str):
        digits, _, zeros = value.partition(".")
        if is_hub and value.isascii() and digits.isdigit() and value not in task.labels:
            digits = digits.lstrip("0") or "0"
            must(not zeros.strip("0") and len(digits) < 10 and int(digits) < task.num_labels)
            return int(digits)
        must(value in task.labels)
        return task.labels.index(value)
    must(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < task.num_labels)
    return int(value)


def strict_columns(rows: list[dict[str, Any]], task: GlueTask) -> Table:
    must(rows)
    for row in rows:
        for column in task.text:
            must(isinstance(row.get(column), str) and not unlike(row[column]))
    return [tuple(row[c] for c in task.text) for row in rows], [
        strict_label(row.get("label"), task, True) for row in rows
    ]


def strict_json(content: bytes, task: GlueTask) -> Table:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        must(len({key for key, _ in pairs}) == len(pairs))
        return dict(pairs)

    text = strict_text(content).removeprefix("\ufeff")
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text, object_pairs_hook=once)
        else:
            rows = [json.loads(line, object_pairs_hook=once) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise Refused from error
    must(all(isinstance(row, dict) for row in rows))
    return strict_columns(rows, task)


def strict_csv(content: bytes, task: GlueTask) -> Table:
    """RFC 4180 letter by letter, with any of the three line ends, and a quote inside an unquoted field as itself."""
    text = strict_text(content).removeprefix("\ufeff")
    rows: list[list[str]] = []
    at, row = 0, []
    while at < len(text):
        if text[at] == '"':
            field, at = "", at + 1
            while True:
                end = text.find('"', at)
                must(end >= 0)
                field, at = field + text[at:end], end + 1
                if text[at : at + 1] != '"':
                    break
                field, at = field + '"', at + 1
            must(at == len(text) or text[at] in ",\r\n")
        else:
            ends = [text.find(mark, at) for mark in ",\r\n"]
            end = min((place for place in ends if place >= 0), default=len(text))
            field, at = text[at:end], end
        must(len(field) <= 131072)
        row.append(field)
        if text[at : at + 1] == ",":
            at += 1
            if at == len(text):
                row.append("")
                break
            if text[at] in "\r\n":
                row.append("")
            else:
                continue
        at += 2 if text[at : at + 2] == "\r\n" else 1
        rows.append(row)
        row = []
    rows += [row] if row else []
    must(rows)
    header, *rest = rows
    rest = [row for row in rest if row != [""]]
    must(rest and len(set(header)) == len(header) and all(len(row) == len(header) for row in rest))
    return strict_columns([dict(zip(header, row, strict=True)) for row in rest], task)


READERS = {".tsv": strict_tsv, ".json": strict_json, ".jsonl": strict_json, ".csv": strict_csv}
