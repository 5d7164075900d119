"""A LoRA that trained more than A and B of linears: a warm start takes all of it over, refuses it, or says so."""

import copy
import re
import warnings

import pytest
import torch
from builders import Chain, moving
from export_helpers import X, lora_folder
from peft import get_peft_model
from torch import nn

from flexlora import warm_start_from_lora


class WithWords(Chain):
    """A chain over an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.words(x.argmax(-1)))


def start(folder, base, options, **ours):
    """The model after a warm start, the LoRA, and the warnings."""
    lora = lora_folder(folder, base, **options)
    model = get_peft_model(copy.deepcopy(base), moving(**ours))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warm_start_from_lora(model, folder)
    return model, lora, [str(warning.message) for warning in said]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lora_bias": True}, "k.lora_B.bias"),
        ({"targets": ("q", "k", "v", "o", "words")}, "words.lora_embedding_A"),
    ],
)
def test_a_part_of_the_update_that_flexlora_cannot_have_is_refused(tmp_path, options, name):
    with pytest.raises(
        ValueError, match=rf"tensors in its update that FlexLoRA cannot have, such as {re.escape(name)}"
    ):
        start(tmp_path, WithWords(), options)


BESIDE = [
    ({"bias": "all"}, {"bias": "all"}, 5),
    ({"bias": "lora_only"}, {"bias": "flexlora_only"}, 4),
    ({"modules_to_save": ["head"]}, {"modules_to_save": ["head"]}, 2),
]


@pytest.mark.parametrize(("options", "ours", "count"), BESIDE)
def test_what_was_trained_beside_the_update_is_taken_over_or_said_once(tmp_path, options, ours, count):
    torch.manual_seed(1)
    base = Chain()
    model, lora, said = start(tmp_path / "same", base, options, **ours)
    assert said == []
    torch.testing.assert_close(model(X), lora(X), rtol=1e-4, atol=1e-4)
    model, lora, said = start(tmp_path / "other", base, options)
    assert len(said) == 1
    assert f"also trained {count} tensors that this adapter does not have, such as " in said[0]
    assert not torch.allclose(model(X), lora(X), rtol=1e-4, atol=1e-4)
