"""What the runner's tests share beside fixtures: the installed command, and CoLA-like data that the tests make."""

import importlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

from flexlora.results.predictions import BEST, LAST, read_answers
from flexlora.results.record import read_record

RunCommand = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = Path(sys.executable).with_name("flexlora-run")
# Variables that a command reads itself. Others may be read while a library is imported.
READ_LATE = {"COLUMNS", "FLEXLORA_CACHE", "HYDRA_FULL_ERROR", "PYTHONPATH"}
# What every run imports, for five seconds of a processor.
IMPORTED = [
    "accelerate",
    "flexlora.cli.doctor",
    "flexlora.cli.report",
    "flexlora.cli.run",
    "flexlora.methods.adalora",
    "flexlora.methods.flexlora",
    "flexlora.methods.flexlora_released",
    "flexlora.methods.mask",
    "flexlora.models.sequence_classifier",
    "flexlora.tasks.glue",
    "flexlora.training.job",
    "flexlora.training.loop",
    "flexlora.training.memory",
    "peft",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.metrics",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.deberta_v2.modeling_deberta_v2",
]

# Grammar small enough for a random encoder to learn in a few steps: a sentence without its verb is no sentence.
NOUNS = ["cat", "dog", "child", "teacher", "sailor", "farmer", "singer", "doctor"]
VERBS = ["see", "like", "help", "know", "follow", "thank", "call", "hear"]
ADVERBS = ["often", "never", "always", "again"]


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Sentences and whether they are acceptable, half and half, of five to nine words."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        acceptable = number % 2
        subject, thing = draw.sample(NOUNS, 2)
        verb = f"{draw.choice(VERBS)}s" if acceptable else draw.choice(NOUNS)
        tail = draw.sample(ADVERBS, draw.randint(0, 3))
        rows.append((" ".join(["the", subject, verb, "the", thing, *tail, "."]), acceptable))
    draw.shuffle(rows)
    return rows


def write_cola(folder: Path, train: int = 64, dev: int = 40) -> Path:
    """The classic layout: no header; source, label, star, sentence. Quotes stand for themselves."""
    (folder / "CoLA").mkdir(parents=True)
    for name, count, seed in (("train.tsv", train, 1), ("dev.tsv", dev, 2)):
        rows = sentences(count, seed)
        lines = [f"made\t{label}\t{'' if label else '*'}\t{text}\n" for text, label in rows]
        (folder / "CoLA" / name).write_text("".join(lines), encoding="utf-8")
    return folder


def write_bert(folder: Path) -> Path:
    """A BERT of two layers and hidden size 32 with random weights and a WordPiece vocabulary of `sentences`."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, ".", "the", *NOUNS, *VERBS, *ADVERBS, "##s"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


# Seconds: what a clock measures differs between two runs, everything else must not.
CLOCKS = {"train_seconds", "eval_seconds"}


def rows_of(path: Path) -> list[dict]:
    """Whole lines only, without clocks: the file may be written at this moment."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [without_clocks(json.loads(line)) for line in lines]


def without_clocks(row: dict) -> dict:
    """A row of metrics without what a clock measured."""
    return {key: value for key, value in row.items() if key not in CLOCKS}


def differences(first: Path, second: Path) -> list[str]:
    """Where two runs' folders differ, bit for bit: every row, every event, every tensor, the record but for clocks."""
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


def run_command(
    command: Path,
    *arguments: str,
    timeout: float = 240,
    fresh: bool = False,
    fault: Callable[[], None] | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """An installed command in a process of its own, offline; a variable of no text is taken from its environment.

    The process is forked from one that has imported what they all import: most of a short run's time. With `fresh`, or
    variables that matter to an import, the file in `bin/` is started itself. A `fault` is called in the process before
    the command is; see fault_helpers.py.
    """
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    environment = {key: value for key, value in environment.items() if value}
    words = [str(command), *arguments]
    if fresh or set(variables) - READ_LATE:
        assert fault is None, "a fault needs a forked process"
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    with tempfile.NamedTemporaryFile() as stdout, tempfile.NamedTemporaryFile() as stderr:
        process = server().Process(target=be, args=(words, environment, stdout.name, stderr.name, fault))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        output, errors = (Path(file.name).read_text(encoding="utf-8") for file in (stdout, stderr))
        return subprocess.CompletedProcess(words, process.exitcode, output, errors)


def server() -> multiprocessing.context.ForkServerContext:
    """Makes processes that have imported it all already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    # Read by what it imports, and by a tracker that misses tqdm's semaphores where a process was killed.
    quiet = {"PYTHONWARNINGS": "ignore:resource_tracker"}
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **quiet}):
        forkserver.ensure_running()
    return context


def be(
    words: list[str],
    environment: dict[str, str],
    stdout: str,
    stderr: str,
    fault: Callable[[], None] | None = None,
) -> None:
    """Be the command `words`, in a forked process, after a `fault` was put into it."""
    for number, name in ((1, stdout), (2, stderr)):
        os.dup2(os.open(name, os.O_WRONLY), number)
    os.environ.clear()
    os.environ |= environment
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = words
    if fault is not None:
        fault()
    importlib.import_module(f"flexlora.cli.{Path(words[0]).name.removeprefix('flexlora-')}").main()


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The command's only line on stderr."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("flexlora-run: "), result.stderr
    return lines[0].removeprefix("flexlora-run: ")
