"""One run from its settings to its record: task and model → the method wraps the model → loop → files."""

import contextlib
import errno
import logging
import os
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.errors import UserError, one_line
from flexlora.results import environment
from flexlora.results.files import JsonLines, file_sha256
from flexlora.results.folder import (
    KEPT,
    RunFolder,
    cannot_write,
    checkpoint_folders,
    config_hash,
    variant_name,
)
from flexlora.results.predictions import Predictions
from flexlora.results.record import Ending, RunRecord, read_record
from flexlora.settings import Precision, RunSettings
from flexlora.training.distributed import begin_together, ends_together
from flexlora.training.memory_check import refuse_what_cannot_fit
from flexlora.training.plan import make_method, plan_steps, windows_line
from flexlora.training.progress import duration, rank_range
from flexlora.training.rank_alarms import rank_alarms
from flexlora.training.trackers import require_trackers, tracked

if TYPE_CHECKING:
    from accelerate import Accelerator

    from flexlora.methods import Method
    from flexlora.training.loop import Loop, Outcome

log = logging.getLogger("flexlora")

# What a file system says that has no room, is read-only, has a limit on a file's size, or fails; some writes then name
# no file.
NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)


def run_path(settings: RunSettings, overrides: Iterable[str]) -> Path:
    """`<output_root>/<scale>/<task>/<model>/<method>/<variant>/seed<seed>`."""
    from flexlora.models import model_name

    variant = settings.variant or variant_name(overrides)
    parts = (settings.scale, settings.task.name, model_name(settings.model), settings.method.name, variant)
    return Path(settings.output_root).expanduser().joinpath(*parts, f"seed{settings.seed}")


@ends_together
def run_job(settings: RunSettings, config: dict[str, Any], overrides: Iterable[str]) -> Ending:
    """Run one configuration and record it; `config` is the same as `settings`, as plain data.

    Returns:
        `skipped` where this very run is finished already, else the record's status: `done`, `diverged`, or `failed`
        (a bug, whose traceback is shown and kept in `log.txt`).

    Raises:
        UserError: the folder is refused, or something the user can put right went wrong (recorded as `failed`).
        KeyboardInterrupt: the run was interrupted (recorded as `interrupted`).
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    require_trackers(settings.trackers)
    path = run_path(settings, overrides)
    folder = RunFolder(path, config)
    with contextlib.ExitStack() as stack:
        # One process opens the folder and all follow what it finds.
        verdict: list[Any] = [None]
        begin_together(cpu=_on_cpu())
        if PartialState().is_main_process:
            verdict = [_open(folder, stack)]
        broadcast_object_list(verdict)
        if isinstance(verdict[0], UserError):
            raise verdict[0]
        if verdict[0] == "skipped":
            log.info("%s is finished: skipped", path)
            return Ending("skipped")
        try:
            return _Job(settings, config, folder, resume=verdict[0] == "resumed").run()
        except OSError as error:  # the record itself could not be written
            raise cannot_write(path, error) from error


def _open(folder: RunFolder, stack: contextlib.ExitStack) -> str | UserError:
    """Take the folder until `stack` closes: `begun` or `resumed`; or `skipped`, or why it is refused."""
    try:
        try:
            stack.enter_context(folder)
        except UserError:
            if folder.is_finished():  # and may lie where nothing can be written any more
                return "skipped"
            raise
        if folder.is_finished():
            folder.drop_checkpoints()  # it was killed just before it did so itself
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


class _QuietFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is told of once, by what fails for it, and not at every line."""


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = _QuietFileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):  # what a full disk did not take is on the screen
            handler.close()


