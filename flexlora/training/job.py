"""One run from its settings to its record: task and model → the method wraps the model → loop → files."""

import contextlib
import errno
import logging
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.errors import UserError, one_line
from flexlora.results import environment
from flexlora.results.checkpoint_files import checkpoint_folders
from flexlora.results.files import file_sha256
from flexlora.results.folder import KEPT, RunFolder, cannot_write, config_hash, variant_name
from flexlora.results.record import Ending, RunRecord
from flexlora.results.whole import vouched_files
from flexlora.settings import RunSettings
from flexlora.training.distributed import begin_together, ends_together, launched_alone, shared_failure
from flexlora.training.inputs import contents, refuse_missing_inputs, stamp_inputs
from flexlora.training.memory_check import refuse_what_cannot_fit
from flexlora.training.plan import make_method, plan_steps, windows_line
from flexlora.training.progress import is_main_process, position
from flexlora.training.stopped_time import running_seconds, stopped
from flexlora.training.summary import events_summary, fill_in, log_summary
from flexlora.training.trackers import require_trackers, tracked

if TYPE_CHECKING:
    from flexlora.training.outcome import Outcome

log = logging.getLogger("flexlora")

# The errors of a file system that is full, is read-only, limits the size of a file, or fails. Some writes raise them
# without a file name.
NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)

SKIPPED = "%s is finished: skipped"


def run_path(settings: RunSettings, overrides: Iterable[str]) -> Path:
    """Return the run's folder, `<output_root>/<scale>/<task>/<model>/<method>/<variant>/seed<seed>`."""
    from flexlora.models import model_name

    variant = settings.variant or variant_name(overrides)
    parts = (settings.scale, settings.task.name, model_name(settings.model), settings.method.name, variant)
    return Path(settings.output_root).expanduser().joinpath(*parts, f"seed{settings.seed}")


@ends_together
def run_job(settings: RunSettings, config: dict[str, Any], overrides: Iterable[str]) -> Ending:
    """Run one configuration and record it; `config` is the same as `settings`, as plain data.

    Returns:
        `skipped` if this run is finished already, otherwise the record's status: `done`, `diverged`, or `failed` (a
        bug, whose traceback is shown and kept in `log.txt`).

    Raises:
        UserError: the folder is refused, or the run has an error that the user can correct (recorded as `failed`).
        KeyboardInterrupt: the run was interrupted (recorded as `interrupted`).
    """
    require_trackers(settings.trackers)
    path = run_path(settings, overrides)
    folder = RunFolder(path, config)
    with contextlib.ExitStack() as stack:
        verdict = _open(folder, stack) if launched_alone() else _open_together(folder, stack)
        if isinstance(verdict, UserError):
            raise verdict
        if verdict == "skipped":
            log.info(SKIPPED, path)
            return Ending("skipped")
        try:
            with stopped.watched():
                return _Job(settings, config, overrides, folder, resume=verdict == "resumed").run()
        except OSError as error:  # the record itself could not be written
            raise cannot_write(path, error) from error


def skips(path: Path, config: dict[str, Any]) -> bool:
    """Return whether a sweep can skip the run without starting it, and log that it is skipped.

    False does not mean that the run will train: a job that is started asks again, together with its other processes.

    Raises:
        UserError: the folder has another run, or something in it is damaged.
    """
    if not launched_alone() or checkpoint_folders(path) or not _is_finished(RunFolder(path, config)):
        return False
    log.info(SKIPPED, path)
    return True


def _open(folder: RunFolder, stack: contextlib.ExitStack) -> str | UserError:
    """Take the folder until `stack` closes; return `begun`, `resumed`, `skipped`, or the error if it is refused."""
    try:
        try:
            stack.enter_context(folder)
        except UserError:
            if _is_finished(folder):  # the folder of a finished run may be read-only
                return "skipped"
            raise
        if _is_finished(folder):
            folder.drop_checkpoints()  # the run was killed just before it did this itself
            return "skipped"
        resume = folder.can_resume()
        if not resume:
            folder.begin()
        stack.enter_context(_log_file(folder.path / "log.txt"))
    except UserError as error:
        return error
    except OSError as error:
        return cannot_write(folder.path, error)
    return "resumed" if resume else "begun"


def _is_finished(folder: RunFolder) -> bool:
    """Return whether the run is finished. One line is logged for each part that cannot be compared with its record."""
    unknown = folder.finished()
    for line in unknown or ():
        log.warning("%s: %s", folder.path, line)
    return unknown is not None


