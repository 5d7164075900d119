"""The loop that trains every method on every task. It asks the method and the task, and knows neither by name."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from flexlora.errors import UserError
from flexlora.methods import Method
from flexlora.results.files import JsonLines
from flexlora.results.predictions import Predictions
from flexlora.settings import TrainingSettings
from flexlora.tasks import Split, Task
from flexlora.training import batching
from flexlora.training.checkpoint import (
    Checkpoints,
    changing_tensors,
    random_state,
    restore_random_state,
    restore_tensors,
)
from flexlora.training.distributed import largest, shared_failure
from flexlora.training.plan import warmup_steps
from flexlora.training.progress import Progress
from flexlora.training.schedule import warmup_and_decay
from flexlora.training.signals import Interrupted, StopRequest
from flexlora.training.trackers import scalars
from flexlora.tuner.sharding import average_gradients, shard_base

log = logging.getLogger("flexlora")

NEVER = 2**31 - 1
REMEDY = "lower training.learning_rate, or take training.precision=fp32 or bf16, and model.dtype=float32"


@dataclass
class Outcome:
    """What a training came to."""

    status: str = "failed"
    error: str | None = "the training did not reach its end"
    steps: int = 0
    train_loss: float | None = None
    last: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    train_seconds: float = 0.0
    """Time in steps alone: evaluations and logging are not in it."""
    eval_seconds: float = 0.0
    flops: int | None = None
    """Floating point operations of the first step, where they were counted; its time is then in no clock."""
    tokens: dict[str, int] | None = None
    """Trained on until the last evaluation, on all processes: `real` ones, and `padded` with their padding."""
    events: list[dict[str, Any]] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)
    """Steps after which the training went on from a checkpoint."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean training loss since the one before), as logged."""