class _Job:
    """One run in an open folder; `record` fills up as it goes and is written however it ends."""

    def __init__(self, settings: RunSettings, config: dict[str, Any], folder: RunFolder, resume: bool) -> None:
        self.settings = settings
        self.folder = folder
        self.path = path = folder.path
        self.resume = resume
        self.began = time.perf_counter()
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
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=environment.versions(),
            git=environment.git_state(),
        )
        self.main = True

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
                log.info("%s: the same command goes on after step %d", record.error, newest)
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
            summarise(record, self.path)
        return Ending(record.status, record.error)

    def _write(self) -> None:
        self.record.total_seconds = round(time.perf_counter() - self.began, 3)
        if self.main:
            self.record.write(self.path / "result.json")

    def _write_if_possible(self) -> None:
        """Write the record of a run that something else is to be said of than that this was not possible."""
        try:
            self._write()
        except OSError as error:
            log.warning("%s", cannot_write(self.path, error))

    def _is_of_its_folder(self, error: OSError) -> bool:
        """Whether it is the run's folder that failed, and no bug."""
        return error.errno in NO_WRITING or str(error.filename).startswith(str(self.path))

    def _train(self) -> None:
        from accelerate.utils import set_seed

        from flexlora.methods import check_method
        from flexlora.models import check_model, load_backbone
        from flexlora.tasks import load_task
        from flexlora.training.checkpoint import Checkpoints
        from flexlora.training.loop import Loop

        settings, record, training = self.settings, self.record, self.settings.training
        accelerator = make_accelerator(settings, self.path)
        self.main = accelerator.is_main_process
        environment.reset_peak_memory()
        log.info("%s · %s · %s · seed %d → %s", record.task, record.method, record.model, record.seed, self.path)

        check_model(settings.model)
        check_method(settings)
        task = load_task(settings.task)
        refuse_what_cannot_fit(settings, task, str(accelerator.device), accelerator.num_processes)
        set_seed(settings.seed)
        backbone = load_backbone(settings.model, task.num_labels)
        _refuse_not_finite(backbone.model, f"model.path: {settings.model.path}")
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
        }
        record.hardware = environment.hardware(str(accelerator.device), processes)
        log.info("%s", steps)

        method, record.parameter_budget = make_method(settings, backbone, steps.total)
        record.schedule = method.schedule
        if method.schedule is not None:
            log.info("%s", windows_line(method.schedule))
        model = method.wrap(backbone.model)
        if settings.adapter is not None:
            _refuse_damaged(Path(settings.adapter).expanduser())
            method.load(model, Path(settings.adapter).expanduser())
            _refuse_not_finite(model, f"adapter: {settings.adapter}")
            log.info("starting from %s", settings.adapter)
        record.parameters = dict(method.parameters(model))

        checkpoints = Checkpoints(self.path)
        saved = checkpoints.load() if self.resume else None
        with contextlib.ExitStack() as stack:
            name = f"{record.task} {record.method} {record.model} {record.variant} seed{record.seed}"
            stack.enter_context(tracked(accelerator, name, record.config, self.path))
            metrics_file = ranks_file = None
            if self.main:
                positions = {} if saved is None else saved[1]["files"]
                metrics_file, ranks_file = (
                    stack.enter_context(
                        contextlib.closing(_json_lines(self.path / f"{name}.jsonl", positions.get(name)))
                    )
                    for name in ("metrics", "ranks")
                )
            # Dropout begins at the same place whatever a method drew to initialise, and differs between processes.
            set_seed(settings.seed + accelerator.process_index)
            loop = Loop(
                model,
                task,
                method,
                training,
                accelerator,
                total_steps=steps.total,
                data_seed=settings.data_seed,
                metrics_file=metrics_file,
                ranks_file=ranks_file,
                checkpoints=checkpoints,
                predictions=Predictions(self.path) if self.main else None,
            )
            if saved is not None:
                _restore(loop, saved, self.path)
                log.info("resumed after step %d", loop.outcome.steps)
            try:
                loop.run()
            finally:
                self._take(loop.outcome)
                record.peak_memory = environment.peak_memory(str(accelerator.device))
        record.parameters = dict(method.parameters(model))
        ranks = method.ranks(model)
        if ranks:
            record.rank_events = _events_summary(loop.outcome, ranks)
        if self.main:
            files = _save(method, model, self.path)
            record.adapter_bytes = sum(file.stat().st_size for file in files)
            record.adapter_sha256 = {file.name: file_sha256(file) for file in files}

    def _take(self, outcome: "Outcome") -> None:
        record = self.record
        record.status, record.error = outcome.status, outcome.error
        record.steps, record.train_loss = outcome.steps, outcome.train_loss
        record.resumed_at = outcome.resumed_at
        record.metrics = {"last": outcome.last, "best": outcome.best}
        record.history = outcome.history
        record.epochs = None if not outcome.history else outcome.history[-1]["epoch"]
        record.tokens = outcome.tokens
        record.flops = outcome.flops
        record.train_seconds = round(outcome.train_seconds, 3)
        record.eval_seconds = round(outcome.eval_seconds, 3)


def _refuse_not_finite(model: Any, what: str) -> None:
    """Refuse weights that a damaged file made NaN or infinite, before a training is said to diverge over them.

    Raises:
        UserError: there are such; begins with `what`.
    """
    import torch

    for name, parameter in model.named_parameters():
        # The sum of a tensor needs no memory beside it, and is finite only if every value is.
        if parameter.is_floating_point() and not parameter.detach().sum(dtype=torch.float32).isfinite():
            raise UserError(f"{what} has values in {name} that are not finite: the file is damaged")


def _restore(loop: "Loop", saved: tuple[dict[str, Any], dict[str, Any]], path: Path) -> None:
    """Put a checkpoint into the loop.

    Raises:
        UserError: it is whole, and of another model or version than this one.
    """
    try:
        loop.load_state_dict(*saved)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"the checkpoints in {path} do not fit ({one_line(error)}): the model or the code is not what it was. "
            "Move the folder away, or give variant=NAME."
        ) from error


