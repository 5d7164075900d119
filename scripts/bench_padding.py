"""Compare batches of similar length, padded to a multiple of 8, with batches padded to the task's maximum length.

    python scripts/bench_padding.py --model DIR --data DIR [--tasks cola rte] [--steps 20] [--rounds 3]

Both ways train LoRA in float32 in the runner's own loop, with the same number of steps and of examples in a step. They
run in turn in one process, so that changes in machine load affect both equally. Compare the ratio. Real tokens are the
tokens without padding.
"""

import argparse
import statistics

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from hydra import compose, initialize_config_dir

from flexlora.conf_path import conf_dir
from flexlora.methods import build_method
from flexlora.models import load_backbone
from flexlora.settings import RunSettings, register_schemas, resolve
from flexlora.tasks import Split, Task, load_task
from flexlora.training.loop import Loop, Outcome
from flexlora.training.plan import run_context


class Static:
    """A task whose batches all have the maximum length. The length of examples does not affect the batches."""

    def __init__(self, task: Task, length: int, pad_token: int) -> None:
        self._task, self._length, self._pad_token = task, length, pad_token
        self.train = Split("train", task.train.examples, [1] * len(task.train))  # equal lengths keep the order shuffled
        self.evaluation = [Split(split.name, split.examples, [1] * len(split)) for split in task.evaluation]

    def __getattr__(self, name: str) -> object:
        return getattr(self._task, name)

    def collate(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = self._task.collate(examples)
        missing = self._length - batch["input_ids"].shape[1]
        fills = {"input_ids": self._pad_token}
        return {
            key: value if value.dim() == 1 else torch.nn.functional.pad(value, (0, missing), value=fills.get(key, 0))
            for key, value in batch.items()
        }


def train(settings: RunSettings, task: Task, steps: int) -> Outcome:
    """Train a new model for `steps` steps and return the outcome. The evaluation at the end has only a few rows."""
    set_seed(0)
    backbone = load_backbone(settings.model, task.num_labels)
    method = build_method(settings.method, run_context(settings, backbone, steps))
    model = method.wrap(backbone.model)
    loop = Loop(model, task, method, settings.training, Accelerator(cpu=True), total_steps=steps, data_seed=0)
    loop.run()
    return loop.outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an encoder")
    parser.add_argument("--data", required=True, help="folder of the classic GLUE download")
    parser.add_argument("--tasks", nargs="+", default=["cola", "rte"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    register_schemas()
    for name in options.tasks:
        chosen = [f"task=glue/{name}", "method=lora", "model=local", f"model.path={options.model}"]
        more = [f"task.data_dir={options.data}", "task.max_eval_rows=8"]
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            settings, _ = resolve(compose("config", overrides=[*chosen, *more]))
        task = load_task(settings.task)
        tokenizer = load_backbone(settings.model, task.num_labels).processor
        task.preprocess(tokenizer)
        longest = min(settings.task.max_length, tokenizer.model_max_length)
        ways: dict[str, Task] = {"by length": task, "static": Static(task, longest, tokenizer.pad_token_id)}
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        shares: dict[str, float] = {}
        examples = options.steps * settings.training.batch_size
        mean_length = sum(task.train.lengths) / len(task.train)
        for _ in range(options.rounds):
            for way, data in ways.items():
                outcome = train(settings, data, options.steps)
                # The two ways draw slightly different examples; both draws have the mean length of the split.
                speeds[way].append(examples * mean_length / outcome.train_seconds)
                padded = outcome.tokens["padded"] if outcome.tokens else 0
                real = outcome.tokens["real"] if way == "by length" and outcome.tokens else examples * mean_length
                shares[way] = 1 - real / padded
        for way in ways:
            each = " ".join(f"{speed:.0f}" for speed in speeds[way])
            print(f"{name}  {way:9}  padding {shares[way]:6.1%}  real tokens a second: {each}")
        ratio = statistics.median(a / b for a, b in zip(speeds["by length"], speeds["static"], strict=True))
        print(f"{name}  by length / static (to {longest}): {ratio:.2f}")


if __name__ == "__main__":
    main()
