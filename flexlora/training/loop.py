"""The loop that trains every method on every task. It knows no method and no task by name."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flexlora.errors import UserError
from flexlora.methods import Method
from flexlora.settings import TrainingSettings
from flexlora.tasks import Task
from flexlora.training.checkpoint import (
    Checkpoints,
    changing_tensors,
    random_state,
    restore_random_state,
    restore_tensors,
)
from flexlora.training.clock import TrainingClock
from flexlora.training.distributed import largest, shared_failure
from flexlora.training.evaluation import Evaluator
from flexlora.training.inputs import refuse_other
from flexlora.training.journal import Journal
from flexlora.training.loader import TaskLoader
from flexlora.training.outcome import Diverged, Outcome
from flexlora.training.plan import warmup_steps
from flexlora.training.progress import Progress
from flexlora.training.running_loss import RunningLoss
from flexlora.training.schedule import warmup_and_decay
from flexlora.training.signals import Interrupted, StopRequest
from flexlora.training.stopped_time import running_seconds
from flexlora.training.trackers import scalars
from flexlora.tuner.sharding import average_gradients, shard_base

log = logging.getLogger("flexlora")

Batches = list[dict[str, torch.Tensor]]


class Loop:
    """One training. `run` executes all steps and evaluations. `outcome` is valid whenever it stops."""

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
        journal: Journal | None = None,
        checkpoints: Checkpoints | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.task = task
        self.method = method
        self.settings = settings
        self.accelerator = accelerator
        self.total_steps = total_steps
        self.outcome = Outcome()
        self._journal = journal or Journal()
        self._checkpoints = checkpoints
        self._identity = {"data": task.provenance, **(identity or {})}
        self._stop = StopRequest()
        self._clock = TrainingClock(self.outcome, accelerator.device)
        self.loader = TaskLoader(task, settings, accelerator, data_seed)

        self.adapted = self._place(model)
        self.method.prepare(self.adapted, self.loader.first_batches(), self.task.loss)
        groups = method.parameter_groups(self.adapted, settings.learning_rate)
        self.optimizer = method.optimizer(groups, settings.learning_rate, settings.weight_decay)
        warmup = warmup_steps(total_steps, settings)
        factor = warmup_and_decay(total_steps, warmup, settings.lr_scheduler, settings.min_lr_rate)
        self.scheduler = method.scheduler(self.optimizer, factor)
        # DDP averages the gradients of several processes. With a sharded base, `average_gradients` does.
        self.model = accelerator.prepare_model(
            self.adapted, device_placement=False, evaluation_mode=settings.shard_base
        )
        self.stepper = accelerator.prepare_optimizer(self.optimizer)
        method.attach(self.adapted, self.optimizer)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.evaluator = Evaluator(self.model, task, self.loader, accelerator, self._leave_evaluation_if_told)

        self._loss = RunningLoss(accelerator)
        self._epoch = 0
        self._steps_in_epoch = 0
        self._evaluation_due = False
        self._tokens = {"real": 0, "padded": 0}

    def _place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device, or shard its base over the processes if the settings say so; return it."""
        if not self.settings.shard_base:
            return model.to(self.accelerator.device)
        try:
            shard_base(model)
        except ValueError as error:
            raise UserError(f"training.shard_base: {error} Take training.shard_base=false.") from error
        return model

    def run(self) -> Outcome:
        """Train, evaluate and return the outcome. A loss that is not finite ends it with status `diverged`.

        Raises:
            Interrupted: SIGINT or SIGTERM came. The step was finished and a checkpoint was written.
        """
        outcome, shown = self.outcome, self.accelerator.is_main_process
        self._bar = Progress(self.total_steps, self.task.main_metric, done=outcome.steps, visible=shown)
        try:
            with self._stop:
                self._train()
            outcome.status, outcome.error = "done", None
        except Diverged as error:
            outcome.status, outcome.error = "diverged", str(error)
        finally:
            self._bar.close()
        return outcome

    def _train(self) -> None:
        """Take all remaining steps. After each one, log, evaluate and write a checkpoint as the settings say."""
        self.model.train()
        self._clock.restart()
        if self._evaluation_due:  # the run was stopped during an evaluation
            self._evaluate_and_keep()
        while self.outcome.steps < self.total_steps:
            if self._steps_in_epoch == 0:
                self._loss.begin_epoch()
            for indices, batches in self.loader.epoch_steps(self._epoch, done=self._steps_in_epoch):
                with self._counted():
                    self._step(indices, batches)
                self._after_step()
                if self.outcome.steps == self.total_steps:
                    return
            self._epoch, self._steps_in_epoch = self._epoch + 1, 0

    def _step(self, indices: list[list[int]], batches: Batches) -> None:
        """Take one optimizer step with the gradient of the mean loss over all its examples, on all processes."""
        loss = self._accumulate(indices, batches)
        self._finish_gradients()
        self.method.regularise(self.adapted)
        self.stepper.step()
        self.outcome.count_step(skipped=self.stepper.step_was_skipped)
        if not self.stepper.step_was_skipped:
            self.method.after_step(self.outcome.steps, self.optimizer)
            self.scheduler.step()
        self.stepper.zero_grad(set_to_none=True)
        self._loss.add(loss, self.outcome.steps)
        self._steps_in_epoch += 1
        self._write_events()
        self._bar.step()

    def _accumulate(self, indices: list[list[int]], batches: Batches) -> torch.Tensor:
        """Add up the gradients of this process's batches, and return their loss."""
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        examples = sum(len(batch) for batch in indices)
        self._add_tokens(indices[mine::processes], batches)
        loss = self._loss.zero()
        for number, batch in enumerate(batches):
            # Batch sizes differ by one, and gradients are averaged over processes: weight by examples.
            weight = len(indices[number * processes + mine]) * processes / examples
            is_last = number == len(batches) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss += self._backward(batch, weight)
        return loss

    def _backward(self, batch: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
        loss = self.task.loss(self.model, self.loader.to_device(batch)) * weight
        self.accelerator.backward(loss)
        return loss.detach().float()

    def _finish_gradients(self) -> None:
        """Average the gradients over a sharded base's processes. Then clip them, or undo the loss scaling."""
        if self.settings.shard_base:
            average_gradients(self.trained)
        if self.settings.max_grad_norm is None:
            self.accelerator.unscale_gradients()  # a penalty is added to unscaled gradients
            return
        norm = self.accelerator.clip_grad_norm_(self.trained, self.settings.max_grad_norm)
        if norm is not None:
            self._loss.grad_norm = norm

    def _add_tokens(self, indices: list[list[int]], batches: Batches) -> None:
        lengths = self.task.train.lengths
        for chosen, batch in zip(indices, batches, strict=True):
            self._tokens["real"] += sum(lengths[i] for i in chosen)
            self._tokens["padded"] += self.task.padded_size(batch) * len(chosen)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the operations of the first step if the settings ask for it. No clock includes its time."""
        if not self.settings.count_flops or self.outcome.steps > 0:
            yield
            return
        self._clock.pause()
        with FlopCounterMode(display=False) as counter:
            yield
        self._clock.restart()
        self.outcome.flops = counter.get_total_flops()

    def _after_step(self) -> None:
        """After a step, log, stop, evaluate and write a checkpoint as the settings and signals say."""
        steps, settings = self.outcome.steps, self.settings
        at_end = steps == self.total_steps
        if at_end or steps % settings.log_every == 0:
            self._log()
            self._check_losses()
        every = settings.eval_every
        end_of_epoch = self._steps_in_epoch == self.loader.epoch_size
        due = end_of_epoch if every is None else every > 0 and steps % every == 0
        self._evaluation_due = at_end or due
        self._leave_if_told()
        if self._evaluation_due:
            self._evaluate_and_keep()
        elif settings.checkpoint_every is not None and steps % settings.checkpoint_every == 0:
            self._keep()

    def _check_losses(self) -> None:
        """Stop the clock and raise `Diverged` if a loss so far is not finite."""
        try:
            self._loss.check()
            self.outcome.check_skips(self.total_steps)
        except Diverged:
            self._clock.pause()
            raise

    def _log(self) -> None:
        """Write a line of metrics.jsonl. The host waits for the device only here and in evaluations."""
        loss = self._loss.mean_of_line()
        row = {
            "kind": "train",
            "step": self.outcome.steps,
            "epoch": self._epoch_now(),
            "loss": loss,
            "grad_norm": float(self._loss.grad_norm),
            "learning_rate": self.scheduler.get_last_lr()[0],
            "train_seconds": round(self._clock.seconds(), 3),
        }
        self._write(row)
        self.outcome.losses.append((self.outcome.steps, loss))
        self._bar.loss(loss, self.method.ranks(self.adapted))

    def _epoch_now(self) -> float:
        return round(self._epoch + self._steps_in_epoch / self.loader.epoch_size, 4)

    def _write(self, row: dict[str, Any]) -> None:
        self._journal.metrics(row)
        self.accelerator.log(scalars(row), step=row["step"])

    def _write_events(self) -> None:
        """Write a line of ranks.jsonl for each rank event of this step."""
        for event in self.method.rank_events():
            self.outcome.events.append(event)
            self._journal.event(event)

    def _evaluate_and_keep(self) -> None:
        """Evaluate, and write a checkpoint: before the last evaluation, and after every other one."""
        self._clock.pause()
        self._check_losses()
        at_end = self.outcome.steps == self.total_steps
        if at_end:
            self._keep()  # the last evaluation may be long; after it the run is done and needs no checkpoint
            self.method.search(self.adapted, self._main_score, self._keep)
            self.method.finish(self.adapted)
        self._evaluate()
        self._evaluation_due = False
        self._clock.restart()
        if not at_end:
            self._keep()

    def _evaluate(self) -> None:
        """Evaluate. Keep the result as the last one, and also as the best one if it is the best."""
        began = running_seconds()
        outcome = self.outcome
        outcome.train_loss = self._loss.mean_of_epoch(self._steps_in_epoch)
        counts = gather_object([self._tokens])
        outcome.tokens = {name: sum(count[name] for count in counts) for name in self._tokens}
        found = self.evaluator.evaluate()
        result: dict[str, Any] = {
            "step": outcome.steps,
            "epoch": self._epoch_now(),
            "train_loss": outcome.train_loss,
            "eval_loss": found.losses,
            **found.scores,
        }
        ranks = self.method.ranks(self.adapted)
        if ranks:
            result["ranks"] = {"min": min(ranks.values()), "max": max(ranks.values()), "total": sum(ranks.values())}
        seconds = running_seconds() - began
        result["eval_seconds"] = round(seconds, 3)
        outcome.eval_seconds += seconds
        main = self.task.main_metric
        is_best = outcome.add_evaluation(result, main)
        self._write({"kind": "eval", **result})
        self._journal.predictions(outcome.steps, found.predictions, self.task.evaluation, best=is_best)
        self._bar.evaluation(outcome.steps, result["epoch"], outcome.train_loss, result[main], ranks)
        found.check(outcome.steps)

    def _main_score(self) -> float:
        """Evaluate the model and return its main metric, for a method that chooses by it."""
        return self.evaluator.evaluate().scores[self.task.main_metric]

    def _leave_if_told(self) -> None:
        """Write a checkpoint and raise `Interrupted` if a signal came to any process."""
        number = largest(self._stop.number or 0)
        if number:
            self._keep_if_possible()
            raise Interrupted(number)

    def _leave_evaluation_if_told(self) -> None:
        """Do the same as `_leave_if_told` in an evaluation, which starts again when the run resumes."""
        number = largest(self._stop.number or 0)
        if number:
            self._clock.restart()  # this time is not training time
            if self.outcome.steps < self.total_steps:  # otherwise there is a checkpoint of this step
                self._keep_if_possible()
            raise Interrupted(number)

    def _keep_if_possible(self) -> None:
        """Write a checkpoint before the run ends. A full disk, or a loss that is not finite, is only a warning."""
        try:
            self._keep()
        except Diverged as error:
            log.warning("no checkpoint of step %d: %s", self.outcome.steps, error)
        except OSError as error:
            log.warning("no checkpoint of step %d: %s", self.outcome.steps, error.strerror or error)

    def _keep(self) -> None:
        """Write a checkpoint of the current step.

        Raises:
            Diverged: a loss so far is not finite.
        """
        if self._checkpoints is None:
            return
        self._clock.pause()
        self._check_losses()
        state = self.state_dict()
        with shared_failure():
            if self.accelerator.is_main_process:
                self._checkpoints.save(self.outcome.steps, changing_tensors(self.adapted), state)
        self._clock.restart()

    def state_dict(self) -> dict[str, Any]:
        """Return the outcome so far, and all that later steps depend on, except the model. Every process must call it.

        It has the positions where `metrics.jsonl` and `ranks.jsonl` end, not their content.
        """
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "method": self.method.state_dict(),
            "random": gather_object([random_state()]),
            "epoch": self._epoch,
            "steps_in_epoch": self._steps_in_epoch,
            "evaluation_due": self._evaluation_due,
            "sums": gather_object([self._loss.state_dict()]),  # each process sums its own share of the batches
            "tokens": gather_object([self._tokens]),
            "identity": self._identity,
            "files": self._journal.positions(),
            "outcome": self.outcome.kept(),
        }

    def load_state_dict(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Continue from `state`, which `state_dict` returned, and `tensors`, which `changing_tensors` returned.

        Raises:
            UserError: the state is of a run with other settings, data or weights.
            ValueError: the state is of another model.
        """
        mine = self.accelerator.process_index
        with shared_failure():
            if self.accelerator.is_main_process:
                refuse_other(state["identity"], self._identity)
        restore_tensors(self.adapted, tensors)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.method.load_state_dict(state["method"])
        restore_random_state(state["random"][mine])
        self._epoch, self._steps_in_epoch = state["epoch"], state["steps_in_epoch"]
        self._evaluation_due = state["evaluation_due"]
        self._loss.load_state_dict(state["sums"][mine])
        self._tokens = state["tokens"][mine]
        self.outcome.take(state["outcome"])
        self._journal.read_back(self.outcome)
        self.outcome.resumed_at = [*self.outcome.resumed_at, self.outcome.steps]
