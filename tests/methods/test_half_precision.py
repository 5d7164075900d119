"""Every method on a half-precision model trains float32 parameters, or the run is refused before its first step."""

import pytest
import torch
from doctor_helpers import command, examine
from method_helpers import make_loop, settings_of, tiny, wrapped
from test_methods_contract import MASKS, TEXT

from flexlora.errors import UserError
from flexlora.methods.base import refuse_half_precision


@pytest.mark.parametrize("name", TEXT)
def test_what_trains_is_float32_or_the_run_is_refused(name: str) -> None:
    dtype = torch.bfloat16 if name.startswith("lo") else torch.float16
    _, model = wrapped(name, "bert", base=tiny("bert").to(dtype))
    if name in MASKS:
        kind = str(dtype).removeprefix("torch.")
        with pytest.raises(UserError, match=rf"parameters are {kind} .*vanish in half precision: set model.dtype="):
            refuse_half_precision(model)
        return
    refuse_half_precision(model)
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert any("classifier" in key for key in trained)


@pytest.mark.parametrize("name", ["flexlora", "lora"])
def test_a_training_on_float16_weights_stays_finite(name: str) -> None:
    """It was NaN after the first step, because the head trained in float16."""
    method, model = wrapped(name, "bert", base=tiny("bert").half())
    assert make_loop(method, model, settings_of(name), 2).run().status == "done"
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_doctor_refuses_it_too(arguments, tmp_path) -> None:
    settings = [*arguments, "method=bitfit", "model.dtype=bfloat16", f"output_root={tmp_path}"]
    ending, _ = command(examine, settings)
    assert ending.status == "not ready"
    assert "trainable parameters are bfloat16" in str(ending.reason)
    assert "half precision: set model.dtype=float32" in str(ending.reason)
