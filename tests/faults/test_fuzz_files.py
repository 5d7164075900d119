"""Random damage to every file that a run reads: a clear line or a correct run, never a traceback or another answer.

What "correct" means is decided by an oracle that shares no code with the reader: readers of this file's own for data,
the tensors and tokens as they were made for what has a checksum. Where damage cannot be told from other content of the
same kind (a letter of a sentence, a figure of a record, a weight of a model that came without a checksum), the test
says so and asserts what is left: the hash in the record is another, the values are of the kind that they must be.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fuzz_helpers import bounded, fuzz
from glue_helpers import TASKS, settings_of, write, write_download
from hypothesis import note
from report_helpers import write_run
from transformers import AutoTokenizer

from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.report.build import build
from flexlora.report.formats.csv import as_csv
from flexlora.report.tables import TABLES
from flexlora.results.collect import collect
from flexlora.results.files import JsonLines
from flexlora.results.folder import LOCATION_KEYS, RunFolder, config_hash
from flexlora.settings import Dtype, GlueTask, ModelSettings, flat_keys
from flexlora.tasks import load_task
from flexlora.tasks.tokens import TokenCache, Tokens, tokenize
from flexlora.training.checkpoint import Checkpoints

pytestmark = pytest.mark.fuzz

# --- damage -----------------------------------------------------------------------------------------------------------


def damaged(draw: Random, content: bytes, other: bytes) -> bytes:
    """`content` after one to three accidents; `other` is what a file that was swapped for it holds."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content = _damaged_once(draw, content, other)
    return content


def _damaged_once(draw: Random, content: bytes, other: bytes) -> bytes:
    start = draw.randint(0, len(content))
    block = content[start : start + draw.choice([1, 1, 4, 16, 64, 512])]
    before, after = content[:start], content[start + len(block) :]
    kind = draw.randint(0, 12)
    if kind < 3:
        flipped = bytes(byte ^ (1 << draw.randint(0, 7)) for byte in block[:1])
        return before + flipped + content[start + 1 :]
    if kind == 3:
        return before + draw.randbytes(len(block)) + after
    if kind == 4:
        return before + bytes(len(block)) + after
    if kind == 5:
        return before + block + block + after
    if kind == 6:
        return before + after
    if kind == 7:
        return draw.choice([before, after])
    if kind == 8:
        return before + draw.choice(INSERTED) + draw.choice([block + after, after])
    if kind < 12:
        return before + bytes(draw.choices(LIKELY, k=1)) + content[start + 1 :]
    return draw.choice([other, content + other, b""])