def _on_cpu() -> bool:
    """Whether to stay on the CPU: where there is nothing else, several processes only find each other if told so."""
    import torch
    from accelerate.utils import parse_flag_from_env

    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def make_accelerator(settings: RunSettings, path: Path) -> "Accelerator":
    """The accelerator of one run whose folder is `path`.

    Raises:
        UserError: the precision is not to be had on this device, or the processes are not as the settings need them.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import ProjectConfiguration

    # The runs of a sweep share one process, and a second Accelerator of another precision would be refused.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    training = settings.training
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = training.tf32
    precision = "no" if training.precision is Precision.fp32 else training.precision.value
    _check_launch()
    try:
        accelerator = Accelerator(
            cpu=_on_cpu(),
            mixed_precision=precision,
            log_with=settings.trackers or None,
            project_config=ProjectConfiguration(logging_dir=str(path / "tensorboard")),
            # Masks of active directions are buffers, and alike on all processes already.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as error:
        raise UserError(f"training.precision={training.precision.value}: {one_line(error)}") from error
    if training.count_flops and accelerator.num_processes > 1:
        raise UserError("training.count_flops=true counts what one process does: start a single one")
    if training.shard_base and accelerator.num_processes == 1:
        raise UserError("training.shard_base=true needs several processes (docs/scaling.md says how to start them)")
    return accelerator


def _check_launch() -> None:
    """Refuse what `accelerate launch` was asked for and does not do, or would do behind the loop's back.

    Raises:
        UserError: its `--cpu` with several processes, of which it starts one, or its FSDP or DeepSpeed.
    """
    from accelerate.utils import parse_flag_from_env

    sizes = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    # With --cpu it names a place to meet, and starts a single process all the same.
    if parse_flag_from_env("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ and not set(sizes) & set(os.environ):
        raise UserError(
            "accelerate launch --cpu starts one process, whatever --num_processes says: take --multi_gpu instead of "
            "--cpu, which on a machine without GPUs uses its CPUs, or torchrun --nproc_per_node"
        )
    for flag, name in {"ACCELERATE_USE_FSDP": "--use_fsdp", "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed"}.items():
        if parse_flag_from_env(flag):
            raise UserError(f"accelerate launch {name} would shard the adapter too: take training.shard_base=true")


def _events_summary(outcome: "Outcome", ranks: dict[str, int]) -> dict[str, Any]:
    steps = [event["step"] for event in outcome.events]
    return {
        "count": len(steps),
        "first_step": steps[0] if steps else None,
        "last_step": steps[-1] if steps else None,
        "final_ranks": ranks,
        "alarms": rank_alarms(outcome.events, outcome.losses),
    }


def _json_lines(path: Path, position: dict[str, Any] | None) -> JsonLines:
    try:
        return JsonLines(path, position)
    except ValueError as error:
        raise UserError(f"{error}: move the run's folder away, or give variant=NAME") from error


def _refuse_damaged(adapter: Path) -> None:
    """Refuse the adapter of a finished run whose weights are no longer those that the run wrote.

    Raises:
        UserError: so it is; of an adapter from elsewhere nothing is known.
    """
    try:
        written = read_record(adapter.resolve().parent / "result.json").adapter_sha256
    except ValueError:
        return
    for name, sha256 in written.items():
        file = adapter / name
        if file.is_file() and file_sha256(file) != sha256:
            raise UserError(f"adapter: {file} is not what its run wrote: it is damaged, or was changed since")


def _save(method: "Method", model: Any, path: Path) -> list[Path]:
    """Write `adapter/`, whole or not at all; the files with its weights."""
    from safetensors import SafetensorError

    part, adapter = path / ".adapter.part", path / "adapter"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        method.save(model, part)
        for file in part.rglob("*"):
            file.chmod(0o644)  # safetensors writes 0600, hidden from whoever shares the results
        shutil.rmtree(adapter, ignore_errors=True)  # of a run that was killed before its record was written
        part.replace(adapter)
    except SafetensorError as error:  # its own word for any failure of the file system
        raise UserError(f"cannot write {part}: {one_line(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(adapter.glob("*.safetensors"))


def summarise(record: RunRecord, path: Path) -> None:
    """Log what a run came to, in a few lines."""
    rows = [("status", record.status if record.error is None else f"{record.status}: {record.error}")]
    last, best = record.metrics["last"], record.metrics["best"]
    if last is not None and best is not None:
        metric = record.main_metric or ""
        rows.append((metric, f"{last[metric]:.4f} last   {best[metric]:.4f} best (step {best['step']})"))
    if record.train_loss is not None:
        rows.append(("train loss", f"{record.train_loss:.4f}"))
    if record.rank_events is not None:
        events = record.rank_events
        rows.append(("ranks", f"{rank_range(events['final_ranks'])}   {events['count']} events"))
        rows += [("alarm", alarm) for alarm in events["alarms"]]
    if record.parameters:
        count = record.parameters
        spare = count["adapter_allocated"] - count["adapter_active"]
        held = f" ({count['adapter_allocated']:,} allocated)" if spare else ""
        rows.append(("parameters", f"adapter {count['adapter_active']:,}{held}   head {count['head']:,}"))
    if record.train_seconds is not None:
        times = f"training {duration(record.train_seconds)}   evaluation {duration(record.eval_seconds or 0.0)}"
        rows.append(("time", f"{times}   in all {duration(record.total_seconds or 0.0)}"))
    rows.append(("files", str(path)))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        log.info("  %s  %s", name.ljust(width), text)
