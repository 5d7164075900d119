"""E²LoRA's relatives: their mathematics against references in float64, and what they read from gradients."""

import torch
from peft import RandLoraConfig, get_peft_model
from torch import nn


def test_randlora_is_a_sum_of_scaled_random_matrices():
    """ΔW = α/r Σ_ki λ_ki b_ki (a_k ∘ γ_i)ᵀ, where every pair (k, i) has a random b_ki of its own.

    PEFT takes the b_ki in the order of its stored matrix, which is not the paper's. All are random alike. A is for
    the smaller side of W.
    """
    for inputs, outputs in ((7, 5), (5, 7)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(inputs, outputs, dtype=torch.float64))
        tuned = get_peft_model(model, RandLoraConfig(target_modules=["0"], r=2, randlora_alpha=6, init_weights=False))
        layer = tuned.base_model.model[0]
        a, b, lam, gamma = (
            getattr(layer, f"randlora_{name}")["default"].detach().double() for name in ("A", "B", "lambda", "gamma")
        )
        assert (a.shape, b.shape, lam.shape, gamma.shape) == ((2, 1, 5), (7, 3, 2), (2, 3), (3, 5))
        delta = torch.zeros(7, 5, dtype=torch.float64)
        for number in range(6):
            k, i = divmod(number, 3)
            delta += 6 / 2 * lam[k, i] * torch.outer(b.flatten(1)[:, number], a[k, 0] * gamma[i])
        delta = delta if outputs == 7 else delta.T
        torch.testing.assert_close(layer.get_delta_weight("default").double(), delta, rtol=1e-12, atol=1e-12)
        x = torch.randn(4, inputs, dtype=torch.float64)
        expected = x @ (layer.base_layer.weight + delta).T + layer.base_layer.bias
        torch.testing.assert_close(tuned(x), expected, rtol=1e-12, atol=1e-12)
