"""What a run shows while it trains: a bar on a terminal, one line an evaluation anywhere else."""

import logging
import os
import sys
import threading
import warnings

from tqdm import tqdm

from flexlora.training.stopped_time import running_seconds

log = logging.getLogger("flexlora")


def duration(seconds: float) -> str:
    """`42s`, `3m05s`, `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def rank_range(ranks: dict[str, int]) -> str:
    """`8` or `1–18`; empty without ranks."""
    if not ranks:
        return ""
    low, high = min(ranks.values()), max(ranks.values())
    return str(low) if low == high else f"{low}–{high}"


class Progress:
    """A bar over optimizer steps with loss, metric, ranks and the time left."""

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
        """One optimizer step is done."""
        self._bar.update(1)

    def loss(self, loss: float, ranks: dict[str, int]) -> None:
        """The mean loss since the last call."""
        self._shown |= {"loss": f"{loss:.3f}"} | ({"ranks": rank_range(ranks)} if ranks else {})
        self._bar.set_postfix(self._shown)

    def evaluation(
        self, step: int, epoch: float, train_loss: float | None, score: float, ranks: dict[str, int]
    ) -> None:
        """An evaluation is done; `score` is the main metric."""
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
    """Whether this process speaks for the run, by the launcher's environment: known before anything is imported."""
    return os.environ.get("RANK", "0") == "0"


def show_log() -> None:
    """Print the package's log on the terminal, once however often this is called; on the main process only."""
    log.setLevel(logging.INFO)
    # tqdm's own lock is the system's as well, which a process that is killed leaves behind: Python warns of it later.
    tqdm.set_lock(threading.RLock())
    if is_main_process() and not any(isinstance(h, BarFriendlyHandler) for h in log.handlers):
        log.addHandler(BarFriendlyHandler())
        log.propagate = False
    quiet_libraries()


def quiet_libraries() -> None:
    """Hide warnings of libraries that a user of a command cannot act on."""
    # PEFT imports bitsandbytes where it is installed, which then warns of kernels for bases that are not quantised.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Deprecations of one library inside another.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|accelerate")
