"""What the runner's tests share beside fixtures: the installed command, and CoLA-like data that the tests make."""

import random
import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("flexlora-run")

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


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The command's only line on stderr."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("flexlora-run: "), result.stderr
    return lines[0].removeprefix("flexlora-run: ")
