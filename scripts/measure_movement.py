"""Measure how far each optimizer step moves ΔW, and which factor moves it: A and B of LoRA, P, λ and Q of FlexLoRA.

    python scripts/measure_movement.py --methods lora,adalora,flexlora task=glue/cola model=local model.path=DIR …
    python scripts/measure_movement.py --methods lora,flexlora+method.lambda_lr_ratio=auto --at 1,10 task=glue/cola …

The arguments after the options are those of `flexlora-run`; a method's own follow its name after a `+`. Each method is
trained by the runner's own loop on the same batches. At the steps of `--at`, the script prints the Frobenius norm of
the change of ΔW, as the root of its mean square over all adapted linears: that of the whole step, and that of the step
in which only one factor moves. The last column is the whole step's, divided by the first method's.
"""

import argparse
import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from hydra import compose, initialize_config_dir
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.settings import register_schemas, resolve
from flexlora.tasks import load_task
from flexlora.training.configuration import configure
from flexlora.training.loop import Loop
from flexlora.training.plan import make_method, plan_steps

WHOLE = "whole step"
ADAPTER = "default"


class Measured(Exception):
    """All steps are measured, so the training need not go on."""


class Meter:
    """Measures a step between two hooks of the optimizer."""

    def __init__(self, model: nn.Module, at: list[int]) -> None:
        self.at = at
        self.step = 0
        self.layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer) and _factors(layer)]
        self.moved: dict[int, dict[str, float]] = {}

    def before(self, *_: object) -> None:
        self.step += 1
        if self.step in self.at:
            self._factors = [{name: p.detach().clone() for name, p in _factors(layer).items()} for layer in self.layers]

    def after(self, *_: object) -> None:
        if self.step not in self.at:
            return
        squares: dict[str, list[float]] = defaultdict(list)
        for layer, old in zip(self.layers, self._factors, strict=True):
            new = {name: p.detach().clone() for name, p in _factors(layer).items()}
            start = _delta(layer, old)
            squares[WHOLE].append(float((_delta(layer, new) - start).square().sum()))
            for name in old:
                only = {**old, name: new[name]}
                squares[name].append(float((_delta(layer, only) - start).square().sum()))
            _delta(layer, new)
        self.moved[self.step] = {name: (sum(found) / len(found)) ** 0.5 for name, found in squares.items()}
        if self.step == max(self.at):
            raise Measured


def _factors(layer: BaseTunerLayer) -> dict[str, nn.Parameter]:
    """Return the trained factors of the adapter in a linear, by the name that the tuner gives them."""
    base = {id(p) for p in layer.get_base_layer().parameters()}
    return {name.split(".")[0]: p for name, p in layer.named_parameters() if p.requires_grad and id(p) not in base}


@torch.no_grad()
def _delta(layer: BaseTunerLayer, factors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Set the factors, and return ΔW."""
    for name, parameter in _factors(layer).items():
        parameter.copy_(factors[name])
    delta: torch.Tensor = layer.get_delta_weight(ADAPTER)
    return delta.clone()


def measure(overrides: list[str], at: list[int]) -> dict[int, dict[str, float]]:
    """Train to the last step of `at`, and return the movement at each of them.

    Raises:
        UserError: the settings, the data or the model are wrong, or the method has no factors.
    """
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        settings, _ = resolve(compose("config", overrides=[*overrides, "training.eval_every=0"]))
    set_seed(settings.seed)
    task = load_task(settings.task)
    backbone = load_backbone(settings.model, task.num_labels)
    task.preprocess(backbone.processor)
    steps = plan_steps(settings.training, len(task.train))
    method, _ = make_method(settings, backbone, steps.total)
    accelerator = Accelerator(cpu=True)
    configure(method, backbone.model, task, settings, accelerator)
    model = method.wrap(backbone.model)
    loop = Loop(
        model, task, method, settings.training, accelerator, total_steps=steps.total, data_seed=settings.data_seed
    )
    meter = Meter(model, at)
    if not meter.layers:
        raise UserError(f"{settings.method.name} has no factors whose movement could be measured")
    loop.optimizer.register_step_pre_hook(meter.before)
    loop.optimizer.register_step_post_hook(meter.after)
    with contextlib.suppress(Measured):
        loop.run()
        raise UserError(f"the training ends after {steps.total} steps: lower --at, or raise training.max_steps")
    return meter.moved


def rows(found: dict[str, dict[int, dict[str, float]]], step: int) -> Iterator[str]:
    first = next(iter(found.values()))[step][WHOLE]
    for name, moved in found.items():
        parts = "   ".join(f"{factor} {value:.3g}" for factor, value in moved[step].items() if factor != WHOLE)
        yield f"  {name:<60} {moved[step][WHOLE]:.3g}   ({parts})   {moved[step][WHOLE] / first:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="lora,adalora,flexlora", help="separated by commas")
    parser.add_argument("--at", default="1,2,10,50", help="optimizer steps, separated by commas")
    options, overrides = parser.parse_known_args()
    at = sorted({int(step) for step in options.at.split(",")})
    register_schemas()
    try:
        found = {
            name: measure([f"method={name.split('+')[0]}", *name.split("+")[1:], *overrides], at)
            for name in options.methods.split(",")
        }
    except (UserError, ValueError) as error:
        print(f"measure_movement: {error}", file=sys.stderr)
        return 2
    for step in at:
        print(f"\nstep {step}")
        print("\n".join(rows(found, step)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
