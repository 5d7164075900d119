"""Measure the CPU seconds of the command line: help, skipping runs, short runs, the doctor, a wrong path.

    python scripts/bench_cli.py [--rounds 3] [--only help,skip,short,first,methods,path] [--json FILE]

The figures are the user and system time of a process and its children, from `wait4`. A busy machine changes them less
than it changes the wall-clock time, but run this on an idle core. Each command runs `--rounds` times, and the lowest
figure counts. `PYTHONPATH=CHECKOUT` measures another checkout with this script. The runs are short and use
`scale=tiny`. Its small encoder is pretrained once (one to two minutes) into the user's cache, or into
`$FLEXLORA_CACHE`.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
RUN = [
    *("task=glue/cola", "method=lora", "scale=tiny", "training.max_steps=2"),
    *("task.max_train_rows=64", "task.max_eval_rows=64"),
]
FEW, MANY = 2, 12
"""The number of runs in a short and in a long sweep. Their difference gives the time of one more run."""
WRONG_PATHS = ("model.path=nowhere", "task.data_dir=nowhere", "adapter=nowhere")


def cpu_seconds(words: list[str], codes: tuple[int, ...] = (0,), **variables: str) -> float:
    """Return the user and system time of a command and its children, in seconds.

    Raises:
        RuntimeError: the exit code is not one of `codes`. The message is the command's output.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    with tempfile.TemporaryFile() as output:
        redirected = [(os.POSIX_SPAWN_DUP2, output.fileno(), number) for number in (1, 2)]
        process = os.posix_spawn(words[0], words, environment, file_actions=redirected)
        _, status, usage = os.wait4(process, 0)
        if os.waitstatus_to_exitcode(status) not in codes:
            output.seek(0)
            raise RuntimeError(f"{' '.join(words)}\n{output.read().decode()}")
    return usage.ru_utime + usage.ru_stime


class Bench:
    """The rows of the table. Each row is a method of this class. The runs write into `folder`."""

    def __init__(self, rounds: int, folder: Path) -> None:
        self.rounds = rounds
        self.folder = folder

    def _best(self, command: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> float:
        words = [str(BIN / command), *arguments]
        return min(cpu_seconds(words, codes) for _ in range(self.rounds))

    def _sweep(self, runs: int, name: str) -> list[str]:
        return ["-m", *RUN, f"seed=range({runs})", f"output_root={self.folder / name}"]

    def help(self) -> float:
        return self._best("flexlora-run", "--help")

    def skip(self) -> float:
        """Return the CPU seconds of one more finished run in a sweep: it is composed, found done and skipped."""
        cpu_seconds([str(BIN / "flexlora-run"), *self._sweep(MANY, "skip")])
        few, many = (self._best("flexlora-run", *self._sweep(runs, "skip")) for runs in (FEW, MANY))
        return (many - few) / (MANY - FEW)

    def short(self) -> float:
        """Return the CPU seconds of one more new run in a sweep, without its training steps and evaluations."""
        return min(self._one_more_short_run(f"short{number}") for number in range(self.rounds))

    def _one_more_short_run(self, name: str) -> float:
        seconds = {}
        for runs in (FEW, MANY):
            folder = f"{name}-{runs}"
            taken = cpu_seconds([str(BIN / "flexlora-run"), *self._sweep(runs, folder)])
            records = [json.loads(file.read_text()) for file in (self.folder / folder).rglob("result.json")]
            seconds[runs] = taken - sum(record["train_seconds"] + record["eval_seconds"] for record in records)
        return (seconds[MANY] - seconds[FEW]) / (MANY - FEW)

    def first_methods(self) -> float:
        """Return the CPU seconds of `flexlora-doctor methods` with an empty cache."""
        words = [str(BIN / "flexlora-doctor"), "methods"]
        caches = (str(self.folder / f"cache{number}") for number in range(self.rounds))
        return min(cpu_seconds(words, FLEXLORA_CACHE=cache) for cache in caches)

    def methods(self) -> float:
        return self._best("flexlora-doctor", "methods")

    def path(self) -> float:
        """Return the CPU seconds of refusing a folder that does not exist, for the slowest such setting."""
        run = [
            "task=glue/cola",
            "method=lora",
            "model=local",
            f"model.path={self.folder}",
            f"output_root={self.folder}",
        ]
        return max(self._best("flexlora-run", *run, wrong, codes=(2,)) for wrong in WRONG_PATHS)


ROWS: dict[str, tuple[str, float, Callable[[Bench], float]]] = {
    "help": ("flexlora-run --help", 1.5, Bench.help),
    "skip": ("to compose and skip one more finished run of a sweep", 0.05, Bench.skip),
    "short": ("one more short run in a sweep, beside its steps", 0.5, Bench.short),
    "first": ("flexlora-doctor methods, the first time", 5.0, Bench.first_methods),
    "methods": ("flexlora-doctor methods, again", 5.0, Bench.methods),
    "path": ("a wrong path", 2.0, Bench.path),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that each command runs; the lowest figure counts")
    parser.add_argument("--only", default=",".join(ROWS), help="rows to measure, with commas between them")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    print(f"{'CPU seconds':<55}{'measured':>9}{'wanted':>9}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.rounds, Path(folder))
        for name in options.only.split(","):
            what, wanted, measure = ROWS[name]
            measured = measure(bench)
            results.append({"row": name, "what": what, "measured": round(measured, 3), "wanted": wanted})
            print(f"{what:<55}{measured:>9.3f}{wanted:>9.2f}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
