"""NOAH's first two stages: train a supernet by random subnets, and search for the best subnet.

Every optimizer step trains a random subnet. After the training, an evolutionary search scores subnets with the
supernet's weights, by the task's main metric on held-out rows. The best subnet is evaluated and saved, together with
`subnet.json`. `method=noah method.subnet=…` trains it from scratch on all rows.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from flexlora.baselines.noah import MODULES, NoahConfig, NoahModel, Subnet
from flexlora.errors import UserError
from flexlora.methods.base import Method, RunContext
from flexlora.methods.evolution import Evolution, Search, SearchSpace
from flexlora.methods.fields import take
from flexlora.methods.peft import PeftMethod, peft_config
from flexlora.tuner.base_config import Checked, setting
from flexlora.tuner.checks import is_whole, require, whole

ADAPTER = "default"
SUBNET_FILE = "subnet.json"


@dataclass
class SupernetFields(Checked):
    """The supernet's own fields. [`Evolution`] has the fields of the search."""

    sizes: list[int]
    depths: list[int]
    max_parameters: int | None = setting(
        None, "Largest number of parameters of a subnet, without the head.", whole, or_none=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sizes", "depths"):
            given = getattr(self, name)
            holds = bool(given) and all(is_whole(value) and value >= 1 for value in given)
            require(self, name, holds, "a list of whole numbers of at least 1")


class NoahSupernetMethod(PeftMethod):
    """The supernet. It has the largest size in every block. Before the search it is evaluated with that size."""

    config: NoahConfig

    def __init__(
        self,
        config: NoahConfig,
        own: SupernetFields,
        evolution: Evolution,
        seed: int,
    ) -> None:
        super().__init__(config, None)
        self._sizes, self._depths, self._evolution = tuple(own.sizes), tuple(own.depths), evolution
        self._max_parameters, self._seed = own.max_parameters, seed
        self._search = Search()
        self._step = 0
        self._found: Subnet | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped = super().wrap(model)
        assert isinstance(wrapped, PeftModel)
        assert isinstance(wrapped.base_model, NoahModel)
        self._noah = wrapped.base_model
        layers = self._noah.layers()
        self._space = SearchSpace(len(layers), self._sizes, self._depths)
        self._width = layers[0].noah_prompt[ADAPTER].shape[1]
        return wrapped

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._draw()

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        self._step = step
        self._draw()

    def _draw(self) -> None:
        """Draw the next step's subnet. It is the same on all processes and in a resumed training."""
        draws = random.Random(f"{self._seed} step {self._step}")
        self._noah.choice(ADAPTER).training = self._space.draw(draws)

    def search(self, model: nn.Module, score: Callable[[], float], keep: Callable[[], object]) -> None:
        choice = self._noah.choice(ADAPTER)

        def scored(subnet: Subnet) -> float:
            choice.evaluation = subnet
            return score()

        def allowed(subnet: Subnet) -> bool:
            return self._max_parameters is None or subnet.parameters(self._width) <= self._max_parameters

        try:
            self._found = self._search.run(self._space, self._evolution, self._seed, allowed, scored, keep)
        except ValueError as error:
            raise UserError(
                f"method.max_parameters={self._max_parameters}: {error}: raise it, or set smaller method.sizes"
            ) from error
        self._noah.cut(ADAPTER, self._found)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "search": self._search.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step, self._search = state["step"], Search.of(state["search"])
        self._draw()

    def save(self, model: nn.Module, folder: Path) -> None:
        super().save(model, folder)
        if self._found is None:
            return
        found = {name: list(getattr(self._found, name)) for name in MODULES}
        told = {
            "score": self._search.scores[self._found],
            "parameters": self._found.parameters(self._width),
            "tried": len(self._search.scores),
        }
        (folder / SUBNET_FILE).write_text(json.dumps(found | told, indent=2), encoding="utf-8")


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build NOAH's supernet and search from the settings' fields.

    Raises:
        UserError: a field is not known, a value is invalid, or there are no held-out rows for the search.
    """
    fields = dict(fields)
    if not context.held_out:
        raise UserError(
            "method=noah_supernet searches on its evaluation split, which must not be the benchmark's test set: "
            "set task.split=train800_val200"
        )
    own = take(SupernetFields, fields)
    evolution = take(Evolution, fields)
    config, _ = peft_config(fields | dict.fromkeys(MODULES, max(own.sizes)), context)
    assert isinstance(config, NoahConfig)
    return NoahSupernetMethod(config, own, evolution, context.seed)
