"""Kill trainings, resume them, and compare the results with trainings that were never interrupted, bit for bit.

    python scripts/kill_and_resume.py 100
    python scripts/kill_and_resume.py 1000 --methods flexlora,full --seed 7

A kill comes at a random time, or at a chosen point: at any operation on a file of the run's folder (its lock,
checkpoints, record, adapter), half-way through a checkpoint's file or a line of metrics.jsonl and ranks.jsonl, right
after a rank event was written, after a step, or at the beginning of an evaluation. A kill is one SIGKILL, or two
SIGINTs at once. A run takes up to four kills, so that some of them hit it while it resumes. The exit code is 0 if every
run ended with the results of the run that was never interrupted.

scripts/power_cut.sh tests a power failure, after which the file system may lack data that was written. This script
generates model and data, needs no network, and takes a few seconds for each kill.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexlora.conf_path import conf_dir
from flexlora.testing.commands import COMMAND, be, server
from flexlora.testing.comparing import differences
from flexlora.testing.small_data import write_bert, write_cola

METHODS = ("flexlora", "lora", "adalora", "full", "flexlora_released", "bitfit")
TIME, FILE, HALF, LINE, EVENT, STEP, EVALUATION = PLACES = (
    "at any time",
    "at a file operation",
    "half a checkpoint's file",
    "half a line",
    "after a rank event",
    "after a step",
    "in an evaluation",
)
ACTIONS = ("SIGKILL", "two SIGINTs")
SETTINGS = [
    "task=glue/cola",
    "model=local",
    "training.epochs=5",
    "training.batch_size=8",
    "training.learning_rate=5e-3",
    "training.checkpoint_every=7",
    "training.log_every=3",
    "variant=killed",
]
# The windows of these methods are given in steps and must fit into this short training.
OWN_SETTINGS = {"lora_dash": ["method.tinit=10"], "lori": ["method.tinit=10"]}
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"}
MOST_KILLS = 4
SAYS = "kill_and_resume: "


@dataclass
class Kill:
    """A kill by `action` when a process reaches `place` for the `number`-th time. With number 0 it only counts."""

    place: str = ""
    number: int = 0
    action: str = ACTIONS[0]
    counts: Counter[str] = field(default_factory=Counter)

    def reach(self, place: str, what: object) -> None:
        """Count that the process has reached `place`, and kill the process if this is the `number`-th time."""
        self.counts[place] += 1
        if place == self.place and self.counts[place] == self.number:
            os.write(2, f"{SAYS}{what}\n".encode())
            for number in [signal.SIGKILL] if self.action == "SIGKILL" else [signal.SIGINT] * 2:
                os.kill(os.getpid(), number)

    def arm(self, folder: Path) -> None:
        """Make this process call `reach` at each of the places. `folder` is the folder of its run."""
        from flexlora.results.files import JsonLines
        from flexlora.training.loop import Loop

        def on_event(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in FILE_EVENTS or isinstance(arguments[0], int):
                return
            path = os.fsdecode(arguments[0])
            # While a tree is removed, names are relative to an open folder.
            if path.startswith(str(folder)) or (event in {"os.remove", "os.rmdir"} and arguments[-1] != -1):
                self.reach(FILE, f"{event} {path.removeprefix(f'{folder}{os.sep}')}")

        def half_a_file(write: Callable[[Path, Any], int]) -> Callable[[Path, Any], int]:
            def write_bytes(path: Path, content: Any) -> int:
                write(path, content[: len(content) // 2])
                self.reach(HALF, path.name)
                return write(path, content)

            return write_bytes

        def half_a_line(write: Callable[[JsonLines, dict[str, Any]], None]) -> Callable[..., None]:
            def write_row(lines: JsonLines, row: dict[str, Any]) -> None:
                file = lines._file
                before = file.tell()
                file.write(json.dumps(row).encode()[:20])
                file.flush()
                self.reach(LINE, Path(file.name).name)
                file.seek(before)
                file.truncate()
                write(lines, row)
                if Path(file.name).name == "ranks.jsonl":
                    self.reach(EVENT, f"step {row['step']}")

            return write_row

        def then(place: str, call: Callable[..., Any], after: bool) -> Callable[..., Any]:
            def both(loop: Loop, *arguments: Any) -> Any:
                if not after:
                    self.reach(place, f"step {loop.outcome.steps}")
                value = call(loop, *arguments)
                if after:
                    self.reach(place, f"step {loop.outcome.steps}")
                return value

            return both

        sys.addaudithook(on_event)
        Path.write_bytes = half_a_file(Path.write_bytes)  # type: ignore[method-assign, assignment]
        JsonLines.write = half_a_line(JsonLines.write)  # type: ignore[method-assign]
        Loop._step = then(STEP, Loop._step, after=True)  # type: ignore[method-assign]
        Loop._evaluate = then(EVALUATION, Loop._evaluate, after=False)  # type: ignore[method-assign]


@dataclass
class Start:
    """The result of one start of the command."""

    code: int
    where: str
    counts: dict[str, int]
    stdout: str
    stderr: str
    seconds: float

    @property
    def found(self) -> str:
        """The state that this start found from an earlier start."""
        if "resumed after step" in self.stdout:
            begun = next(line for line in self.stdout.splitlines() if "resumed after step" in line)
            return begun.strip() + (", after falling back" if "is damaged" in self.stdout else "")
        if "is finished: skipped" in self.stdout:
            return "skipped: the run was done"
        return "began anew" if "optimizer steps" in self.stdout and self.code == 0 else "killed before it said"


class Trainings:
    """Trainings of one small model. Each training has its own folder under `root`."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self.root = root
        self.model = model
        self.settings = [*SETTINGS, f"model.path={model}", f"task.data_dir={data}"]
        self._unbroken: dict[str, tuple[Path, Start]] = {}

    def folder(self, method: str, name: str) -> Path:
        """Return the folder of the run of the training `name`."""
        return self.root / name / "local" / "glue" / "cola" / self.model.name / method / "killed" / "seed0"

    def unbroken(self, method: str) -> tuple[Path, Start]:
        """Return the training that was never interrupted. Its `counts` say how many times it reached each place."""
        if method not in self._unbroken:
            name = f"unbroken-{method}"
            start = self.start(method, name, Kill())
            if start.code:
                raise RuntimeError(f"{method} does not train at all: {start.stderr}")
            self._unbroken[method] = self.folder(method, name), start
        return self._unbroken[method]

    def start(self, method: str, name: str, kill: Kill, after: float | None = None) -> Start:
        """Start or resume the training. With `after` it is killed from outside after that number of seconds."""
        words = [str(COMMAND), *self.settings, f"method={method}", f"output_root={self.root / name}"]
        words += OWN_SETTINGS.get(method, [])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with tempfile.NamedTemporaryFile() as stdout, tempfile.NamedTemporaryFile() as stderr:
            arguments = (words, environment, stdout.name, stderr.name, kill, self.folder(method, name))
            process = server().Process(target=_run_armed, args=arguments)
            began = time.monotonic()
            process.start()
            process.join(after)
            process.kill()
            process.join()
            output, errors = (Path(file.name).read_text(encoding="utf-8") for file in (stdout, stderr))
        said = [line.removeprefix(SAYS) for line in errors.splitlines() if line.startswith(SAYS)]
        counts = json.loads(said.pop()) if said and said[-1].startswith("{") else {}
        code = process.exitcode
        assert code is not None
        return Start(code, said[0] if said else "", counts, output, errors, time.monotonic() - began)

    def differences(self, method: str, name: str) -> list[str]:
        """Return the differences between the training and the one that was never interrupted."""
        return differences(self.unbroken(method)[0], self.folder(method, name))


