"""Sweeps (`-m`): the end of a sweep lists how each job ended, also if the job's process died."""

import contextlib
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from flexlora.cli.terminal import say
from flexlora.errors import UserError, one_line
from flexlora.reading import read_text
from flexlora.results.files import lock, to_json, write_text
from flexlora.results.record import Ending
from flexlora.training.progress import is_main_process, position

log = logging.getLogger("flexlora")

GOOD = ("done", "ready", "skipped")
DIED = Ending("interrupted", "its process died: killed, perhaps for memory; the same command resumes it")
STOPPED = Ending("interrupted", "the sweep was stopped before it ended; the same command resumes it")
LEFT = Ending("running", "the sweep was stopped and did not wait for it")
NOT_STARTED = Ending("not started")
# Endings that say nothing about the run's folder.
UNKNOWN = ("interrupted", "not started", "running")
# The seconds that are spent on checking the folders of such runs. Composing a run's settings takes less than a second.
PATIENCE = 10.0
LOCK = ".lock"

Job = tuple[str, ...]
"""The overrides of one run, without Hydra's own: `("task=glue/cola", "method=lora")`."""


BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def list_endings() -> None:
    """Put `ListingSweeper` in place of Hydra's basic sweeper.

    Under another name, Hydra would look for it in the package hydra_plugins only, which every Hydra program loads.
    """
    Plugins.instance().class_name_to_class[BASIC] = ListingSweeper


