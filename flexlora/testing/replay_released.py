"""Replay a training that the released code of FlexLoRA ran, and compare every event, the final ranks and every loss.

    python scripts/replay_released.py ../shared/data/released_trace/S --model ../shared/models/tiny-deberta-trace
    python scripts/replay_released.py FOLDER --model DIR --set eps_before_correction=false

FOLDER has a recording: settings.json, trace.json and tensors.safetensors. The training is `method=flexlora_released` in
the loop of `flexlora-run`, with the recorded batches and the recorded starting values. Each new direction gets the
recorded vectors, because new vectors are random. The exit code is 0 if all events and final ranks are identical and
no loss differs by more than --tolerance. --set changes a setting of the method, to measure its effect.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from yaml import YAMLError, safe_load

from flexlora import RankEvent
from flexlora.conf_path import conf_dir
from flexlora.errors import UserError, one_line
from flexlora.methods import RunContext
from flexlora.methods.flexlora_released import FlexLoraReleasedMethod, build
from flexlora.models import load_backbone
from flexlora.settings import Dtype, LrScheduler, ModelSettings, Precision, Schedule, TrainingSettings
from flexlora.settings.recipes import method_fields
from flexlora.tasks import Split, Task
from flexlora.testing.released_trace import FACTORS, Move, Trace, read_trace
from flexlora.training.batching import epoch_batches
from flexlora.training.loop import Loop
from flexlora.training.outcome import Outcome
from flexlora.training.progress import quiet_libraries
from flexlora.tuner import packing
from flexlora.tuner.names import PEFT_PREFIX, plain_name
from flexlora.tuner.orthogonality import orthogonality_error

ADAPTER = "default"
TOLERANCE = 3e-5
UNMOVED = Move(gone=[], grown=0, q=None, p=None)


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes:
        events: whether each recorded event is identical here, by its step.
        extra: the steps of events that happened only here.
        ranks: whether each matrix has the recorded final rank, by its name.
        loss_difference: the largest absolute difference of a loss. It is infinite if a step did not take place here.
        parameter_difference: the largest absolute difference of a final parameter. It is infinite if the ranks differ.
    """

    events: dict[int, bool]
    extra: list[int]
    ranks: dict[str, bool]
    loss_difference: float
    parameter_difference: float

    @property
    def identical(self) -> bool:
        """Whether all events and final ranks are identical."""
        return all(self.events.values()) and all(self.ranks.values()) and not self.extra

    def __str__(self) -> str:
        same, ranks = sum(self.events.values()), sum(self.ranks.values())
        final = "all" if ranks == len(self.ranks) else f"{ranks} of {len(self.ranks)}"
        extra = f" ({len(self.extra)} more happened here)" if self.extra else ""
        return (
            f"{same} of {len(self.events)} events{extra} and {final} final ranks identical, "
            f"largest loss difference {self.loss_difference:.1e}"
        )


class RecordedTask(Task):
    """A task whose examples are the recorded batches, in the order in which the loop takes them."""

    name, main_metric, num_labels, provenance, subset = "recorded", "nothing", None, {}, False

    def __init__(self, trace: Trace) -> None:
        self.orthogonality = trace.settings.orth_reg_coef
        lengths = [1] * len(trace.batches)
        turns = epoch_batches(lengths, 1, seed=0, epoch=0)
        batches = {turn: batch for (turn,), batch in zip(turns, trace.batches, strict=True)}
        self.train = Split("train", [batches[turn] for turn in sorted(batches)], lengths)
        self.evaluation = []

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        (batch,) = examples
        return batch

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the model's loss plus the penalty. The released code clips the gradient of their sum."""
        loss: torch.Tensor = model(**batch).loss
        if self.orthogonality == 0:
            return loss
        layers = [layer for _, layer in packing.flexlora_layers(model, ADAPTER)]
        vectors = [
            (layer.flexlora_P[ADAPTER], layer.flexlora_Q[ADAPTER], layer.flexlora_active[ADAPTER]) for layer in layers
        ]
        return loss + self.orthogonality * orthogonality_error(vectors)

    def aggregate(self, scores: dict[str, float]) -> dict[str, float]:
        """Return 0. The loop ends with an evaluation, but a recording has no rows for it."""
        return {self.main_metric: 0.0}