LIKELY = b"0123456789.-eE+\"',:{}[]\t\n\r ntf"
INSERTED = [
    b"\n", b"\r", b"\r\n", b"\t", b'"', b"\\", b"\0", b"\xff", b"\xef\xbb\xbf", b",", b"[", b"]", b"{", b"}", b"null",
    b"NaN", b"1e999", b"-1", b"2", b"9" * 30, b"9" * 5000, b"\\ud800", b"\xed\xa0\x80", "\u2028\x85\x0b".encode(),
    b"true", b"${", b"${x}", b"[" * 5000, b'{"a":' * 3000, b"<<: *a", b"&a [*a]", b"!!binary aaaa", b"2001-01-01",
    b"? [a]", b"---\n", b"\x1b[2J", b'"label": 1, ', b'"status": "done", ', b"0x10", b"1_0", b"\xd9\xa1", b" 1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A line in the log for each damaged file is right, and would be two thousand."""
    caplog.set_level(logging.CRITICAL, "flexlora")


def answer(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` gives, or its refusal: one line that says something."""
    refusal = None
    try:
        with bounded():
            return read(*arguments)
    except UserError as error:
        refusal = error
    assert str(refusal).isprintable()
    assert len(str(refusal)) > 20
    return refusal


# --- data -------------------------------------------------------------------------------------------------------------

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
        if is_hub and value.isascii() and value.isdigit() and value not in task.labels:
            must(len(value) < 4000 and int(value) < task.num_labels)
            return int(value)
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


def write_columns(folder: Path, suffix: str, task: str) -> None:
    """Both splits of a task in the hub's columns, with accents, quotes and line breaks."""
    settings = settings_of(task)
    for split, rows in {"train": 5, "validation": 3}.items():
        texts = [[f'{column} "{i}", Ünï\n{split}' for i in range(rows)] for column in settings.text]
        labels = [i % max(2, settings.num_labels) for i in range(rows)]
        write(
            folder / f"{split}{suffix}",
            {**dict(zip(settings.text, texts, strict=True)), "label": labels, "idx": labels},
        )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """(task, folder) of every layout: the classic download of eight tasks, and the hub's columns in four formats."""
    root = tmp_path_factory.mktemp("sources")
    write_download(root / "classic")
    found = [(task, root / "classic" / settings_of(task).tsv.folder) for task in TASKS]
    for suffix in (".json", ".jsonl", ".csv", ".parquet"):
        for task in ("rte", "stsb"):
            folder = root / f"{task}{suffix}"
            folder.mkdir()
            write_columns(folder, suffix, task)
            found.append((task, folder))
    return found


def test_damaged_data_is_refused_or_read_as_it_stands(
    sources: list[tuple[str, Path]], tiny_bert: Path, tmp_path: Path
) -> None:
    """The rows are exactly those that a strict reader sees in the damaged file, and the record has its hash.

    A letter that became another within a sentence is content like any other. So is all that a parquet file decodes to,
    whose only independent reader would be another library's: there every row must be of the kind that it must be.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    seen = {"read": 0, "refused": 0}

    @fuzz(1000)
    def every(number: int) -> None:
        draw = Random(number)
        name, source = draw.choice(sources)
        files = sorted(file for file in source.iterdir())
        file = draw.choice(files)
        content = damaged(draw, file.read_bytes(), draw.choice(files).read_bytes())
        note(f"{name}, {file}: {content!r}")
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        (folder / file.name).write_bytes(content)
        task = settings_of(name, data_dir=str(folder), token_cache=None)

        def read() -> Any:
            loaded = load_task(task)
            loaded.preprocess(tokenizer)
            return loaded

        loaded = answer(read)
        seen["refused" if isinstance(loaded, UserError) else "read"] += 1
        if file.suffix == ".parquet":
            if not isinstance(loaded, UserError):
                assert loaded.provenance["sha256"][file.name] == hashlib.sha256(content).hexdigest()
                for rows in (loaded.train_rows, *loaded.evaluation_rows.values()):
                    for i, label in enumerate(rows.labels):
                        assert strict_label(label, task, True) == label
                        assert all(isinstance(text[i], str) and not unlike(text[i]) for text in rows.texts)
            return
        try:
            expected = READERS[file.suffix](content, task)
        except Refused:
            assert isinstance(loaded, UserError), "a strict reader refuses it"
            assert file.name in str(loaded)
            return
        assert not isinstance(loaded, UserError), loaded
        assert loaded.provenance["sha256"][file.name] == hashlib.sha256(content).hexdigest()
        is_train = file.stem == "train"
        split = (
            "train"
            if is_train
            else next(
                k
                for k, v in (task.hub if file.suffix != ".tsv" else task.tsv).evaluation.items()
                if v in (file.name, file.stem)
            )
        )
        rows = loaded.train_rows if is_train else loaded.evaluation_rows[split]
        assert (list(zip(*rows.texts, strict=True)), rows.labels) == expected

    every()
    assert min(seen.values()) > sum(seen.values()) // 10 or sum(seen.values()) < 50, seen


# --- what is kept between runs ----------------------------------------------------------------------------------------


def test_a_damaged_token_cache_gives_the_same_tokens(tiny_bert: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    some, others = (["the cat sees the dog .", "the dog", "a"],), (["the dog", "the cat sees .", "the"],)
    expected = tokenize(tokenizer, some, 64)
    folder = tmp_path / "cache"
    cache = TokenCache(folder, tokenizer)
    cache.tokens(some, 64)
    (file,) = folder.iterdir()
    content = file.read_bytes()
    cache.tokens(others, 64)
    other = next(path for path in folder.iterdir() if path != file).read_bytes()

    def same(found: Tokens) -> bool:
        return found.columns.keys() == expected.columns.keys() and all(
            np.array_equal(ours, theirs) and ours.dtype == theirs.dtype
            for ours, theirs in [
                (found.offsets, expected.offsets),
                *((found.columns[name], expected.columns[name]) for name in expected.columns),
            ]
        )

    @fuzz(300)
    def every(number: int) -> None:
        file.write_bytes(damaged(Random(number), content, other))
        for _ in range(2):
            found = answer(lambda: cache.tokens(some, 64))
            assert same(found)

    every()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """What is loaded is one of the two that were written, whole, and never older than one whose files are intact."""
    draw = torch.Generator().manual_seed(0)

    def made(step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors = {"a": torch.randn(3, 5, generator=draw), "mask": torch.tensor([True, False])}
        return tensors, {"step": step, "optimizer": {"state": {0: torch.randn(7, generator=draw)}}, "sums": [1.5]}

    written = {step: made(step) for step in (5, 9)}
    checkpoints = Checkpoints(tmp_path / "whole")
    for step, (tensors, state) in written.items():
        checkpoints.save(step, tensors, state)
    files = sorted(file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*") if file.is_file())
    assert len(files) == 6
    whole = {file: (tmp_path / "whole" / file).read_bytes() for file in files}
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)

    def flat(step: int, found: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> bool:
        (tensors, state), (ours, kept) = written[step], found
        return (
            tensors.keys() == ours.keys()
            and all(torch.equal(tensors[name], ours[name]) for name in tensors)
            and torch.equal(state["optimizer"]["state"][0], kept["optimizer"]["state"][0])
            and (kept["step"], kept["sums"]) == (step, [1.5])
        )

    @fuzz(300)
    def every(number: int) -> None:
        draw = Random(number)
        now = dict(whole)
        for file in draw.sample(files, draw.choice([1, 1, 1, 2, 3])):
            now[file] = damaged(draw, whole[file], whole[draw.choice(files)])
        for file, content in now.items():
            (run / file).write_bytes(content)
        note(str({file: content for file, content in now.items() if content != whole[file]}))
        found = answer(Checkpoints(run).load)
        intact = [step for step in (9, 5) if all(now[f] == whole[f] for f in files if f"step-{step:09d}" in str(f))]
        if found is None:
            assert not intact
            return
        assert not isinstance(found, UserError), found
        (step,) = (step for step in (9, 5) if flat(step, found))
        assert step >= max(intact, default=0)
        data = [file for file in files if f"step-{step:09d}" in str(file) and file.name != "manifest.json"]
        assert all(now[file] == whole[file] for file in data)

    every()


# --- a run's folder ---------------------------------------------------------------------------------------------------

CONFIG = {
    "task": {"name": "glue/cola", "data_dir": None, "labels": ["0", "1"]},
    "method": {"name": "lora", "r": 8},
    "training": {"learning_rate": 1e-5, "epochs": 2},
    "seed": 0,
    "data_seed": 0,
    "scale": "local",
    "output_root": "outputs",
}


def test_a_damaged_record_or_config_is_refused_or_what_it_says(tmp_path: Path) -> None:
    """A finished run is skipped, and an unfinished one goes on, only where what stands there is this run's config.

    A record has no checksum: a figure that became another figure stands in the tables.
    """
    path = write_run(tmp_path / "runs", config_hash=config_hash(CONFIG), config=CONFIG)
    result, config = path / "result.json", path / "config.yaml"
    RunFolder(path, CONFIG).begin()
    shutil.rmtree(tmp_path / "runs")
    path = write_run(tmp_path / "runs", config_hash=config_hash(CONFIG), config=CONFIG)
    record = result.read_bytes()
    result.unlink()
    RunFolder(path, CONFIG).begin()
    yaml_text = config.read_bytes()
    (path / "checkpoints" / "step-000000007").mkdir(parents=True)

    @fuzz(150)
    def every_record(number: int) -> None:
        content = damaged(Random(number), record, yaml_text)
        note(repr(content))
        result.write_bytes(content)
        found = answer(RunFolder(path, CONFIG).is_finished)
        if found is True:
            values = json.loads(content)
            assert (values["status"], values["error"], values["config_hash"]) == ("done", None, config_hash(CONFIG))
        collection = answer(lambda: collect(tmp_path / "runs"))
        assert len(collection.runs) + len(collection.broken) == 1
        assert all(line.isprintable() for line in collection.broken)
        for table in TABLES.values():
            for evaluation in ("last", "best"):
                assert isinstance(answer(as_csv, answer(build, table, collection.runs, evaluation)), str)

    @fuzz(100)
    def every_config(number: int) -> None:
        content = damaged(Random(number), yaml_text, record)
        note(repr(content))
        config.write_bytes(content)
        if answer(RunFolder(path, CONFIG).can_resume) is True:
            read, ours = flat_keys(yaml.safe_load(content)), flat_keys(CONFIG)
            ours["training.learning_rate"] = read["training.learning_rate"] = float(read["training.learning_rate"])
            assert ours["training.learning_rate"] == 1e-5
            assert {k: v for k, v in read.items() if k not in LOCATION_KEYS} == {
                k: v for k, v in ours.items() if k not in LOCATION_KEYS
            }
        collection = answer(lambda: collect(tmp_path / "runs"))
        assert not isinstance(collection, UserError)

    every_record()
    result.unlink(missing_ok=True)
    every_config()


def test_a_damaged_row_file_is_continued_only_from_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path)
    for step in range(9):
        file.write({"step": step, "loss": 1 / (step + 1)})
    position = file.position()
    file.write({"step": 9})
    file.close()
    whole = path.read_bytes()
    head = whole[: position["bytes"]]

    @fuzz(50)
    def every(number: int) -> None:
        content = damaged(Random(number), whole, head)
        path.write_bytes(content)
        if content.startswith(head):
            JsonLines(path, position).close()
            assert path.read_bytes() == head
        else:
            with pytest.raises(ValueError, match="is not what it was"):
                JsonLines(path, position)
            assert path.read_bytes() == content

    every()


# --- a backbone -------------------------------------------------------------------------------------------------------


def test_a_damaged_backbone_is_refused_or_one_that_trains(tiny_bert: Path, tmp_path: Path) -> None:
    """It is refused, or a model of the right shape that takes what its tokenizer gives, both ways.

    A weight, a rate of dropout or a word that became another is a model like any other: nothing in such a folder says
    what it was.
    """
    whole = {file.name: file.read_bytes() for file in tiny_bert.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(whole)
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    settings = ModelSettings(
        name=None, kind="sequence_classifier", scale="local", path=str(folder), revision=None, use_safetensors=True,
        dtype=Dtype.float32,
    )  # fmt: skip
    seen = {"loaded": 0, "refused": 0}

    @fuzz(100)
    def every(number: int) -> None:
        draw = Random(number)
        name = draw.choice(list(whole))
        content = damaged(draw, whole[name], whole[draw.choice(list(whole))])
        note(f"{name}: {content[:3000]!r}")
        (folder / name).write_bytes(content)
        try:
            backbone = answer(lambda: load_backbone(settings, 2))
            seen["refused" if isinstance(backbone, UserError) else "loaded"] += 1
            if isinstance(backbone, UserError):
                return
            with bounded():
                tokens = tokenize(backbone.processor, (["the cat sees the dog .", "zzz"],), 16)
                ids = torch.tensor([tokens.columns["input_ids"][: tokens.offsets[1]].astype(np.int64)])
                logits = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                assert logits.shape == (1, 2)
                logits.square().sum().backward()
        finally:
            (folder / name).write_bytes(whole[name])

    every()
    assert min(seen.values()) > sum(seen.values()) // 10 or sum(seen.values()) < 50, seen
