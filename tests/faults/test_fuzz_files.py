"""Random damage to every file that a run reads: a clear line or a correct run, never a traceback or another answer.

What "correct" means is decided by an oracle that shares no code with the reader: `strict_readers` for data,
the tensors and tokens as they were made for what has a checksum. Where damage cannot be told from other content of the
same kind (a letter of a sentence, a figure of a record, a weight of a model that came without a checksum), the test
says so and asserts what is left: the hash in the record is another, the values are of the kind that they must be.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from damage_helpers import answer, damaged
from fuzz_helpers import bounded, fuzz
from glue_helpers import TASKS, settings_of, write, write_download
from hypothesis import note
from report_helpers import write_run
from strict_readers import (
    READERS,
    Refused,
    strict_label,
    unlike,
)
from transformers import AutoTokenizer

from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.report.build import build
from flexlora.report.formats.csv import as_csv
from flexlora.report.tables import TABLES
from flexlora.results.collect import collect
from flexlora.results.files import JsonLines
from flexlora.results.folder import LOCATION_KEYS, RunFolder, config_hash
from flexlora.settings import Dtype, ModelSettings, flat_keys
from flexlora.tasks import load_task
from flexlora.tasks.tokens import TokenCache, Tokens, tokenize
from flexlora.training.checkpoint import Checkpoints

pytestmark = pytest.mark.fuzz


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A line in the log for each damaged file is right, and would be two thousand."""
    caplog.set_level(logging.CRITICAL, "flexlora")


# --- data -------------------------------------------------------------------------------------------------------------


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
