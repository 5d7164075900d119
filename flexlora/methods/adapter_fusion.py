"""AdapterFusion: PEFT's way in, and the pull of the value projections to the identity."""

from typing import Any

from peft import PeftModel
from torch import nn

from flexlora.baselines import AdapterFusionModel
from flexlora.methods.base import Method, RunContext
from flexlora.methods.peft import PeftMethod, peft_config


class AdapterFusionMethod(PeftMethod):
    """The penalty's gradient is added once an optimizer step, after clipping."""

    def regularise(self, model: nn.Module) -> None:
        assert isinstance(model, PeftModel)
        assert isinstance(model.base_model, AdapterFusionModel)
        model.base_model.add_value_gradient()


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """AdapterFusion from the settings' fields."""
    return AdapterFusionMethod(*peft_config(fields, context))
