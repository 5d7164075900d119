"""A recording of the released code, made by hand for a small BERT: two events that follow from the λ at the start."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertForSequenceClassification

FIRST, SECOND = (f"bert.encoder.layer.{layer}.attention.self.query" for layer in (0, 1))
R, ALPHA, STEPS = 3, 6, 8
SETTINGS = {
    "model": "tiny-bert", "task": "none", "r": R, "lora_alpha": ALPHA, "target_modules": ["query"],
    "modules_to_save": ["classifier"], "b": 1, "weight_decay": 0.01, "max_grad_norm": 1.0, "steps": STEPS,
    "learning_rate": 1e-9, "warmup_steps": 0, "tinit": 1, "tfinal": 1, "deltaT": 2, "orth_reg_coef": 0.0,
}  # fmt: skip
# FIRST has the lower entropy and loses its smallest λ at step 3 and again at step 5. SECOND gains at both.
LAMBDAS = {FIRST: [3.0, 0.1, 0.2], SECOND: [0.5, 0.5, 0.5]}
KEPT = {3: [0, 2], 5: [0]}  # the directions that FIRST has left after the event


def write_trace(folder: Path, model: Path, penalty: float = 0.0) -> dict[str, Any]:
    """Write a recording into `folder`. Returns the content of its trace.json."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw) * 0.3

    base = BertForSequenceClassification.from_pretrained(model, num_labels=2).eval()
    width = base.config.hidden_size
    tensors: dict[str, torch.Tensor] = {}

    def named(key: str, tensor: torch.Tensor) -> dict[str, str]:
        tensors[key] = tensor.clone().contiguous()
        return {"tensor": key}

    factors = {name: (normal(width, R), torch.tensor(values), normal(R, width)) for name, values in LAMBDAS.items()}
    head = {"classifier.weight": normal(2, width), "classifier.bias": normal(2)}
    trace: dict[str, Any] = {"init": _parameters(factors, head, named, "init"), "events": [], "steps": []}
    with torch.no_grad():
        for name, value in head.items():
            base.get_parameter(name).copy_(value)
    plain = {name: base.get_submodule(name).weight.detach().clone() for name in factors}
    for step in range(1, STEPS + 1):
        ids = torch.randint(5, 20, (4, 6), generator=draw)
        batch = {"ids": ids, "mask": torch.ones_like(ids), "tt": torch.zeros_like(ids), "labels": ids[:, 0] % 2}
        loss = _loss(base, plain, factors, batch) + penalty * _orthogonality(factors)
        trace["steps"].append({name: named(f"steps/{step}/{name}", value) for name, value in batch.items()})
        trace["steps"][-1]["loss"] = loss
        if step in KEPT:
            p, values, q = factors[FIRST]
            gone = 1  # its smallest λ is the second of those that it has
            kept = [position for position in range(len(values)) if position != gone]
            factors[FIRST] = p[:, kept], values[kept], q[kept]
            column, row = normal(width), normal(width)
            p, values, q = factors[SECOND]
            factors[SECOND] = (
                torch.cat([p, column[:, None]], 1),
                torch.cat([values, torch.zeros(1)]),
                torch.cat([q, row[None]]),
            )
            grown = {"a": named(f"events/{step}/a", row), "b": named(f"events/{step}/b", column)}
            trace["events"].append(
                {
                    "g": step - 1,
                    "b": 1,
                    "moves": {
                        FIRST: {"gone": [gone], "grown": 0, "a": None, "b": None},
                        SECOND: {"gone": [], "grown": 1, **grown},
                    },
                    "ranks": {name: len(values) for name, (_, values, _) in factors.items()},
                }
            )
    trace["final"] = _parameters(factors, head, named, "final")
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(SETTINGS | {"orth_reg_coef": penalty}), encoding="utf-8")
    (folder / "trace.json").write_text(json.dumps(trace), encoding="utf-8")
    save_file(tensors, folder / "tensors.safetensors")
    return trace


def _parameters(factors: dict[str, Any], head: dict[str, torch.Tensor], named: Any, where: str) -> dict[str, Any]:
    found = {}
    for name, (p, values, q) in factors.items():
        for kind, value in (("lora_A", q), ("lora_E", values[:, None]), ("lora_B", p)):
            found[f"{name}.{kind}"] = named(f"{where}/{name}.{kind}", value)
    return found | {name: named(f"{where}/{name}", value) for name, value in head.items()}


@torch.no_grad()
def _loss(base: nn.Module, plain: dict[str, torch.Tensor], factors: dict[str, Any], batch: dict[str, Any]) -> float:
    """The loss with a dense W + s P diag(λ) Q."""
    for name, (p, values, q) in factors.items():
        base.get_submodule(name).weight.copy_(plain[name] + ALPHA / R * (p * values) @ q)
    output = base(
        input_ids=batch["ids"], attention_mask=batch["mask"], token_type_ids=batch["tt"], labels=batch["labels"]
    )
    return float(output.loss)


def _orthogonality(factors: dict[str, Any]) -> float:
    """The mean over all P and Q of ‖PᵀP - I‖ and ‖QQᵀ - I‖."""
    norms = []
    for p, _, q in factors.values():
        norms += [torch.linalg.norm(gram - torch.eye(len(gram))) for gram in (p.T @ p, q @ q.T)]
    return float(torch.stack(norms).mean())