class ListingSweeper(Sweeper):
    """Hydra's basic sweeper with any of its launchers. It prints at the end how every job ended.

    `task_function.endings` then has them, in the order of the jobs.
    """

    def __init__(self, **settings: Any) -> None:
        found = {f"{kind.__module__}.{kind.__name__}": kind for kind in Plugins.instance().discover(Sweeper)}
        self._sweeper: Any = found[BASIC](**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self._hydra_context = hydra_context
        self._config = config
        self._task = task_function
        # The journal is in the sweep's folder, because the machines of a cluster share it.
        self._journal = Journal(Path(config.hydra.sweep.dir) / f".sweep-{uuid.uuid4().hex}")
        task = Journaled(task_function, self._journal)
        self._sweeper.setup(hydra_context=hydra_context, task_function=task, config=config)
        self._launcher = self._sweeper.launcher = PatientLauncher(self._sweeper.launcher, self._journal)
        self._sweeper.validate_batch_is_legal = self._look_ahead

    def sweep(self, arguments: list[str]) -> Any:
        """Launch all jobs, and list their endings also after an error."""
        output = self._config.hydra.launcher.get("submitit_folder")
        if output is not None and is_main_process():
            print(f"the output of each run: {output.replace('%j', '<job>')}", flush=True)
        try:
            return self._sweeper.sweep(arguments)
        finally:
            self._finish()

    def _look_ahead(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose every job before the first one begins, as Hydra's sweeper does. Skip it, or check what it reads.

        Raises:
            UserError: a job that is not finished would read data or a model that is missing or damaged.
        """
        troubles: dict[str, list[Job]] = {}
        for overrides in batch:
            config, job = self._composed(overrides), job_of(overrides)
            if self._task.skips(config):  # type: ignore[attr-defined]
                self._launcher.skip(job)
                continue
            trouble = self._task.trouble(config)  # type: ignore[attr-defined]
            if trouble is not None:
                troubles.setdefault(trouble, []).append(job)
        if not troubles:
            return
        jobs = [job_of(overrides) for overrides in batch]
        for trouble, found in troubles.items():
            say(self._config.hydra.job.name, f"{trouble} ({_which(found, jobs)})")
        count = sum(map(len, troubles.values()))
        raise UserError(f"no run was started, because {count} of {len(jobs)} could not read their data or model")

    def _finish(self) -> None:
        position.begin([])
        if not self._launcher.began:
            return  # the sweep was refused before any run began
        jobs = {job_of(overrides): overrides for batch in self._sweeper.overrides for overrides in batch}
        endings = {job: self._launcher.ending(job) for job in jobs}
        self._journal.end()
        end = time.monotonic() + PATIENCE
        for job, overrides in jobs.items():
            # An earlier sweep may have finished a run, or its process may have died after the run was done.
            if endings[job].status in UNKNOWN and time.monotonic() < end and self._is_finished(overrides):
                endings[job] = Ending("done")
        self._task.endings[:] = endings.values()  # type: ignore[attr-defined]
        hydra = self._config.hydra
        folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        start = [hydra.job.name, *(f"--config-dir={folder}" for folder in folders)]
        if is_main_process():
            sys.stdout.flush()
            common = set.intersection(*map(set, jobs))
            # The overrides that differ between runs come first, for the reader. The order does not change the run.
            runs = {job: [item for item in job if not item.startswith("dry=")] for job in jobs}  # without dry=
            words = {job: [*start, *sorted(run, key=lambda item: item in common)] for job, run in runs.items()}
            print(page({shlex.join(words[job]): ending for job, ending in endings.items()}))

    def _is_finished(self, overrides: Sequence[str]) -> bool:
        return bool(self._task.is_finished(self._composed(overrides)))  # type: ignore[attr-defined]

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        loader = self._hydra_context.config_loader
        return loader.load_sweep_config(master_config=self._config, sweep_overrides=list(overrides))


class Journal:
    """The files in which the jobs of a sweep write how they ended, because a process that died returns nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> None:
        """Create the folder and lock it until this process ends. Delete the folders of sweeps that were killed."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock(os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            for other in self.folder.parent.glob(".sweep-*"):
                with contextlib.suppress(OSError):
                    handle = os.open(other / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                    if lock(handle):
                        shutil.rmtree(other, ignore_errors=True)
                    os.close(handle)

    def end(self) -> None:
        """Delete the folder. A job that is still running can then no longer report how it ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, job: Job, ending: Ending | None) -> None:
        """Write that `job` has begun (None), or how it ended. A full disk does not stop the job."""
        with contextlib.suppress(OSError):
            write_text(self._file(job), to_json(ending))

    def has_begun(self, job: Job) -> bool:
        return self._file(job).exists()

    def read(self, job: Job) -> Ending | None:
        """Return how `job` ended, or None if it has not begun or its process died."""
        try:
            noted = json.loads(read_text(self._file(job)))
        except (OSError, ValueError):
            return None
        return None if noted is None else Ending(*noted)

    def _file(self, job: Job) -> Path:
        return self.folder / f"{hashlib.sha256(chr(0).join(job).encode()).hexdigest()}.json"


class Journaled:
    """A task function that writes the journal. Hydra's launchers pickle it for the process that runs the job."""

    def __init__(self, task: Callable[[DictConfig], Ending], journal: Journal) -> None:
        self.task = task
        self.journal = journal

    def __call__(self, config: DictConfig) -> Ending:
        """Run a job. An exception is a bug: it is shown, and the sweep continues with the other jobs."""
        job = job_of(HydraConfig.get().overrides.task)
        self.journal.write(job, None)
        position.enter(job)
        began = time.monotonic()
        try:
            ending = self.task(config)
        except KeyboardInterrupt:
            self.journal.write(job, Ending("interrupted", "told to stop; the same command resumes it"))
            raise
        except Exception as error:
            traceback.print_exc()
            ending = Ending("failed", f"{type(error).__name__}: {one_line(error)}")
        self.journal.write(job, ending)
        if ending.status == "done":
            position.leave(job, time.monotonic() - began)
        return ending


class PatientLauncher(Launcher):
    """A wrapper of a launcher whose jobs may die. It launches jobs that have not begun again."""

    def __init__(self, launcher: Launcher, journal: Journal) -> None:
        self.launcher = launcher
        self.journal = journal
        self.began = False
        """Whether any job has begun."""
        self._stopped = False
        self._skipped: set[Job] = set()
        self._returned: dict[Job, Ending] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Do nothing: the wrapped launcher is set up already."""

    def skip(self, job: Job) -> None:
        """Say that `job` is finished: it is not launched, which would cost more than to find out."""
        self._skipped.add(job)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launch the jobs. If the launcher gives up, launch the remaining jobs again. `ending` returns the results.

        Raises:
            UserError: the launcher started no job.
        """
        waiting = [overrides for overrides in job_overrides if job_of(overrides) not in self._skipped]
        if not self.began:
            self.journal.begin()
            position.begin([job_of(overrides) for overrides in job_overrides], self._skipped)
        self.began |= len(waiting) < len(job_overrides)
        while waiting:
            try:
                with self._patience():
                    results = self.launcher.launch(waiting, initial_job_idx=initial_job_idx)
            except KeyboardInterrupt:
                self.began = self._stopped = True
                raise
            except Exception as error:
                left = [overrides for overrides in waiting if not self.journal.has_begun(job_of(overrides))]
                if len(left) == len(waiting):
                    raise UserError(f"hydra/launcher starts no run: {one_line(error)}") from error
                self.began = True
                log.warning("a run's process died (%s); %d runs have not begun yet", one_line(error), len(left))
                waiting = left
            else:
                self.began = True
                for overrides, result in zip(waiting, results, strict=True):
                    self._take(job_of(overrides), result)
                break
        return []

    def _patience(self) -> contextlib.AbstractContextManager[None]:
        return _submitit_waits_for_all() if self._submits() else contextlib.nullcontext()

    def _submits(self) -> bool:
        return type(self.launcher).__module__.startswith("hydra_plugins.hydra_submitit_launcher")

    def _take(self, job: Job, result: JobReturn) -> None:
        if result.status is JobStatus.COMPLETED:
            self._returned[job] = result.return_value
        elif not self.journal.has_begun(job):  # the job failed before it began
            self._returned[job] = Ending("failed", one_line(result._return_value))

    def ending(self, job: Job) -> Ending:
        """Return how `job` ended, as far as the sweep knows."""
        if job in self._skipped:
            return Ending("skipped")
        told = self._returned.get(job) or self.journal.read(job)
        if told is not None or not self.journal.has_begun(job):
            return told or NOT_STARTED
        return DIED if not self._stopped else LEFT if self._submits() else STOPPED


@contextlib.contextmanager
def _submitit_waits_for_all() -> Iterator[None]:
    """Make a job that died return its exception. Hydra's launcher asks the jobs in turn and would stop at that job."""
    import submitit

    kind: Any = submitit.Job
    ask = kind.results

    def results(job: Any) -> Any:
        try:
            return ask(job)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
            died = JobReturn()
            died.status, died.return_value = JobStatus.FAILED, error
            return [died]

    kind.results = results
    try:
        yield
    finally:
        kind.results = ask


def job_of(overrides: Sequence[str]) -> Job:
    """Return the job with these overrides."""
    return tuple(item for item in overrides if not item.lstrip("+~").startswith(("hydra.", "hydra/")))


def _which(found: Sequence[Job], jobs: Sequence[Job]) -> str:
    """Say how many of `jobs` were found, and which overrides all of these have and no other job has."""
    others = {item for job in jobs if job not in found for item in job}
    common = [item for item in found[0] if item not in others and all(item in job for job in found)]
    words = " ".join(common) if others else ""
    return f"{len(found)} of {len(jobs)} runs{': ' if words else ''}{words}"


def page(endings: dict[str, Ending]) -> str:
    """Return the list of a sweep: counts by ending, then each command with its reason. Problems come last."""
    counts = Counter(ending.status for ending in endings.values())
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    width = max(len(status) for status in counts)
    lines = [f"\n{len(endings)} runs: {summary}" if len(endings) > 1 else f"\n1 run: {next(iter(counts))}"]
    for command, (status, reason) in sorted(endings.items(), key=lambda item: item[1].status not in GOOD):
        lines.append(f"  {status.ljust(width)}  {command}")
        if reason is not None:
            lines.append(f"  {' ' * width}  {reason}")
    return "\n".join(lines)