def _open_together(folder: RunFolder, stack: contextlib.ExitStack) -> str | UserError:
    """Let the main process open the folder; return its verdict on all processes."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from flexlora.training.accelerator import stay_on_cpu

    begin_together(cpu=stay_on_cpu())
    verdict: list[Any] = [_open(folder, stack) if PartialState().is_main_process else None]
    broadcast_object_list(verdict)
    found: str | UserError = verdict[0]
    return found


class _QuietFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: on a full disk another write fails and reports it once. Lines of the log would each repeat it."""


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = _QuietFileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):  # the lines that a full disk did not take are on the screen
            handler.close()


class _Job:
    """One run in an open folder. `record` is filled during the run, and is written however the run ends."""

    def __init__(
        self,
        settings: RunSettings,
        config: dict[str, Any],
        overrides: Iterable[str],
        folder: RunFolder,
        resume: bool,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.path = path = folder.path
        self.resume = resume
        self.began = running_seconds()
        self.record = RunRecord(
            status="failed",
            error="the run did not reach its end",
            scale=settings.scale,
            task=settings.task.name,
            model=path.parents[2].name,
            method=settings.method.name,
            variant=path.parent.name,
            seed=settings.seed,
            data_seed=settings.data_seed,
            config=config,
            config_hash=config_hash(config),
            overrides=[*overrides],
            for_a_start=settings.for_a_start,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=dict(environment.versions()),
            git=dict(environment.git_state()),
        )
        self.main = is_main_process()

    def run(self) -> Ending:
        record = self.record
        try:
            self._train()
        except UserError as error:
            record.status, record.error = "failed", str(error)
            self._write_if_possible()
            raise
        except KeyboardInterrupt:
            record.status, record.error = "interrupted", f"interrupted at step {record.steps or 0}"
            newest = next(iter(checkpoint_folders(self.path)), None)
            if newest is not None:
                log.info("%s: the same command resumes after step %d", record.error, newest)
            self._write_if_possible()
            raise
        except Exception as error:
            if isinstance(error, OSError) and self._is_of_its_folder(error):
                refusal = cannot_write(self.path, error)
                record.status, record.error = "failed", str(refusal)
                self._write_if_possible()
                raise refusal from error
            record.status, record.error = "failed", f"{type(error).__name__}: {one_line(error)}"
            log.error("%s", traceback.format_exc())
        self._write()
        if self.main:
            if record.status in KEPT:
                self.folder.drop_checkpoints()
            log_summary(record, self.path)
        return Ending(record.status, record.error)

    def _write(self) -> None:
        record = self.record
        record.total_seconds = round(running_seconds() - self.began, 3)
        if not self.main:
            return
        self.folder.require_held()
        record.files = vouched_files(self.path) if record.status in KEPT else {}
        if record.status in KEPT:
            self.folder.sync()  # the files that the record vouches for are on the disk before it
        record.write(self.path / "result.json")

    def _write_if_possible(self) -> None:
        """Write the record of a run that failed or was interrupted. If this fails too, only log a warning."""
        try:
            self._write()
        except OSError as error:
            log.warning("%s", cannot_write(self.path, error))
        except UserError as error:
            log.warning("%s", error)

    def _is_of_its_folder(self, error: OSError) -> bool:
        """Return whether `error` comes from the run's folder and is not a bug."""
        return error.errno in NO_WRITING or str(error.filename).startswith(str(self.path))

    def _train(self) -> None:
        settings, record, training = self.settings, self.record, self.settings.training
        refuse_missing_inputs(settings)

        from accelerate.utils import set_seed

        from flexlora.methods import check_method
        from flexlora.methods.base import refuse_half_precision
        from flexlora.models import check_model, load_backbone
        from flexlora.tasks import load_task
        from flexlora.training.accelerator import make_accelerator
        from flexlora.training.checkpoint import Checkpoints, restore
        from flexlora.training.configuration import configure, identity
        from flexlora.training.journal import Journal
        from flexlora.training.loop import Loop
        from flexlora.training.weights import load_start, refuse_not_finite, save_adapter

        accelerator = make_accelerator(settings, self.path)
        self.main = accelerator.is_main_process
        environment.reset_peak_memory()
        line = f"{position}%s · %s · %s · seed %d → %s"
        log.info(line, record.task, record.method, record.model, record.seed, self.path)

        check_model(settings.model)
        check_method(settings)
        task = load_task(settings.task)
        refuse_what_cannot_fit(settings, task, str(accelerator.device), accelerator.num_processes)
        set_seed(settings.seed)
        backbone = load_backbone(settings.model, task.num_labels)
        refuse_not_finite(backbone.model, f"model.path: {settings.model.path}")
        head = backbone.match_classes(task.labels)
        if head is not None:
            log.info("%s", head)
        if training.gradient_checkpointing:
            backbone.recompute_activations()
        task.preprocess(backbone.processor)
        processes = accelerator.num_processes
        steps = plan_steps(training, len(task.train), processes)
        record.samples = {"train": len(task.train), "evaluation": {split.name: len(split) for split in task.evaluation}}
        record.subset, record.data = task.subset, task.provenance
        record.total_steps, record.main_metric = steps.total, task.main_metric
        record.backbone = {
            "path": settings.model.path,
            "revision": backbone.revision,
            "dtype": settings.model.dtype.value,
            **backbone.facts(),
        }
        with shared_failure():
            if self.main:
                record.inputs = stamp_inputs(settings, task.provenance, backbone.revision, task.image_files())
        found = contents(record.inputs)
        record.backbone["sha256"] = found.get("model")
        record.hardware = environment.hardware(str(accelerator.device), processes)
        log.info("%s", steps)

        method, record.parameter_budget = make_method(settings, backbone, steps.total)
        record.schedule = method.schedule
        if method.schedule is not None:
            log.info("%s", windows_line(method.schedule))
        checkpoints = Checkpoints(self.path, self.folder.require_held)
        saved = checkpoints.load() if self.resume else None
        with fitting(self.path):  # a run whose checkpoints are all damaged begins again, and chooses again
            record.configuration = configure(
                method, backbone.model, task, settings, accelerator, self.path, resume=saved is not None
            )
        model = method.wrap(backbone.model)
        refuse_half_precision(model)
        if settings.adapter is not None:
            load_start(method, model, settings.adapter, task.labels, found.get("model"))
        record.parameters = dict(method.parameters(model))

        with contextlib.ExitStack() as stack:
            name = f"{record.task} {record.method} {record.model} {record.variant} seed{record.seed}"
            stack.enter_context(tracked(accelerator, name, record.config, self.path))
            with fitting(self.path):
                positions = None if saved is None else saved[1]["files"]
                journal = stack.enter_context(
                    Journal(self.path, positions, self.folder.require_held) if self.main else Journal()
                )
            # Dropout does not depend on the random numbers that a method drew before. It differs between processes.
            set_seed(settings.seed + accelerator.process_index)
            loop = Loop(
                model,
                task,
                method,
                training,
                accelerator,
                total_steps=steps.total,
                data_seed=settings.data_seed,
                journal=journal,
                checkpoints=checkpoints,
                identity={
                    "config": record.config_hash,
                    "model revision": backbone.revision,
                    **found,
                    **identity(record.configuration),
                },
            )
            with fitting(self.path):
                if saved is not None:
                    restore(loop, saved)
                    log.info("resumed after step %d", loop.outcome.steps)
                self._begin_session(loop.outcome)
            try:
                loop.run()
            finally:
                fill_in(record, loop.outcome)
                record.peak_memory = environment.peak_memory(str(accelerator.device))
        record.parameters = dict(method.parameters(model))
        ranks = method.ranks(model)
        if ranks:
            record.rank_events = events_summary(loop.outcome, ranks)
        if self.main:
            self.folder.require_held()
            files = save_adapter(method, model, self.path)
            record.adapter_bytes = sum(file.stat().st_size for file in files)
            record.adapter_sha256 = {file.name: file_sha256(file) for file in files}

    def _begin_session(self, outcome: "Outcome") -> None:
        """Add this process to the sessions of the run. One line says how it differs from the previous process."""
        session = environment.session(outcome.steps, self.record.started, self.record.hardware)
        changed = environment.changes(outcome.sessions[-1], session) if outcome.sessions else []
        if changed:
            log.warning("the run continues with %s: its results may differ in the last digits", ", ".join(changed))
        outcome.sessions = [*outcome.sessions, session]


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Refuse the checkpoint of the run in `path` if the block fails.

    Raises:
        UserError: the block fails: the checkpoint is whole, but of another model or version, or its fields are damaged.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(
            f"the checkpoints in {path} do not fit ({one_line(error)}): the model or the code is not what it was. "
            "Move the folder away, or give variant=NAME."
        ) from error