class ReplayedMethod(FlexLoraReleasedMethod):
    """`flexlora_released` that compares each event with the recorded one and then takes the recorded new vectors."""

    def __init__(self, method: FlexLoraReleasedMethod, trace: Trace, say: Callable[[str], None]) -> None:
        super().__init__(method.config, method.schedule, method.behaviours)
        self.identical = dict.fromkeys(trace.events, False)
        self.extra: list[int] = []
        self.ages = {name: list(range(trace.settings.r)) for name in trace.final_ranks}
        """The slots of every matrix's directions, the oldest first. The released code has them in this order."""
        self._trace = trace
        self._say = say
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        # This hook is registered first, so that it runs between the optimizer's step and the event.
        optimizer.register_step_post_hook(lambda *_: self._look())
        super().attach(model, optimizer)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        super().after_step(step, optimizer)
        events = self._allocator.events
        if events and events[-1].step == step:
            self._compare(events[-1])

    @property
    def _allocator(self) -> Any:
        assert self._tuner is not None
        return self._tuner.rank_allocator

    def _look(self) -> None:
        """Store P and the mask of every matrix before an event."""
        if self._allocator.is_due(self._step + 1):
            self._before = [
                (layer.flexlora_P[ADAPTER].detach().clone(), layer.flexlora_active[ADAPTER].clone())
                for layer in self._allocator.layers
            ]

    @torch.no_grad()
    def _compare(self, event: RankEvent) -> None:
        recorded = self._trace.events.get(event.step)
        differing = []
        for name, layer, before in zip(self._allocator.names, self._allocator.layers, self._before, strict=True):
            theirs = UNMOVED if recorded is None else recorded.moves.get(name, UNMOVED)
            p, _, q = layer.factors(ADAPTER)
            old, was_active = before
            changed = (p != old).any(0)
            lost = (changed & was_active).nonzero().flatten().tolist()
            born = (changed & layer.flexlora_active[ADAPTER]).nonzero().flatten().tolist()
            positions = [self.ages[name].index(slot) for slot in lost]
            self.ages[name] = [slot for slot in self.ages[name] if slot not in lost] + born
            if (positions, len(born)) != (theirs.gone, theirs.grown):
                differing.append(f"{name} loses {positions}, gains {len(born)}; recorded {theirs.gone}, {theirs.grown}")
            if born and theirs.q is not None and theirs.p is not None:
                q[born[0]], p[:, born[0]] = theirs.q, theirs.p
        if recorded is None:
            self.extra.append(event.step)
            self._say(f"step {event.step}: the recording has no event here")
            return
        same = not differing and (event.budget, event.ranks) == (recorded.budget, recorded.ranks)
        self.identical[event.step] = same
        moves = f"{len(event.pruned)} directions go, {len(event.grown)} come"
        self._say(
            f"step {event.step}: {moves}: {'identical' if same else '; '.join(differing) or 'b(t) or the ranks differ'}"
        )


