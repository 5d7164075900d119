"""Training settings, and the loop on a model of one linear."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from flexlora.methods import Method
from flexlora.settings import LrScheduler, Precision, TrainingSettings
from flexlora.tasks import Split, Task
from flexlora.training.loop import Loop


def training(batch_size: int, accumulation: int = 1, epochs: int = 3, max_steps: int | None = None) -> TrainingSettings:
    return TrainingSettings(
        epochs=epochs,
        max_steps=max_steps,
        learning_rate=1e-3,
        batch_size=batch_size,
        eval_batch_size=8,
        gradient_accumulation=accumulation,
        weight_decay=0.0,
        warmup_ratio=0.1,
        warmup_steps=None,
        max_grad_norm=1.0,
        precision=Precision.fp32,
        eval_every=None,
        log_every=1,
        count_flops=False,
    )


class Regression(Task):
    """Mean squared error of one linear; evaluations are scored by a script, so that best and last can differ."""

    name, main_metric, num_labels, provenance, subset = "regression", "score", 1, {}, False

    def __init__(self, examples: int, scores: list[float]) -> None:
        draw = torch.Generator().manual_seed(0)
        rows = [{"x": torch.randn(3, generator=draw), "y": torch.randn((), generator=draw)} for _ in range(examples)]
        self.train = Split("train", rows, [1 + i % 5 for i in range(examples)])
        self.evaluation = [Split("validation", rows[:5], [3, 1, 5, 2, 4])]
        self.scores = iter(scores)
        self.predictions: list[list[float]] = []

    def padded_size(self, batch):
        return 3

    def aggregate(self, scores):
        return {"doubled": 2 * scores["score"]}

    def collate(self, examples):
        return {key: torch.stack([example[key] for example in examples]) for key in ("x", "y")}

    def loss(self, model, batch):
        return ((model(batch["x"]).squeeze(-1) - batch["y"]) ** 2).mean()

    def predict(self, model, batch):
        return self.loss(model, batch), model(batch["x"]).squeeze(-1)

    def score(self, split, predictions):
        self.predictions.append(predictions)
        return {"score": next(self.scores)}


class Sgd(Method):
    """Plain gradient descent, which shows a gradient as it is, and a diary of the hooks."""

    def __init__(self) -> None:
        self.diary: list[tuple[str, int]] = []
        self.rates: list[float] = []

    def optimizer(self, groups, learning_rate, weight_decay):
        return torch.optim.SGD(groups, lr=learning_rate)

    def attach(self, model, optimizer):
        optimizer.register_step_pre_hook(lambda o, *_: self.rates.append(o.param_groups[0]["lr"]))
        self.diary.append(("attach", 0))

    def regularise(self, model):
        self.diary.append(("regularise", len(self.rates)))

    def after_step(self, step, optimizer):
        self.diary.append(("after_step", step))

    def finish(self, model):
        self.diary.append(("finish", len(self.rates)))


def settings(**values) -> TrainingSettings:
    given = {
        "epochs": 1, "max_steps": None, "learning_rate": 0.1, "batch_size": 4, "eval_batch_size": 2,
        "gradient_accumulation": 1, "weight_decay": 0.0, "warmup_ratio": 0.0, "max_grad_norm": None,
        "warmup_steps": None, "lr_scheduler": LrScheduler.linear, "min_lr_rate": 0.0,
        "precision": Precision.fp32, "tf32": False, "shard_base": False, "gradient_checkpointing": False,
        "eval_every": None,
        "checkpoint_every": None, "log_every": 2, "count_flops": False,
    }  # fmt: skip
    return TrainingSettings(**{**given, **values})


def loop(task, method, total_steps: int, model: nn.Module | None = None, files=None, **values) -> Loop:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    torch.manual_seed(0)
    model = model or nn.Linear(3, 1)
    return Loop(
        model, task, method, settings(**values), Accelerator(cpu=True),
        total_steps=total_steps, data_seed=0, **(files or {}),
    )  # fmt: skip
