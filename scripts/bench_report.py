"""Measure the time of a report on many runs: `flexlora-report` on copies of one real run.

    python scripts/bench_report.py --like outputs/tiny/glue/cola/deberta_v3_base/flexlora/default/seed0 [--runs 1000]

The run must be FlexLoRA on a GLUE task, so that it has rank events. It is copied as runs of the eight GLUE tasks, of
several methods and seeds. Each copy has other scores. The copies of the first three methods keep their rank events, as
in a sweep over baselines (--events changes the number three). On the run's own task each method has one seed with the
run's own scores. These scores agree with the predictions, so the report has an interval to compute. Each command runs
in its own process and is timed from start to end. All commands run in turn, `--rounds` times. The last column is the
ratio to `--help`, which only starts the program."""

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flexlora.report.tables import TABLES

REPORT = Path(sys.executable).with_name("flexlora-report")
SEEDS = 5
INTERVAL = "95 % interval"
BESIDE_RECORD = ("ranks.jsonl", "metrics.jsonl", "predictions-last.parquet", "predictions-best.parquet", "adapter")


def scores_of_tasks() -> dict[str, list[str]]:
    """Return the metrics that the GLUE table shows for each task."""
    scores: dict[str, list[str]] = {}
    for column in TABLES["glue"].columns:
        scores.setdefault(column.task, []).append(column.metric)
    return scores


def write_runs(like: Path, root: Path, count: int, with_events: int) -> None:
    """Write `count` runs under `root`, with the record of `like` under other names, and links to its other files."""
    original = (like / "result.json").read_text(encoding="utf-8")
    own_task = json.loads(original)["task"]
    draw = random.Random(0)
    scores = scores_of_tasks()
    seeds = {task: 1 if task == own_task else SEEDS for task in scores}
    runs = ((number, task, seed) for number in itertools.count() for task in scores for seed in range(seeds[task]))
    for number, task, seed in itertools.islice(runs, count):
        record: dict[str, Any] = json.loads(original)
        method = f"method{number:02d}"
        if task != own_task:
            record["main_metric"] = scores[task][0]
            value = draw.uniform(0.5, 0.9)
            for evaluation in [*record["metrics"].values(), *record["history"]]:
                evaluation |= dict.fromkeys(scores[task], value)
        record |= {"method": method, "task": task, "seed": seed, "subset": False}
        if number >= with_events:
            record["rank_events"] = None
        record["config"] |= {"seed": seed, "data_seed": seed}
        folder = root.joinpath(record["scale"], task, record["model"], method, record["variant"], f"seed{seed}")
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        for name in BESIDE_RECORD:
            if (like / name).exists():
                (folder / name).symlink_to((like / name).resolve())


def seconds_of(words: list[str]) -> float:
    """Return the seconds that a `flexlora-report` command takes.

    Raises:
        RuntimeError: the command failed, or it did not compute an interval although it should have done so.
    """
    start = time.perf_counter()
    done = subprocess.run([REPORT, *words], capture_output=True, text=True, env=os.environ, check=False)
    taken = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"flexlora-report {' '.join(words)}: {done.stderr.strip()}")
    if "--intervals" in words and INTERVAL not in done.stdout:
        raise RuntimeError(
            "no interval was computed: the predictions in the folder of --like do not give the scores of its record"
        )
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", type=Path, required=True, help="folder of a finished run, with its result.json")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--events", type=int, default=3, help="methods with rank events; 1,000 runs have 28 methods")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not (options.like / "result.json").is_file():
        parser.error(f"--like: {options.like} has no result.json: name the folder of one finished run")
    task = json.loads((options.like / "result.json").read_text(encoding="utf-8"))["task"]
    if task not in scores_of_tasks():
        parser.error(f"--like: {options.like} is of {task}: name a run of one of GLUE's tasks")
    if options.runs < 1 or options.rounds < 1:
        parser.error("--runs and --rounds are 1 or more")

    folder = Path(tempfile.mkdtemp())
    try:
        root = folder / "outputs"
        write_runs(options.like, root, options.runs, options.events)
        commands: dict[str, list[str]] = {
            "--help": ["--help"],
            "table": [str(root)],
            "table, paired test": [str(root), "--against", "method00"],
            "table, intervals": [str(root), "--intervals"],
            "paired, intervals": [str(root), "--against", "method00", "--intervals"],
            "table, four files": [str(root), "--save", str(folder / "tables")],
            "claims": ["claims", str(root)],
            "stability": ["stability", str(root)],
            "figures": ["figures", str(root), "--save", str(folder / "figures")],
            "html": ["html", str(root), "--output", str(folder / "page.html")],
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, words in commands.items():
                taken[name].append(seconds_of(words))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    print(f"{options.runs} runs, {options.rounds} rounds\n\n{'':22}{'median (s)':>12}{'x --help':>10}")
    for name, seconds in taken.items():
        ratio = statistics.median(ours / idle for ours, idle in zip(seconds, taken["--help"], strict=True))
        print(f"{name:22}{statistics.median(seconds):12.2f}{ratio:10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