def replay(
    path: str,
    model_path: str,
    changed: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Replay:
    """Replay the recording in the folder `path` on the model in the folder `model_path`.

    Args:
        path: the folder of the recording.
        model_path: the folder of the model.
        changed: the settings of `flexlora_released` that get other values.
        say: a function that is called with a line for every event.

    Raises:
        UserError: the recording or the model cannot be read, they do not fit each other, or a setting is invalid.
    """
    trace = read_trace(path)
    backbone = load_backbone(_model_settings(model_path), trace.num_labels)
    method = ReplayedMethod(_method(trace, changed or {}), trace, say)
    model = method.wrap(backbone.model)
    if any(module.p > 0 for module in model.modules() if isinstance(module, nn.Dropout)):
        raise UserError(f"--model: {model_path} has dropout, which is random: set it to 0 in its config.json")
    _start(model, trace)
    # The recording was made on a CPU. Another device would add numbers in another order.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    steps = trace.settings.steps
    loop = Loop(
        model, RecordedTask(trace), method, _training(trace), Accelerator(cpu=True), total_steps=steps, data_seed=0
    )
    outcome = loop.run()
    ranks = method.ranks(model)
    same_ranks = {name: ranks.get(name) == rank for name, rank in trace.final_ranks.items()}
    return Replay(
        events=method.identical,
        extra=method.extra,
        ranks=same_ranks,
        loss_difference=_loss_difference(trace, outcome),
        parameter_difference=_parameter_difference(trace, model, method.ages)
        if all(same_ranks.values())
        else torch.inf,
    )


def _method(trace: Trace, changed: Mapping[str, Any]) -> FlexLoraReleasedMethod:
    settings = trace.settings
    fields = method_fields("flexlora_released", [conf_dir()])
    fields = {name: value for name, value in fields.items() if name not in ("name", "kind")}
    names = ("r", "lora_alpha", "target_modules", "modules_to_save", "tinit", "tfinal", "deltaT")
    fields |= {name: getattr(settings, name) for name in names} | {"init_b": settings.b}
    fields |= changed
    context = RunContext(
        total_steps=settings.steps,
        schedule=Schedule.absolute,
        paper_steps=None,
        seed=0,
        target_modules=None,
        task_type="SEQ_CLS",
    )
    method = build(fields, context)
    assert isinstance(method, FlexLoraReleasedMethod)
    return method


def _model_settings(path: str) -> ModelSettings:
    return ModelSettings(
        name=None,
        kind="sequence_classifier",
        scale="local",
        path=path,
        revision=None,
        use_safetensors=True,
        dtype=Dtype.float32,
        quantization=None,
    )


def _training(trace: Trace) -> TrainingSettings:
    settings = trace.settings
    return TrainingSettings(
        epochs=1,
        max_steps=None,
        learning_rate=settings.learning_rate,
        batch_size=1,  # an example is a recorded batch
        eval_batch_size=1,
        gradient_accumulation=1,
        weight_decay=settings.weight_decay,
        warmup_ratio=0.0,
        warmup_steps=settings.warmup_steps,
        lr_scheduler=LrScheduler.linear,
        min_lr_rate=0.0,
        max_grad_norm=settings.max_grad_norm,
        precision=Precision.fp32,
        tf32=False,
        gradient_checkpointing=False,
        shard_base=False,
        eval_every=0,
        checkpoint_every=None,
        log_every=1,  # so that the loop returns the loss of every step
        count_flops=False,
    )


def _start(model: nn.Module, trace: Trace) -> None:
    """Set every trained parameter to its recorded starting value.

    Raises:
        UserError: the recording's parameters differ from those that the model trains, or have other shapes.
    """
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {key for key in saved if not key.endswith(f".{packing.SLOTS}")}
    start = {}
    for name, value in trace.start.items():
        module, _, factor = name.rpartition(".")
        if factor in FACTORS:
            name = f"{module}.{packing.FACTORS[FACTORS[factor]]}"
            value = value.flatten() if factor == "lora_E" else value
        start[PEFT_PREFIX + name] = value
    strange = sorted(wanted ^ start.keys()) or [key for key in wanted if start[key].shape != saved[key].shape]
    if strange:
        raise UserError(f"the recording is of another model than --model: {strange[0].removeprefix(PEFT_PREFIX)}")
    set_peft_model_state_dict(model, start)


def _loss_difference(trace: Trace, outcome: Outcome) -> float:
    if len(outcome.losses) != len(trace.losses):
        return torch.inf  # the training diverged here
    return max(abs(ours - theirs) for (_, ours), theirs in zip(outcome.losses, trace.losses, strict=True))


def _parameter_difference(trace: Trace, model: nn.Module, ages: dict[str, list[int]]) -> float:
    """Return the largest difference of a final parameter. `ages` has the slots in the order of recorded directions."""
    ours: dict[str, torch.Tensor] = {}
    for full_name, layer in packing.flexlora_layers(model, ADAPTER):
        p, values, q = (factor.detach() for factor in layer.factors(ADAPTER))
        name = plain_name(full_name)
        slots = ages[name]
        ours |= {f"{name}.lora_A": q[slots], f"{name}.lora_E": values[slots, None], f"{name}.lora_B": p[:, slots]}
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    ours |= {name: saved[PEFT_PREFIX + name] for name in trace.end if name not in ours}
    return max(float((ours[name] - value).abs().max()) for name, value in trace.end.items())


def main() -> int:
    """Run the command `python scripts/replay_released.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="folder of the recording")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of the model that was trained")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest loss difference; %(default)s")
    options = parser.parse_args()
    quiet_libraries()
    logging.getLogger("flexlora").setLevel(logging.ERROR)  # loading warns about the missing dropout
    try:
        changed = dict(map(_setting, options.set))
        found = replay(options.folder, options.model, changed, say=print)
    except UserError as error:
        print(f"replay_released.py: {error}", file=sys.stderr)
        return 2
    print(f"final parameters: largest difference {found.parameter_difference:.1e}")
    print(found)
    return 0 if found.identical and found.loss_difference <= options.tolerance else 1


def _setting(text: str) -> tuple[str, Any]:
    """Split `NAME=VALUE`.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    name, is_given, value = text.partition("=")
    if not is_given:
        raise UserError(f"--set {text}: write NAME=VALUE, as in --set eps_before_correction=false")
    try:
        return name, safe_load(value)
    except YAMLError as error:
        raise UserError(f"--set {text}: {one_line(error)}") from error
