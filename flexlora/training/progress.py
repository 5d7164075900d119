"""The output of a run while it trains: a bar on a terminal, and one line for each evaluation."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Collection, Sequence

from tqdm import tqdm

from flexlora.training.stopped_time import running_seconds

log = logging.getLogger("flexlora")


def duration(seconds: float) -> str:
    """Return a time as a short text: `42s`, `3m05s`, `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Position:
    """The position of a run in a sweep and the time that the sweep still needs, for the run's first line.

    The time is that of the runs that this process has trained so far: the mean of those that differ from a waiting run
    in the seed only, else of those on its task, else of all. Runs that another command has finished, such as that of
    another table with the same runs, take no time.
    """

    def __init__(self) -> None:
        self._jobs: list[tuple[str, ...]] = []
        self._done: set[tuple[str, ...]] = set()
        self._at = 0
        self._seconds: dict[tuple[str, ...], list[float]] = {}

    def begin(self, jobs: Sequence[tuple[str, ...]], done: Collection[tuple[str, ...]] = ()) -> None:
        """Start a sweep of these jobs, each given by its overrides. Those in `done` are finished already."""
        self._jobs, self._done, self._at, self._seconds = [*jobs], {*done}, 0, {}

    def enter(self, job: tuple[str, ...]) -> None:
        """Say that `job` begins."""
        self._at = self._jobs.index(job) if job in self._jobs else 0

    def leave(self, job: tuple[str, ...], seconds: float) -> None:
        """Say that `job` was trained in this time."""
        for kind in _kinds(job):
            self._seconds.setdefault(kind, []).append(seconds)

    def __str__(self) -> str:
        if len(self._jobs) < 2:
            return ""
        left = [self._expected(job) for job in self._jobs[self._at :] if job not in self._done]
        known = [seconds for seconds in left if seconds is not None]
        time = f" about {duration(sum(known))} left" if known else ""
        return f"[{self._at + 1}/{len(self._jobs)}]{time}  "

    def _expected(self, job: tuple[str, ...]) -> float | None:
        found = (self._seconds[kind] for kind in _kinds(job) if kind in self._seconds)
        times = next(found, None)
        return None if times is None else sum(times) / len(times)


def _kinds(job: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the kinds of a job, the narrowest first: all but its seed, its task, and the kind of all jobs."""
    no_seed = tuple(item for item in job if not item.startswith(("seed=", "data_seed=")))
    return [no_seed, ("task", *(item for item in job if item.startswith("task="))), ()]


position = Position()
"""The position of the run that this process trains."""


def rank_range(ranks: dict[str, int]) -> str:
    """Return the range of the ranks, `8` or `1–18`; an empty text without ranks."""
    if not ranks:
        return ""
    low, high = min(ranks.values()), max(ranks.values())
    return str(low) if low == high else f"{low}–{high}"


class Progress:
    """A bar over optimizer steps. It shows the loss, the metric, the ranks and the remaining time."""

    def __init__(self, total_steps: int, metric: str, done: int = 0, visible: bool = True) -> None:
        self.total_steps = total_steps
        self._done_before = done
        self.metric = metric
        self._visible = visible
        self._began = running_seconds()
        self._shown: dict[str, str] = {}
        self._bar = tqdm(
            total=total_steps,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            disable=not (visible and sys.stderr.isatty()),
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        )

    def step(self) -> None:
        """Move the bar by one optimizer step."""
        self._bar.update(1)

    def loss(self, loss: float, ranks: dict[str, int]) -> None:
        """Show the mean loss since the last call, and the ranks."""
        self._shown |= {"loss": f"{loss:.3f}"} | ({"ranks": rank_range(ranks)} if ranks else {})
        self._bar.set_postfix(self._shown)

    def evaluation(
        self, step: int, epoch: float, train_loss: float | None, score: float, ranks: dict[str, int]
    ) -> None:
        """Show an evaluation; `score` is the main metric."""
        self._shown |= {self.metric.split("_")[0]: f"{score:.3f}"}
        self._bar.set_postfix(self._shown)
        if not self._visible:
            return
        parts = [f"step {step}/{self.total_steps}", f"epoch {epoch:.2f}", f"{self.metric} {score:.4f}"]
        if train_loss is not None:
            parts.insert(2, f"loss {train_loss:.4f}")
        if ranks:
            parts.append(f"ranks {rank_range(ranks)}")
        if step < self.total_steps:
            each = (running_seconds() - self._began) / max(1, step - self._done_before)
            left = each * (self.total_steps - step)
            parts.append(f"{duration(left)} left")
        log.info("  %s", "  ".join(parts))

    def close(self) -> None:
        self._bar.close()


class BarFriendlyHandler(logging.Handler):
    """Prints above the bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def is_main_process() -> bool:
    """Return whether this process reports for the run. The launcher's environment tells it before any import."""
    return os.environ.get("RANK", "0") == "0"


def show_log() -> None:
    """Print the package's log on the terminal, only on the main process. Further calls add nothing."""
    log.setLevel(logging.INFO)
    # tqdm's own lock is also a lock of the system. A killed process leaves it behind, and Python later warns about it.
    tqdm.set_lock(threading.RLock())
    if is_main_process() and not any(isinstance(h, BarFriendlyHandler) for h in log.handlers):
        log.addHandler(BarFriendlyHandler())
        log.propagate = False
    quiet_libraries()


def quiet_libraries() -> None:
    """Hide warnings of libraries that a user of a command cannot act on."""
    # PEFT imports bitsandbytes if it is installed. It then warns about kernels even for bases that are not quantised.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # These are warnings about deprecated calls of one library in another.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|accelerate")