def _run_armed(words: list[str], environment: dict[str, str], stdout: str, stderr: str, kill: Kill, run: Path) -> None:
    kill.arm(run)
    try:
        be(words, environment, stdout, stderr)
    finally:
        os.write(2, f"{SAYS}{json.dumps(kill.counts)}\n".encode())


def main() -> int:
    """Run the command `python scripts/kill_and_resume.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, metavar="N", help="the number of kills")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="for the random times and places; default: %(default)s")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all folders there; default: those that differ")
    options = parser.parse_args()
    methods = options.methods.split(",")
    if options.kills < 1:
        parser.error(f"N is {options.kills}: at least 1")
    known = sorted(file.stem for file in (conf_dir() / "method").glob("*.yaml"))
    if unknown := set(methods) - set(known):
        parser.error(f"--methods: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    root = Path(tempfile.mkdtemp(prefix="killed-") if options.keep is None else options.keep).resolve()
    root.mkdir(parents=True, exist_ok=True)
    trainings = Trainings(root, write_bert(root / "tiny-bert"), write_cola(root / "glue"))
    return kill_and_resume(trainings, methods, options.kills, random.Random(options.seed), options.keep is not None)


def kill_and_resume(
    trainings: Trainings, methods: Sequence[str], kills: int, draw: random.Random, keep: bool = False
) -> int:
    """Kill and resume trainings, and print every kill and a table of all kills.

    Returns:
        The exit code: 1 if a training ended differently, otherwise 0.
    """
    done: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    runs = 0
    while sum(done.values()) < kills:
        method, name = methods[runs % len(methods)], f"run{runs:04d}"
        runs += 1
        counts, seconds = trainings.unbroken(method)[1].counts, trainings.unbroken(method)[1].seconds
        waits = ""
        for taken in range(MOST_KILLS + 1):
            place = draw.choice([TIME, *(place for place in PLACES if counts.get(place))])
            action = draw.choices(ACTIONS, [4, 1])[0]
            kill, after = Kill(), None
            if taken == MOST_KILLS or sum(done.values()) == kills:
                pass  # this start runs to its end
            elif place == TIME:
                after, action = draw.uniform(0, seconds / (taken + 1)), "SIGKILL"
            else:
                kill = Kill(place, draw.randint(1, max(1, counts[place] // (taken + 1))), action)
            start = trainings.start(method, name, kill, after)
            if waits:
                print(f"{waits} → {start.found}", flush=True)
                waits = ""
            if start.code == 0:
                break
            expected = -signal.SIGKILL if action == "SIGKILL" else 128 + signal.SIGINT
            if start.code != expected or "Traceback" in start.stderr:
                wrong.append(f"{method} {name}: exit code {start.code}: {start.stderr}")
                break
            done[place, method] += 1
            where = start.where or f"{after:.1f} s"
            waits = f"{sum(done.values()):5d}  {method:18s} {action:12s} {place:25s} {where}"
        else:
            wrong.append(f"{method} {name}: not done after {MOST_KILLS} kills")
        different = trainings.differences(method, name) if start.code == 0 else []
        wrong += [f"{method} {name}: {what} differs" for what in different]
        if not keep and not different and start.code == 0:
            shutil.rmtree(trainings.root / name)
    print(f"\n{sum(done.values())} kills in {runs} runs\n")
    print(f"{'':25s}" + "".join(f"{method:>19s}" for method in methods))
    for place in PLACES:
        print(f"{place:25s}" + "".join(f"{done[place, method]:19d}" for method in methods))
    print()
    if wrong:
        print("\n".join(wrong))
        print(f"the folders are in {trainings.root}")
        return 1
    if not keep:
        shutil.rmtree(trainings.root)
    print("every run ended bit for bit like the run that was never interrupted")
    return 0
