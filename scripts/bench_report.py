"""What a report of many runs takes: `flexlora-report` on copies of one real run.

    python scripts/bench_report.py --like outputs/tiny/glue/cola/deberta_v3_base/flexlora/default/seed0 [--runs 1000]

The run (of FlexLoRA, so that it has rank events) is copied as runs of GLUE's eight tasks, of several methods and seeds,
each with figures of its own; those of the first three methods keep their rank events, as in a sweep over baselines
(--events: of how many). Each command is a process of its own, from start to end, `--rounds` times in turn; the last
column is the ratio to `--help`, which only starts up.
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

from flexlora.report.tables.glue import GLUE

REPORT = Path(sys.executable).with_name("flexlora-report")
SEEDS = 5
BESIDE_RECORD = ("ranks.jsonl", "metrics.jsonl", "predictions-last.parquet", "predictions-best.parquet", "adapter")


def scores_of_tasks() -> dict[str, list[str]]:
    """The figures that the GLUE table shows of each task."""
    scores: dict[str, list[str]] = {}
    for column in GLUE.columns:
        scores.setdefault(column.task, []).append(column.metric)
    return scores


def write_runs(like: Path, root: Path, count: int, with_events: int) -> None:
    """`count` runs under `root`: the record of `like` under other names, the rest of its files by links."""
    record: dict[str, Any] = json.loads((like / "result.json").read_text(encoding="utf-8"))
    draw = random.Random(0)
    scores = scores_of_tasks()
    events = record["rank_events"]
    runs = ((number, task, seed) for number in itertools.count() for task in scores for seed in range(SEEDS))
    for number, task, seed in itertools.islice(runs, count):
        method = f"method{number:02d}"
        value = draw.uniform(0.5, 0.9)
        for evaluation in [*record["metrics"].values(), *record["history"]]:
            evaluation |= dict.fromkeys(scores[task], value)
        record |= {"method": method, "task": task, "seed": seed, "main_metric": scores[task][0], "subset": False}
        record["rank_events"] = events if number < with_events else None
        record["config"] |= {"seed": seed, "data_seed": seed}
        folder = root.joinpath(record["scale"], task, record["model"], method, record["variant"], f"seed{seed}")
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        for name in BESIDE_RECORD:
            if (like / name).exists():
                (folder / name).symlink_to((like / name).resolve())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", type=Path, required=True, help="folder of a finished run, with its result.json")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--events", type=int, default=3, help="methods with rank events, of the 25 of a thousand runs")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not (options.like / "result.json").is_file():
        parser.error(f"--like: {options.like} has no result.json: name the folder of one finished run")
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
            "table, four files": [str(root), "--save", str(folder / "tables")],
            "claims": ["claims", str(root)],
            "stability": ["stability", str(root)],
            "html": ["html", str(root), "--output", str(folder / "page.html")],
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, words in commands.items():
                start = time.perf_counter()
                done = subprocess.run(
                    [REPORT, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ
                )
                taken[name].append(time.perf_counter() - start)
                if done.returncode:
                    print(f"flexlora-report {' '.join(words)}: {done.stderr.strip()}", file=sys.stderr)
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
