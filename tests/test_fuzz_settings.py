"""Settings that once got past the first look: each is one line now."""

from dataclasses import replace
from typing import Any

import pytest

from flexlora.errors import UserError
from flexlora.methods import build_method
from flexlora.methods.base import RunContext
from flexlora.settings import Schedule

FIELDS: dict[str, Any] = {"name": "lora", "kind": "peft", "peft_type": "LORA", "r": 2}
CONTEXT = RunContext(total_steps=10, schedule=Schedule.absolute, paper_steps=None, seed=0, target_modules=".*")


def test_a_task_type_other_than_the_models_is_refused_before_peft_wraps_the_model() -> None:
    context = replace(CONTEXT, task_type="SEQ_CLS")
    with pytest.raises(
        UserError, match=r"^method\.task_type is SEQ_CLS, as the model is, not CAUSAL_LM: leave it out$"
    ):
        build_method(FIELDS | {"task_type": "CAUSAL_LM"}, context)
    build_method(FIELDS | {"task_type": "SEQ_CLS"}, context)
    build_method(FIELDS, context)


def test_a_negative_rank_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(UserError, match=r"^method\.r must not be negative, not -1$"):
        build_method(FIELDS | {"r": -1}, CONTEXT)