class Loop:
    """One training. `run` goes from the first step to the last evaluation; `outcome` is valid whenever it stops."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        method: Method,
        settings: TrainingSettings,
        accelerator: Accelerator,
        *,
        total_steps: int,
        data_seed: int,
        metrics_file: JsonLines | None = None,
        ranks_file: JsonLines | None = None,
        checkpoints: Checkpoints | None = None,
        predictions: Predictions | None = None,
    ) -> None:
        self.task = task
        self.method = method
        self.settings = settings
        self.accelerator = accelerator
        self.total_steps = total_steps
        self.data_seed = data_seed
        self.outcome = Outcome()
        self._metrics_file = metrics_file
        self._ranks_file = ranks_file
        self._checkpoints = checkpoints
        self._predictions = predictions
        self._stop = StopRequest()

        self.adapted = self._place(model)
        self.method.prepare(self.adapted, self._first_batches(), self.task.loss)
        groups = method.parameter_groups(self.adapted, settings.learning_rate)
        self.optimizer = method.optimizer(groups, settings.learning_rate, settings.weight_decay)
        factor = warmup_and_decay(total_steps, warmup_steps(total_steps, settings), settings.lr_scheduler)
        self.scheduler = method.scheduler(self.optimizer, factor)
        # Several processes share what trains by DDP, or over a sharded base by `average_gradients`.
        self.model = accelerator.prepare_model(
            self.adapted, device_placement=False, evaluation_mode=settings.shard_base
        )
        self.stepper = accelerator.prepare_optimizer(self.optimizer)
        method.attach(self.adapted, self.optimizer)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]

        # Kept on the device and read when a line is logged: a read at every step would stop the device each time.
        self._loss_sum = torch.zeros((), device=accelerator.device)
        self._epoch_loss_sum = torch.zeros((), device=accelerator.device)
        self._grad_norm = torch.full((), math.nan, device=accelerator.device)
        self._bad_step = torch.full((), NEVER, dtype=torch.int64, device=accelerator.device)
        self._steps_in_sum = 0
        self._epoch = 0
        self._steps_in_epoch = 0
        self._evaluation_due = False
        self._tokens = {"real": 0, "padded": 0}

    def _place(self, model: nn.Module) -> nn.Module:
        """`model` on the device; its base sharded over the processes where the settings say so."""
        if not self.settings.shard_base:
            return model.to(self.accelerator.device)
        try:
            shard_base(model)
        except ValueError as error:
            raise UserError(f"training.shard_base: {error} Take training.shard_base=false.") from error
        return model

    def run(self) -> Outcome:
        """Train, evaluate, and say how it went; a loss that is not finite ends it with status `diverged`.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the step was finished and a checkpoint kept.
        """
        done = self.outcome.steps
        self._bar = Progress(
            self.total_steps, self.task.main_metric, done=done, visible=self.accelerator.is_main_process
        )
        try:
            with self._stop:
                if self._train():
                    self.outcome.status, self.outcome.error = "done", None
        finally:
            self._bar.close()
        return self.outcome

    def _train(self) -> bool:
        """Whether it came to its end; False where it diverged."""
        self.model.train()
        self._began = time.perf_counter()
        if self._evaluation_due and not self._evaluate_or_diverge():  # resumed where an evaluation was cut short
            return False
        while self.outcome.steps < self.total_steps:
            if self._steps_in_epoch == 0:
                self._epoch_loss_sum.zero_()
            for indices, batches in self._epoch_steps(self._epoch, done=self._steps_in_epoch):
                with self._counted():
                    self._step(indices, batches)
                if not self._after_step():
                    return False
                if self.outcome.steps == self.total_steps:
                    return True
            self._epoch, self._steps_in_epoch = self._epoch + 1, 0
        return True

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the operations of the very first step, where that is asked for, while the training clock stands."""
        if not self.settings.count_flops or self.outcome.steps > 0:
            yield
            return
        self._pause()
        before = self.outcome.train_seconds
        with FlopCounterMode(display=False) as counter:
            yield
        self._pause()
        self.outcome.train_seconds = before
        self.outcome.flops = counter.get_total_flops()

    def _after_step(self) -> bool:
        """Log, evaluate, keep a checkpoint, leave: whatever is due after a step. False where it diverged."""
        steps, settings = self.outcome.steps, self.settings
        at_end = steps == self.total_steps
        logged = at_end or steps % settings.log_every == 0
        if logged:
            self._log()
            if self._diverged():
                return False
        end_of_epoch = self._steps_in_epoch == self._epoch_size
        every = settings.eval_every
        due = end_of_epoch if every is None else every > 0 and steps % every == 0
        self._evaluation_due = at_end or due
        checkpoint_due = settings.checkpoint_every is not None and steps % settings.checkpoint_every == 0
        self._leave_if_told()
        if self._evaluation_due:
            return self._evaluate_or_diverge()
        return not checkpoint_due or self._keep()

    def _evaluate_or_diverge(self) -> bool:
        """The evaluation that is due, and a checkpoint; False where a loss is not finite."""
        self._pause()
        if self._diverged():
            return False
        at_end = self.outcome.steps == self.total_steps
        if at_end:
            # Before the last evaluation, which may be long; after it the run is done and needs none.
            self._keep()
            self.method.search(self.adapted, self._main_score, self._keep)
            self.method.finish(self.adapted)
        self._evaluate()
        self._evaluation_due = False
        if self._evaluation_diverged():
            return False
        self._began = time.perf_counter()
        return at_end or self._keep()

    def _leave_if_told(self) -> None:
        """Keep a checkpoint and raise `Interrupted` where a signal came to any process."""
        number = largest(self._stop.number or 0)
        if number:
            self._keep_if_possible()
            raise Interrupted(number)

    def _keep_if_possible(self) -> None:
        """A checkpoint on the way out, which a disk without room does not turn into a failure."""
        try:
            self._keep()
        except OSError as error:
            log.warning("no checkpoint of step %d: %s", self.outcome.steps, error.strerror or error)

    def _keep(self) -> bool:
        """A checkpoint of this moment; False, and none, where the training diverged."""
        if self._checkpoints is None:
            return True
        self._pause()
        if self._diverged():
            return False
        state = self.state_dict()
        with shared_failure():
            if self.accelerator.is_main_process:
                self._checkpoints.save(self.outcome.steps, changing_tensors(self.adapted), state)
        self._began = time.perf_counter()
        return True

    def state_dict(self) -> dict[str, Any]:
        """All but the model that the steps to come depend on, and the outcome so far. Every process must ask."""
        outcome, scaler = self.outcome, self.accelerator.scaler
        files = {"metrics": self._metrics_file, "ranks": self._ranks_file}
        best = next((i for i, result in enumerate(outcome.history) if result is outcome.best), None)
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "method": self.method.state_dict(),
            "random": gather_object([random_state()]),
            "epoch": self._epoch,
            "steps_in_epoch": self._steps_in_epoch,
            "evaluation_due": self._evaluation_due,
            # Every process has sums of its own: of its share of the batches.
            "sums": gather_object(
                [
                    {
                        "loss": self._loss_sum.cpu(),
                        "epoch_loss": self._epoch_loss_sum.cpu(),
                        "steps": self._steps_in_sum,
                        "grad_norm": self._grad_norm.cpu(),
                    }
                ]
            ),
            "tokens": gather_object([self._tokens]),
            "data": self.task.provenance,
            "files": {name: None if file is None else file.position() for name, file in files.items()},
            "outcome": {
                **{f.name: getattr(outcome, f.name) for f in fields(outcome) if f.name not in {"last", "best"}},
                "best": best,
            },
        }

    def load_state_dict(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; `tensors` are the model's that training changes.

        Raises:
            UserError: it was taken with another number of processes, or on other data.
            ValueError: it is of another model.
        """
        mine, processes = self.accelerator.process_index, self.accelerator.num_processes
        if len(state["random"]) != processes:
            raise UserError(
                f"the run was stopped on {len(state['random'])} processes and cannot go on with {processes}: "
                "start it as before, or give variant=NAME"
            )
        if state["data"] != self.task.provenance:
            raise UserError("the data is not what it was when the run was stopped: begin a new one with variant=NAME")
        restore_tensors(self.adapted, tensors)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.method.load_state_dict(state["method"])
        restore_random_state(state["random"][mine])
        self._epoch, self._steps_in_epoch = state["epoch"], state["steps_in_epoch"]
        self._evaluation_due = state["evaluation_due"]
        sums = state["sums"][mine]
        self._loss_sum.copy_(sums["loss"])
        self._epoch_loss_sum.copy_(sums["epoch_loss"])
        self._steps_in_sum = sums["steps"]
        self._grad_norm = sums["grad_norm"].to(self.accelerator.device)
        self._tokens = state["tokens"][mine]
        kept = dict(state["outcome"])
        best = kept.pop("best")
        self.outcome = Outcome(**kept)
        self.outcome.resumed_at = [*self.outcome.resumed_at, self.outcome.steps]
        self.outcome.last = self.outcome.history[-1] if self.outcome.history else None
        self.outcome.best = None if best is None else self.outcome.history[best]

    @cached_property
    def _epoch_size(self) -> int:
        """Optimizer steps of an epoch."""
        return batching.steps_per_epoch(
            len(self.task.train),
            self.settings.batch_size,
            self.settings.gradient_accumulation,
            self.accelerator.num_processes,
        )

    def _epoch_steps(
        self, epoch: int, done: int = 0
    ) -> Iterator[tuple[list[list[int]], list[dict[str, torch.Tensor]]]]:
        """Each optimizer step of the epoch: the indices of its batches on all processes, and this process's batches.

        The first `done` steps are passed over, and their batches not even made.
        """
        processes = self.accelerator.num_processes
        batches = batching.epoch_batches(
            self.task.train.lengths, self.settings.batch_size, seed=self.data_seed, epoch=epoch, processes=processes
        )
        batches = batches[done * self.settings.gradient_accumulation * processes :]
        examples = self.task.train_examples(self.data_seed, epoch)
        loader = iter(self._loader(examples, batches[self.accelerator.process_index :: processes]))
        for indices in batching.optimizer_steps(batches, self.settings.gradient_accumulation, processes):
            yield indices, [next(loader) for _ in range(len(indices) // processes)]

    def _first_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The first epoch's batches on the device, for a method that prepares itself on them."""
        for _, batches in self._epoch_steps(0):
            yield from (self._to_device(batch) for batch in batches)

    def _loader(self, examples: Sequence[dict[str, Any]], batches: list[list[int]]) -> DataLoader[Any]:
        return DataLoader(
            examples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self.task.collate,
            pin_memory=self.accelerator.device.type == "cuda",
            # Its own generator: without one, starting an epoch draws from the generator that dropout draws from.
            generator=torch.Generator(),
        )

    def _to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value.to(self.accelerator.device, non_blocking=True) for key, value in batch.items()}

    def _step(self, indices: list[list[int]], batches: list[dict[str, torch.Tensor]]) -> None:
        """One optimizer step: the gradient of the mean loss over all its examples, on all processes."""
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        examples = sum(len(batch) for batch in indices)
        self._add_tokens(indices[mine::processes], batches)
        step_loss = torch.zeros_like(self._loss_sum)
        for number, batch in enumerate(batches):
            # Batches differ in size by one, and gradients are averaged over processes: weigh by examples.
            weight = len(indices[number * processes + mine]) * processes / examples
            if number < len(batches) - 1:
                with self.accelerator.no_sync(self.model):
                    step_loss += self._backward(batch, weight)
            else:
                step_loss += self._backward(batch, weight)
        if self.settings.shard_base:
            average_gradients(self.trained)
        if self.settings.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.trained, self.settings.max_grad_norm)
            if norm is not None:
                self._grad_norm = norm
        else:
            self.accelerator.unscale_gradients()  # a penalty is added to gradients of their real size
        self.method.regularise(self.adapted)
        self.stepper.step()
        self.outcome.steps += 1
        if not self.stepper.step_was_skipped:
            self.method.after_step(self.outcome.steps, self.optimizer)
            self.scheduler.step()
        self.stepper.zero_grad(set_to_none=True)
        for event in self.method.rank_events():
            self.outcome.events.append(event)
            with shared_failure():
                if self._ranks_file is not None:
                    self._ranks_file.write(event)
        self._bad_step = torch.where(
            torch.isfinite(step_loss), self._bad_step, self._bad_step.clamp(max=self.outcome.steps)
        )
        self._loss_sum += step_loss
        self._epoch_loss_sum += step_loss
        self._steps_in_sum += 1
        self._steps_in_epoch += 1
        self._bar.step()

    def _backward(self, batch: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
        loss = self.task.loss(self.model, self._to_device(batch)) * weight
        self.accelerator.backward(loss)
        return loss.detach().float()

    def _add_tokens(self, indices: list[list[int]], batches: list[dict[str, torch.Tensor]]) -> None:
        lengths = self.task.train.lengths
        for chosen, batch in zip(indices, batches, strict=True):
            self._tokens["real"] += sum(lengths[i] for i in chosen)
            self._tokens["padded"] += self.task.padded_size(batch) * len(chosen)

    def _epoch_now(self) -> float:
        return round(self._epoch + self._steps_in_epoch / self._epoch_size, 4)

    def _log(self) -> None:
        """A line of metrics.jsonl; the only place, with evaluations, where the host waits for the device."""
        loss = self._mean_over_processes(self._loss_sum / max(1, self._steps_in_sum))
        row = {
            "kind": "train",
            "step": self.outcome.steps,
            "epoch": self._epoch_now(),
            "loss": loss,
            "grad_norm": float(self._grad_norm),
            "learning_rate": self.scheduler.get_last_lr()[0],
            "train_seconds": round(self._seconds_so_far(), 3),
        }
        self._write(row)
        self.outcome.losses.append((self.outcome.steps, loss))
        self._bar.loss(loss, self.method.ranks(self.adapted))
        self._loss_sum.zero_()
        self._steps_in_sum = 0

    def _mean_over_processes(self, value: torch.Tensor) -> float:
        return float(self.accelerator.reduce(value, reduction="mean"))

    def _diverged(self) -> bool:
        """Whether some loss so far was not finite, on any process; the step is the first such one."""
        step = int(self.accelerator.gather(self._bad_step.reshape(1)).min())
        if step == NEVER:
            return False
        self._pause()
        self.outcome.status = "diverged"
        self.outcome.error = f"the loss is not finite at step {step}: {REMEDY}"
        return True

    def _evaluation_diverged(self) -> bool:
        """Whether the last evaluation's loss is not finite: no training step shows what the very last update did."""
        result = self.outcome.last
        if result is None or all(math.isfinite(loss) for loss in result["eval_loss"].values()):
            return False
        self.outcome.status = "diverged"
        self.outcome.error = f"the evaluation's loss is not finite after step {result['step']}: {REMEDY}"
        return True

    def _seconds_so_far(self) -> float:
        return self.outcome.train_seconds + time.perf_counter() - self._began

    def _pause(self) -> None:
        """Stop the training clock, once the device has done what it was given."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        self.outcome.train_seconds = self._seconds_so_far()
        self._began = time.perf_counter()

    def _evaluate(self) -> None:
        """Score every evaluation split; keep the result as the last one, and as the best one where it is."""
        began = time.perf_counter()
        outcome = self.outcome
        outcome.train_loss = self._mean_over_processes(self._epoch_loss_sum / max(1, self._steps_in_epoch))
        result: dict[str, Any] = {
            "step": outcome.steps,
            "epoch": self._epoch_now(),
            "train_loss": outcome.train_loss,
        }
        counts = gather_object([self._tokens])
        outcome.tokens = {name: sum(count[name] for count in counts) for name in self._tokens}
        result["eval_loss"], predictions, scores = self._scores()
        ranks = self.method.ranks(self.adapted)
        result |= scores
        if ranks:
            result["ranks"] = {"min": min(ranks.values()), "max": max(ranks.values()), "total": sum(ranks.values())}
        seconds = time.perf_counter() - began
        result["eval_seconds"] = round(seconds, 3)
        outcome.eval_seconds += seconds
        outcome.history.append(result)
        outcome.last = result
        main = self.task.main_metric
        if outcome.best is None or result[main] > outcome.best[main]:
            outcome.best = result
        self._write({"kind": "eval", **result})
        with shared_failure():
            if self._predictions is not None:
                labels = {split.name: split.labels for split in self.task.evaluation}
                self._predictions.keep(outcome.steps, predictions, labels, best=outcome.best is result)
        self._bar.evaluation(outcome.steps, result["epoch"], outcome.train_loss, result[main], ranks)

    def _scores(self) -> tuple[dict[str, float], dict[str, list[Any]], dict[str, float]]:
        """Every evaluation split's loss and predictions, and the metrics of all."""
        losses: dict[str, float] = {}
        predictions: dict[str, list[Any]] = {}
        scores: dict[str, float] = {}
        self.model.eval()
        for split in self.task.evaluation:
            losses[split.name], predictions[split.name] = self._predict(split)
            scores |= self.task.score(split, predictions[split.name])
        self.model.train()
        return losses, predictions, scores | self.task.aggregate(scores)

    def _main_score(self) -> float:
        """The main metric of the model as it is, for a method that chooses by it."""
        return self._scores()[2][self.task.main_metric]

    @torch.no_grad()
    def _predict(self, split: Split) -> tuple[float, list[Any]]:
        """The split's mean loss and its predictions in order, computed by all processes together."""
        batches = batching.evaluation_batches(split.lengths, self.settings.eval_batch_size)
        mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        # All make as many passes, which a sharded base needs: who has no batch left passes the first one for nothing.
        rounds = math.ceil(len(batches) / self.accelerator.num_processes)
        loader = self._loader(split.examples, [*mine, *[batches[0]] * (rounds - len(mine))])
        losses, predictions = [], []
        for number, batch in enumerate(loader):
            told = largest(self._stop.number or 0)
            if told:
                self._leave_evaluation(told)
            with self.accelerator.autocast():  # a pass that goes round the model's own forward, as generating does
                loss, predicted = self.task.predict(self.model, self._to_device(batch))
            if number < len(mine):
                losses.append(loss.float() * len(mine[number]))
                predictions.append(predicted)
        flat = [i for indices in mine for i in indices]
        values = torch.cat(predictions).tolist() if predictions else []
        pairs = gather_object(list(zip(flat, values, strict=True)))
        total_loss = sum(gather_object([float(torch.stack(losses).sum()) if losses else 0.0]))
        ordered = [value for _, value in sorted(pairs, key=lambda pair: pair[0])]
        return total_loss / len(split), ordered

    def _leave_evaluation(self, number: int) -> None:
        """A signal came in an evaluation: it is begun anew when the run goes on."""
        self._began = time.perf_counter()  # no time of training
        if self.outcome.steps < self.total_steps:  # else there is a checkpoint of this moment
            self._keep_if_possible()
        raise Interrupted(number)

    def _write(self, row: dict[str, Any]) -> None:
        with shared_failure():
            if self._metrics_file is not None:
                self._metrics_file.write(row)
        self.accelerator.log(scalars(row), step=row["step"])
