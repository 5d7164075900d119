"""What the runner's tests share beside fixtures: the installed command, and CoLA-like data that the tests make."""

import importlib
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

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


def run_command(
    command: Path, *arguments: str, timeout: float = 240, fresh: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """An installed command in a process of its own, offline; a variable of no text is taken from its environment.

    The process is forked from one that has imported what they all import: most of a short run's time. With `fresh`, or
    variables that matter to an import, the file in `bin/` is started itself.
    """
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    environment = {key: value for key, value in environment.items() if value}
    words = [str(command), *arguments]
    if fresh or set(variables) - READ_LATE:
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    with tempfile.NamedTemporaryFile() as stdout, tempfile.NamedTemporaryFile() as stderr:
        process = _server().Process(target=_be, args=(words, environment, stdout.name, stderr.name))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        output, errors = (Path(file.name).read_text(encoding="utf-8") for file in (stdout, stderr))
        return subprocess.CompletedProcess(words, process.exitcode, output, errors)


def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}):  # read by what it imports
        forkserver.ensure_running()
    return context


def _be(words: list[str], environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Be the command `words`, in a forked process."""
    for number, name in ((1, stdout), (2, stderr)):
        os.dup2(os.open(name, os.O_WRONLY), number)
    os.environ.clear()
    os.environ |= environment
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = words
    importlib.import_module(f"flexlora.cli.{Path(words[0]).name.removeprefix('flexlora-')}").main()


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The command's only line on stderr."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("flexlora-run: "), result.stderr
    return lines[0].removeprefix("flexlora-run: ")
