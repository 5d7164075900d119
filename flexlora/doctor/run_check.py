"""Check whether a run could start here, and describe it. The checks use the run's own code, up to the first step."""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.doctor.findings import Finding, Mark, size
from flexlora.errors import UserError, one_line, printable
from flexlora.results import environment
from flexlora.results.checkpoint_files import checkpoint_folders
from flexlora.results.folder import RunFolder, cannot_write, held_by
from flexlora.results.record import read_record
from flexlora.settings import LrScheduler, Precision, RunSettings
from flexlora.training.memory_check import largest_batch, refuse_what_cannot_fit
from flexlora.training.plan import Steps, make_method, plan_steps, windows_line

if TYPE_CHECKING:
    from flexlora.methods import Method
    from flexlora.models import Backbone
    from flexlora.tasks import Task

# Disk space in multiples of the trained bytes: the adapter, and two checkpoints with weights and two moments each.
KEPT_COPIES = 1 + 2 * 3


def check_run(settings: RunSettings, config: Mapping[str, Any], path: Path) -> list[Finding]:
    """Check a run before it starts. The check reads the run's folder `path` but does not change it.

    A problem does not end the check. All parts that do not depend on it are still checked.
    """
    return _RunCheck(settings, config, path).run()


class _RunCheck:
    def __init__(self, settings: RunSettings, config: Mapping[str, Any], path: Path) -> None:
        self.settings = settings
        self.config = config
        self.path = path
        self.findings: list[Finding] = []
        self.device, self.processes = "cpu", 1
        self.task: Task | None = None
        self.backbone: Backbone | None = None
        self.steps: Steps | None = None
        self.trained_bytes = 0

    def run(self) -> list[Finding]:
        from flexlora.methods import check_method

        self._machine()
        self._try("method", "settings", lambda: check_method(self.settings))
        self._try("data", "rows", self._data)
        self._try("model", "backbone", self._model)
        self._try("data", "tokens", self._tokens)
        self._steps()
        self._try("method", "adapter", self._method)
        self._try("folder", "state", self._folder)
        return self.findings

    def _say(self, section: str, name: str, text: str, mark: Mark = Mark.told) -> None:
        self.findings.append(Finding(section, name, printable(text), mark))

    def _try(self, section: str, name: str, look: Callable[[], None]) -> None:
        try:
            look()
        except UserError as error:
            if all(finding.text != str(error) for finding in self.findings):
                self._say(section, name, str(error), Mark.problem)

    # --- the machine ----------------------------------------------------------------------------------------------

    def _machine(self) -> None:
        import torch

        from flexlora.training.accelerator import make_accelerator
        from flexlora.training.memory import free_memory
        from flexlora.training.trackers import require_trackers

        versions = environment.versions()
        self._say("machine", "versions", ", ".join(f"{name} {version}" for name, version in versions.items()))
        precision = self.settings.training.precision
        try:
            accelerator = make_accelerator(self.settings, self.path)
            self.device, self.processes = str(accelerator.device), accelerator.num_processes
        except UserError as error:
            self._say("machine", "precision", str(error), Mark.problem)
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        facts = environment.hardware(self.device, self.processes)
        text = facts["accelerator"] or f"CPU, {facts['cpu_count']} cores, torch uses {facts['torch_threads']}"
        memory = free_memory(self.device)
        if memory is not None:
            text += f", {size(memory[0])} free of {size(memory[1])}"
        if self.processes > 1:
            text += f", {self.processes} processes"
        self._say("machine", "device", text)
        if not any(finding.name == "precision" for finding in self.findings):
            self._precision(precision)
        self._try("machine", "trackers", lambda: require_trackers(self.settings.trackers))

    def _precision(self, precision: Precision) -> None:
        import torch

        on_gpu, tf32 = self.device.startswith("cuda"), self.settings.training.tf32
        text, mark = precision.value, Mark.good
        if precision is Precision.bf16 and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
            text, mark = "bf16 is emulated on this GPU: use fp16 or fp32", Mark.warning
        elif precision is not Precision.fp32 and not on_gpu:
            text, mark = f"{precision.value} on a CPU works but is often slower than fp32", Mark.warning
        elif tf32:
            text += ", TF32 on" if on_gpu else ", training.tf32 has no effect on a CPU"
        elif on_gpu and precision is Precision.fp32:
            text += ", TF32 off (training.tf32=true is faster)"
        self._say("machine", "precision", text, mark)

    # --- data and model -------------------------------------------------------------------------------------------

    def _data(self) -> None:
        from flexlora.tasks import load_task

        self.task = task = load_task(self.settings.task)
        facts = task.provenance
        source = {"hub": "from the hub or its cache", "folder": "from"}.get(facts["source"], facts["source"])
        where = facts["path"] or ""
        self._say("data", "source", f"{source} {where}".strip(), Mark.good)

    def _model(self) -> None:
        from flexlora.hub import is_cached, trouble_with
        from flexlora.models import load_backbone, on_hub, outline, sketch

        model = self.settings.model
        labels = self.settings.task.num_labels if self.task is None else self.task.num_labels  # a folder knows its own
        from_hub = on_hub(model)
        cached = from_hub and is_cached(model.path or "", model.revision)
        if from_hub and not cached:
            if trouble_with(str(model.path), "model", model.revision) is not None:
                try:
                    load_backbone(model, labels)  # gives the same message as the run
                except UserError as error:
                    self._say("model", "backbone", str(error), Mark.problem)
            else:
                self._say("model", "backbone", f"{model.path}; the first run fetches it from the hub", Mark.good)
            self.backbone, source = outline(model, labels)
            if self.settings.training.gradient_checkpointing:
                self.backbone.recompute_activations()
            self._say("model", "shapes", source)
            return
        try:
            if self.task is not None:
                refuse_what_cannot_fit(self.settings, self.task, self.device, self.processes)
        except UserError as error:
            self._say("model", "backbone", str(error), Mark.problem)
            self.backbone = sketch(model, labels)  # its shapes are enough for the remaining checks
            if self.backbone is not None and self.settings.training.gradient_checkpointing:
                self.backbone.recompute_activations()
            return
        self.backbone = load_backbone(model, labels)
        if self.settings.training.gradient_checkpointing:
            self.backbone.recompute_activations()
        if from_hub:
            text = f"{model.path} at {str(self.backbone.revision)[:7]}, in the local cache"
        else:
            text = f"from {model.path}" if model.path else f"{model.name}, ours, revision {self.backbone.revision}"
        self._say("model", "backbone", text, Mark.good)
        head = None if self.task is None else self.backbone.match_classes(self.task.labels)
        if head is not None:
            self._say("model", "head", head.removeprefix("head: "))

    def _tokens(self) -> None:
        if self.task is None or self.backbone is None or self.backbone.processor is None:
            return
        from flexlora.training.batching import epoch_batches

        task, training = self.task, self.settings.training
        task.preprocess(self.backbone.processor)
        held = ", ".join(f"{len(split):,} {split.name}" for split in task.evaluation)
        self._say("data", "rows", f"{len(task.train):,} to train on, {held} to evaluate on", Mark.good)
        lengths = task.train.lengths
        if max(lengths) > 1:
            self._say("data", "tokens", f"{sum(lengths) / len(lengths):.1f} a row, {max(lengths)} at most")
        try:
            epoch_batches(lengths, training.batch_size, seed=0, epoch=0, processes=self.processes)
        except ValueError as error:  # too few rows for so many processes
            raise UserError(f"task: {error}") from error

    # --- the training and the method --------------------------------------------------------------------------------

    def _steps(self) -> None:
        training = self.settings.training
        if self.task is None or not hasattr(self.task, "train"):
            self._say("steps", "training", "unknown without data and tokenizer")
            return
        self.steps = steps = plan_steps(training, len(self.task.train), self.processes)
        self._say("steps", "training", str(steps))
        accumulated = f", {training.gradient_accumulation} per step" if training.gradient_accumulation > 1 else ""
        self._say("steps", "batches", f"{steps.batches:,} per epoch, at most {training.batch_size} rows{accumulated}")
        peak = f"{training.learning_rate:g}"
        lowest = f"{training.learning_rate * training.min_lr_rate:g}"
        fall = {LrScheduler.linear: "linearly", LrScheduler.cosine: "by a cosine"}[training.lr_scheduler]
        self._say("steps", "warmup", f"{steps.warmup:,} steps up to a learning rate of {peak}, then {fall} to {lowest}")
        every = steps.per_epoch if training.eval_every is None else training.eval_every
        often = f"{math.ceil(steps.total / every):,}, every {every:,} steps and " if every else "1, "
        self._say("steps", "evaluations", f"{often}at the end")

    def _method(self) -> None:
        if self.backbone is None:
            self._say("parameters", "adapter", "unknown without the model")
            return
        from flexlora.methods.base import refuse_half_precision

        total = self.settings.training.max_steps or self.settings.paper_steps
        if self.steps is not None:
            total = self.steps.total
        elif total is not None:
            self._say("steps", "assumed", f"{total:,} optimizer steps, from the recipe")
        method, fit = make_method(self.settings, self.backbone, total or 1)
        if fit is not None:
            chosen = ", ".join(f"method.{name}={value}" for name, value in fit["changed"].items())
            self._say("parameters", "budget", f"{fit['budget']:,}: {chosen}")
        self._configure(method)
        if self.settings.adapter is None:
            self.backbone.model.to("meta")  # shapes are enough
        try:
            model = method.wrap(self.backbone.model)
            refuse_half_precision(model)
            self._start(method, model)
            count = method.parameters(model)
        except NotImplementedError as error:  # the method needs the weights' values
            self._say("parameters", "adapter", f"unknown before training: {one_line(error)}")
            return
        self._events(method, model)
        spare = count["adapter_allocated"] - count["adapter_active"]
        held = f" active, {count['adapter_allocated']:,} allocated" if spare else ""
        self._say("parameters", "adapter", f"{count['adapter_active']:,}{held}")
        self._say("parameters", "head", f"{count['head']:,}")
        trained = count["adapter_active"] + count["head"]
        share = trained / count["total"]
        self._say("parameters", "trained", f"{trained:,} of {count['total']:,} in total ({share:.2%})")
        self._memory(model, method)

    def _configure(self, method: "Method") -> None:
        """Let the method choose its configuration from gradients of the data, as the run would."""
        if not method.configures or self.backbone is None:
            return
        if self.task is None or self.backbone.processor is None:
            self._say("parameters", "plan", "unknown without the data and the model's weights")
            return
        from flexlora.training.accelerator import make_accelerator
        from flexlora.training.configuration import configure

        accelerator = make_accelerator(self.settings, self.path)
        configure(method, self.backbone.model, self.task, self.settings, accelerator)
        for line in method.configuration_lines():
            self._say("parameters", "plan", line)

    def _start(self, method: "Method", model: Any) -> None:
        """Load the initial adapter in the same way as the run. The shapes of its tensors show whether it fits."""
        if self.settings.adapter is None or self.backbone is None:
            return
        from flexlora.training.weights import load_start

        if self.backbone.processor is None:
            self._say("model", "start", f"{self.settings.adapter}, not checked without the model", Mark.warning)
            return
        if self.task is None:
            self._say("model", "start", f"{self.settings.adapter}, not checked without the data", Mark.warning)
            return
        load_start(method, model, self.settings.adapter, self.task.labels)
        self._say("model", "start", f"from the adapter in {self.settings.adapter}", Mark.good)
        model.to("meta")

    def _events(self, method: "Method", model: Any) -> None:
        if method.schedule is None:
            return
        self._say("rank events", "windows", windows_line(method.schedule).removeprefix("windows "))
        events = method.planned_events()
        if events is None:
            self._say("rank events", "events", "none: ranks do not change", Mark.warning)
            return
        (first, most), (last, least) = events.first, events.last
        every = f", every {events.every:,} steps" if events.every else ""
        self._say(
            "rank events", "events", f"{events.count:,}: the first at step {first:,}, the last at {last:,}{every}"
        )
        self._say("rank events", "budget", f"{most:,} at the first, {least:,} at the last")
        # The model's own configuration has the resolved limit; the method's keeps what the user gave.
        configs = getattr(model, "peft_config", {}).values()
        capacity = next((limit for config in configs if (limit := getattr(config, "max_rank", None))), None)
        if capacity is not None:
            self._say("rank events", "capacity", f"rank {capacity} per module at most")

    def _memory(self, model: Any, method: "Method") -> None:
        import torch

        from flexlora.training.memory import CPU_FRAGMENTS, free_memory, step_memory

        assert self.backbone is not None
        training, backbone = self.settings.training, self.backbone
        device = torch.device(self.device).type
        if self.task is not None and self.steps is not None:
            train_batch = largest_batch(self.task, [self.task.train], training.batch_size)
            eval_batch = largest_batch(self.task, self.task.evaluation, training.eval_batch_size)
        else:
            longest = getattr(self.settings.task, "max_length", 0)
            train_batch, eval_batch = (
                backbone.made_batch(rows, longest) for rows in (training.batch_size, training.eval_batch_size)
            )
        shape = " × ".join(map(str, max(train_batch.values(), key=lambda value: value.dim()).shape))
        try:
            need = step_memory(model, backbone.logits, method, training, train_batch, eval_batch, device)
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            remedy = "lower training.batch_size and training.eval_batch_size"
            raise UserError(f"the largest batch ({shape}) does not fit in memory on any device: {remedy}") from error
        self.trained_bytes = need.trained
        self._say("memory", "parameters", f"{size(need.frozen)} frozen, {size(need.trained)} trained")
        self._say("memory", "gradients", f"{size(need.gradients)}, and {size(need.optimizer)} of optimizer state")
        self._say("memory", "activations", f"{size(need.activations)} of the largest batch, {shape}")
        free = free_memory(self.device)
        by = "an evaluation" if need.evaluation_decides else "a training step"
        fragments = CPU_FRAGMENTS * need.peak if device == "cpu" else 0
        text = f"{size(need.peak)} at most, in {by}" + (f"; {size(free[0])} free" if free else "")
        if free is not None and need.peak > free[0]:
            remedy = "lower training.batch_size and raise training.gradient_accumulation"
            remedy = "lower training.eval_batch_size" if need.evaluation_decides else remedy
            self._say("memory", "peak", f"{text}: {remedy}", Mark.problem)
            return
        self._say("memory", "peak", text, Mark.good if free else Mark.told)
        if fragments:
            tight = free is not None and fragments > free[0]
            text = f"up to {size(fragments)} with memory that malloc does not release" + (
                ": it may not fit" if tight else ""
            )
            self._say("memory", "resident", text, Mark.warning if tight else Mark.told)

    # --- its folder -----------------------------------------------------------------------------------------------

    def _folder(self) -> None:
        self._say("folder", "path", str(self.path))
        folder = RunFolder(self.path, self.config)
        try:
            there = next(parent for parent in (self.path, *self.path.parents) if parent.exists())
        except OSError as error:  # the path is too long, or a folder of it may not be read
            raise cannot_write(self.path, error) from error
        if not there.is_dir():
            raise cannot_write(self.path, NotADirectoryError(20, "Not a directory"))
        if not os.access(there, os.W_OK | os.X_OK):
            raise cannot_write(self.path, PermissionError(13, f"{there} is not writable"))
        holder = folder.holder()
        if holder is not None:
            raise UserError(held_by(self.path, holder))
        unknown = folder.finished()
        if unknown is not None:
            self._say("folder", "state", "contains this run, finished: it is skipped", Mark.good)
            for line in unknown:
                self._say("folder", "state", line, Mark.warning)
        elif folder.can_resume():
            newest = next(iter(checkpoint_folders(self.path)))
            self._say(
                "folder", "state", f"contains this run, unfinished: it continues after step {newest:,}", Mark.good
            )
        else:
            self._say("folder", "state", self._unfinished(), Mark.good)
        free, need = shutil.disk_usage(there).free, KEPT_COPIES * self.trained_bytes
        text = f"{size(free)} free" + (f", {size(need)} needed for adapter and checkpoints" if need else "")
        if free < need:
            raise UserError(f"{text}: set output_root=DIR")
        self._say("folder", "disk", text, Mark.good)

    def _unfinished(self) -> str:
        result = self.path / "result.json"
        if not result.is_file():
            return "new"
        return f"contains a run with status {read_record(result).status}: it starts again"
