"""What a report of many runs takes: `flexlora-report` on copies of one real run.

    python scripts/bench_report.py --like outputs/tiny/glue/cola/deberta_v3_base/flexlora/default/seed0 [--runs 1000]

The run (of FlexLoRA on one of GLUE's tasks, so that it has rank events) is copied as runs of GLUE's eight tasks, of
several methods and seeds, each with figures of its own; those of the first three methods keep their rank events, as in
a sweep over baselines (--events: of how many). Of the run's own task each method has one seed, with the run's own
figures: its predictions give these, and so there is an interval to compute. Each command is a process of its own, from
start to end, `--rounds` times in turn; the last column is the ratio to `--help`, which only starts up.
"""

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
    """The figures that the GLUE table shows of each task."""
    scores: dict[str, list[str]] = {}
    for column in TABLES["glue"].columns:
        scores.setdefault(column.task, []).append(column.metric)
    return scores


def write_runs(like: Path, root: Path, count: int, with_events: int) -> None:
    """`count` runs under `root`: the record of `like` under other names, the rest of its files by links."""
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
    """What `flexlora-report` takes.

    Raises:
        RuntimeError: it failed, or had no interval to compute where it was told to.
    """
    start = time.perf_counter()
    done = subprocess.run([REPORT, *words], capture_output=True, text=True, env=os.environ, check=False)
    taken = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"flexlora-report {' '.join(words)}: {done.stderr.strip()}")
    if "--intervals" in words and INTERVAL not in done.stdout:
        raise RuntimeError("no interval was computed: the predictions beside --like do not give its figures")
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", type=Path, required=True, help="folder of a finished run, with its result.json")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--events", type=int, default=3, help="methods with rank events, of the 28 of a thousand runs")
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
