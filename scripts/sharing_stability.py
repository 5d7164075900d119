"""Measure how stable E²LoRA's sharing plans are over samples of the data, and whether the two RMI rules agree.

    python scripts/sharing_stability.py task=glue/cola model=local model.path=DIR task.data_dir=DIR
    python scripts/sharing_stability.py --samples 3 --batches 1,4,8 task=images/gtsrb model=local model.path=DIR …

The arguments after the options are those of `flexlora-run`. Each sample takes the next batches of the first epoch. For
each number of batches and each rule of similarity the script prints the intervals of every module type, the ranks of
both entropies, and the number of module types whose intervals are equal in all samples.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.utils import set_seed
from hydra import compose, initialize_config_dir

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.settings import register_schemas, resolve
from flexlora.sharing import SharingOptions, SharingPlan, gradient_statistics, plan_of
from flexlora.sharing.plan import find_targets, linear_shape
from flexlora.tasks import load_task
from flexlora.training.loader import TaskLoader

RULES = ("rmi", "rmi_scale_free")


def plans(overrides: list[str], samples: int, counts: list[int]) -> Iterator[tuple[int, list[dict[str, SharingPlan]]]]:
    """Yield each number of batches, and for each sample the plan of every rule, with both entropies for the ranks."""
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        settings, _ = resolve(compose("config", overrides=["method=e2lora", *overrides]))
    set_seed(settings.seed)
    task = load_task(settings.task)
    backbone = load_backbone(settings.model, task.num_labels)
    task.preprocess(backbone.processor)
    if backbone.target_modules is None:
        raise UserError("this architecture has no default modules: name them in method.target_modules")
    targets = find_targets(backbone.model, settings.method.fields["target_modules"] or backbone.target_modules)
    loader = TaskLoader(task, settings.training, Accelerator(cpu=True), settings.data_seed)
    weights = {name: module.weight for name, module in targets.items()}
    shapes = {name: linear_shape(module) for name, module in targets.items()}
    r = settings.method.fields["r"]
    for count in counts:
        batches, found = loader.first_batches(), []
        for _ in range(samples):
            part = list(itertools.islice(batches, count))
            statistics = gradient_statistics(backbone.model, weights, part, task.loss)
            found.append(
                {
                    f"{rule} {entropy}": plan_of(
                        statistics, shapes, r, SharingOptions(similarity=rule, rank_entropy=entropy), count
                    )
                    for rule in RULES
                    for entropy in ("literal", "information")
                }
            )
        yield count, found


def shapes_of(plan: SharingPlan) -> list[list[int]]:
    return [[len(interval.modules) for interval in kind.intervals] for kind in plan.types]


def show(count: int, samples: list[dict[str, SharingPlan]]) -> None:
    layers = len(samples[0][f"{RULES[0]} literal"].ranks)
    print(f"\n{count} batches, {len(samples)} samples, {layers} layers")
    for rule in RULES:
        intervals = [shapes_of(sample[f"{rule} literal"]) for sample in samples]
        equal = sum(all(other[at] == kind for other in intervals) for at, kind in enumerate(intervals[0]))
        totals = ", ".join(str(sum(map(len, found))) for found in intervals)
        print(f"  {rule}: intervals {totals}; equal in all samples: {equal} of {len(intervals[0])} module types")
    agree = [
        sum(one == two for one, two in zip(*(shapes_of(sample[f"{rule} literal"]) for rule in RULES), strict=True))
        for sample in samples
    ]
    print(f"  module types in which both rules agree: {', '.join(map(str, agree))}")
    for entropy in ("literal", "information"):
        print(f"  first sample, {RULES[0]}, ranks by the {entropy} entropy:")
        for line in str(samples[0][f"{RULES[0]} {entropy}"]).splitlines():
            print(f"    {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--batches", default="1,8", help="numbers of batches of a sample, separated by commas")
    options, overrides = parser.parse_known_args()
    try:
        for count, samples in plans(overrides, options.samples, [int(n) for n in options.batches.split(",")]):
            show(count, samples)
    except (UserError, ValueError) as error:
        print(f"sharing_stability: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
