"""Each method equals its equation, written again in float64: a ViT by hand, BERT and LLaMA with torch's hooks.

The references use nothing of flexlora except the parameters of the adapted model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from baseline_helpers import backbone, inputs, outputs, wrapped
from torch import nn

from flexlora.baselines.base import BaselineLayer

Adapted = dict[str, dict[str, torch.Tensor]]
After = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


def randomised(method: str, name: str, **settings: Any) -> tuple[nn.Module, Adapted]:
    """The method on a float64 backbone with parameters far from their initial values: {module: {name: parameter}}."""
    model = wrapped(method, name, backbone(name).double(), **settings).eval()
    draw = torch.Generator().manual_seed(5)
    found: Adapted = {}
    with torch.no_grad():
        for key, layer in model.base_model.model.named_modules():
            if not isinstance(layer, BaselineLayer):
                continue
            held = {part: getattr(layer, part) for part in layer.adapter_layer_names}
            for part, parameters in held.items():
                if "default" in parameters:
                    value = parameters["default"]
                    assert value.dtype == torch.float64
                    value.copy_(0.3 * torch.randn(value.shape, generator=draw, dtype=torch.float64))
                    found.setdefault(key, {})[part.partition("_")[2]] = value.detach()
    return model, found


def vit(x: torch.Tensor, after: After, prompts: list[torch.Tensor | None] | None = None) -> torch.Tensor:
    """The forward of the tiny ViT, (batch, 3, 32, 32) → (batch, 3); `after` sees every operation by its name."""
    w = backbone("vit").double().state_dict()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return after(name, x @ w[f"{name}.weight"].T + w[f"{name}.bias"], x)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return after(name, y * w[f"{name}.weight"] + w[f"{name}.bias"], x)

    batch = len(x)
    patches = x.reshape(batch, 3, 2, 16, 2, 16).permute(0, 2, 4, 1, 3, 5).reshape(batch, 4, -1)
    kernel = w["patch_embed.proj.weight"].reshape(32, -1)
    tokens = after("patch_embed.proj", patches @ kernel.T + w["patch_embed.proj.bias"], patches)
    tokens = torch.cat([w["cls_token"].expand(batch, -1, -1), tokens], 1) + w["pos_embed"]
    for layer in range(2):
        block = f"blocks.{layer}"
        prompt = prompts[layer] if prompts else None
        if prompt is not None:
            # The class token, the prompts, the four patches, which are the last wherever the prompts are.
            tokens = torch.cat([tokens[:, :1], prompt.expand(batch, -1, -1), tokens[:, -4:]], 1)
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens))
        q, k, v = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in qkv.split(32, -1))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v
        tokens = tokens + linear(f"{block}.attn.proj", mixed.transpose(1, 2).flatten(-2))
        entering = norm(f"{block}.norm2", tokens)
        hidden = linear(f"{block}.mlp.fc1", entering)
        leaving = linear(f"{block}.mlp.fc2", hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)
        tokens = tokens + after(f"{block}.mlp", leaving, entering)
    return linear("head", norm("norm", tokens)[:, 0])


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def relu(x: torch.Tensor) -> torch.Tensor:
    return x * (x > 0)


def bottleneck(held: dict[str, torch.Tensor], x: torch.Tensor, activation: Callable) -> torch.Tensor:
    return activation(x @ held["down"].T + held["down_bias"]) @ held["up"].T + held["up_bias"]


def equation(method: str, adapted: Adapted, scale: float = 1.0) -> After:
    """Apply the method to an operation's output y and input x."""

    def after(name: str, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        held = adapted.get(name)
        if held is None:
            return y
        if method == "adaptformer":
            return y + scale * bottleneck(held, x, relu)
        if method == "ssf":
            return held["scale"] * y + held["shift"]
        return y + bottleneck(held, y, gelu if method == "houlsby" else relu)

    return after


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_reference_is_the_backbone() -> None:
    base = backbone("vit").double()
    x = inputs("vit").double()
    close(vit(x, lambda name, y, x: y), outputs(base, "vit", dtype=torch.float64))


PLACES = {
    "houlsby": [f"blocks.{i}.{part}" for i in range(2) for part in ("attn.proj", "mlp.fc2")],
    "pfeiffer": [f"blocks.{i}.mlp.fc2" for i in range(2)],
    "adaptformer": [f"blocks.{i}.mlp" for i in range(2)],
    "ssf": [
        "patch_embed.proj",
        *(
            f"blocks.{i}.{p}"
            for i in range(2)
            for p in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        ),
        "norm",
    ],
}


@pytest.mark.parametrize("method", PLACES)
def test_a_vit(method: str) -> None:
    settings = {"scale": 0.7} if method == "adaptformer" else {}
    model, adapted = randomised(method, "vit", **settings)
    assert list(adapted) == PLACES[method]
    x = inputs("vit").double()
    close(outputs(model, "vit", dtype=torch.float64), vit(x, equation(method, adapted, 0.7)))


def piece(held: dict[str, torch.Tensor], shared: dict[str, torch.Tensor], number: int, i: int, j: int) -> torch.Tensor:
    """Σ of the piece from input part i to output part j, the `number`-th of its linear."""
    r = shared["U"].shape[1]
    if "sigma" in held:
        return held["sigma"][i * r : (i + 1) * r, j * r : (j + 1) * r]
    sigma = torch.zeros(r, r, dtype=torch.float64)
    for c in range(r):
        sigma += held["P"][c, number] * shared["core"][:, :, c]
    return sigma


@pytest.mark.parametrize("method", ["fact_tt", "fact_tk"])
def test_fact_on_a_vit(method: str) -> None:
    model, adapted = randomised(method, "vit", scale=0.4)
    linears = [f"blocks.{i}.{p}" for i in range(2) for p in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert list(adapted) == linears
    shared = adapted["blocks.0.attn.qkv"]
    assert all({"U", "V"}.isdisjoint(adapted[name]) for name in linears[1:])

    def after(name: str, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if name not in adapted:
            return y
        parts, m = x.split(32, -1), y.shape[-1] // 32
        update = [torch.zeros_like(y[..., :32]) for _ in range(m)]
        number = 0
        for i, part in enumerate(parts):
            for j in range(m):
                update[j] += part @ shared["U"] @ piece(adapted[name], shared, number, i, j) @ shared["V"]
                number += 1
        return y + 0.4 * torch.cat(update, -1)

    x = inputs("vit").double()
    expected = vit(x, after)
    close(outputs(model, "vit", dtype=torch.float64), expected)
    close(outputs(model.merge_and_unload(), "vit", dtype=torch.float64), expected)


@pytest.mark.parametrize("method", ["vpt_shallow", "vpt_deep"])
def test_vpt_on_a_vit(method: str) -> None:
    model, adapted = randomised(method, "vit")
    prompts = [adapted.get(f"blocks.{layer}", {}).get("prompt") for layer in range(2)]
    assert [prompt is not None for prompt in prompts] == [True, method == "vpt_deep"]
    x = inputs("vit").double()
    expected = vit(x, lambda name, y, x: y, prompts)
    close(outputs(model, "vit", dtype=torch.float64), expected)
    assert not torch.allclose(expected, vit(x, lambda name, y, x: y))


@pytest.mark.parametrize(
    "sizes", [{}, {"prompt_dim": [3, 0], "lora_dim": [0, 2], "adapter_dim": [2, 0]}, {"prompt_dim": [0, 2]}], ids=str
)
def test_noah_on_a_vit(sizes: dict[str, list[int]]) -> None:
    model, adapted = randomised("noah", "vit", **sizes)

    def after(name: str, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        held = adapted.get(name.rpartition(".")[0].removesuffix(".attn"), {})
        if name.endswith("attn.qkv") and "lora_A" in held:
            return y + x @ held["lora_A"].T @ held["lora_B"].T
        if name.endswith("mlp") and "down" in held:
            return y + bottleneck(held, y, lambda z: z * torch.sigmoid(1.702 * z))
        return y

    x = inputs("vit").double()
    prompts = [adapted.get(f"blocks.{layer}", {}).get("prompt") for layer in range(2)]
    expected = vit(x, after, prompts)
    close(outputs(model, "vit", dtype=torch.float64), expected)
    assert not torch.allclose(expected, vit(x, lambda name, y, x: y, prompts))


def hooked(name: str, after: After, adapted: Adapted) -> torch.Tensor:
    """The output of a plain float64 backbone with `after` on the modules of these names."""
    base = backbone(name).double()
    for key in adapted:
        base.get_submodule(key).register_forward_hook(lambda module, args, y, key=key: after(key, y, args[0]))
    return outputs(base, name)


@pytest.mark.parametrize(
    ("method", "name", "count"),
    [("houlsby", "bert", 4), ("houlsby", "deberta-v2", 4), ("houlsby", "llama", 4), ("pfeiffer", "roberta", 2),
     ("pfeiffer", "llama", 2), ("adaptformer", "llama", 2), ("ssf", "bert", 17), ("ssf", "deberta-v2", 17),
     ("ssf", "llama", 19)],
)  # fmt: skip
def test_text_models(method: str, name: str, count: int) -> None:
    model, adapted = randomised(method, name)
    assert len(adapted) == count
    close(outputs(model, name), hooked(name, equation(method, adapted, 0.1), adapted))


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2"])
def test_adaptformer_works_without_an_mlp_module(name: str) -> None:
    """The branch reads the MLP's input and is added before the last norm."""
    model, adapted = randomised("adaptformer", name)
    base = backbone(name).double()
    for key, held in adapted.items():
        layer = base.get_submodule(key.removesuffix(".output"))
        entered = []
        layer.intermediate.register_forward_hook(lambda module, args, y, entered=entered: entered.append(args[0]))
        layer.output.dense.register_forward_hook(
            lambda module, args, y, held=held, entered=entered: y + 0.1 * bottleneck(held, entered[-1], relu)
        )
    close(outputs(model, name), outputs(base, name))


def test_dropout_is_at_its_place_and_only_in_training() -> None:
    """On a bottleneck's activations, between FacT's Σ and V, on VPT's prompts: dropped, or divided by 1 - p."""
    for method in ("houlsby", "adaptformer", "fact_tt", "vpt_deep"):
        still, _ = randomised(method, "vit", dropout=0.0)
        noisy, _ = randomised(method, "vit", dropout=0.5)
        close(outputs(still, "vit", dtype=torch.float64), outputs(noisy, "vit", dtype=torch.float64))
        torch.manual_seed(0)
        x = inputs("vit").double()
        assert not torch.allclose(noisy.train()(x), noisy(x)), method
        assert torch.equal(still.train()(x), still(x)), method
    layer = next(m for m in noisy.modules() if isinstance(m, BaselineLayer))
    seen = []
    layer.base_layer.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, 1:4]))
    noisy(x)
    ratio = seen[0] / layer.vpt_prompt["default"]
    assert set(ratio.round(decimals=6).flatten().tolist()) == {0.0, 2.0}


# --- initial values ----------


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
def test_a_bottleneck_starts_near_the_identity(method: str) -> None:
    """|σ(z)| ≤ |z| and no entry is above 2 std, so that ‖W_u σ(W_d h)‖ ≤ (2 std)² m d ‖h‖."""
    std, m, d = 1e-3, 16, 32
    model = wrapped(method, "vit", bottleneck=m, init_std=std)
    layer = next(module for module in model.modules() if isinstance(module, BaselineLayer))
    down, down_bias, up, up_bias = (getattr(layer, part)["default"] for part in layer.adapter_layer_names)
    for weight in (down, up):
        assert weight.abs().max() <= 2 * std
        assert weight.std().item() == pytest.approx(
            0.88 * std, rel=0.1
        )  # of a normal that is cut off at two deviations
    assert not down_bias.any()
    assert not up_bias.any()
    h = torch.randn(50, layer.base_layer.in_features)
    plain = layer.base_layer(h)
    difference = (layer(h) - plain).norm(dim=-1) / plain.norm(dim=-1)
    assert 0 < difference.max() <= (2 * std) ** 2 * m * d


def test_adaptformer_and_fact_start_as_in_their_code() -> None:
    model = wrapped("adaptformer", "vit", bottleneck=64)
    layer = next(module for module in model.modules() if isinstance(module, BaselineLayer))
    down = layer.adaptformer_down["default"]
    bound = 32**-0.5  # Kaiming-uniform with a = √5
    assert 0.9 * bound < down.abs().max() <= bound
    assert not any(
        layer.get_parameter(f"adaptformer_{part}.default.tensor").any() for part in ("down_bias", "up", "up_bias")
    )
    for method, part, bound in [
        ("fact_tt", "fact_U", 32**-0.5),
        ("fact_tt", "fact_sigma", 8**-0.5),
        ("fact_tk", "fact_U", 32**-0.5),
        ("fact_tk", "fact_core", math.sqrt(6 / (8 * 8 + 8 * 8))),
        ("fact_tk", "fact_P", math.sqrt(6 / (8 + 2 * 12))),  # two layers of 3 + 1 + 4 + 4 pieces
    ]:
        model = wrapped(method, "vit", r=8, width=32)
        layer = next(module for module in model.modules() if isinstance(module, BaselineLayer))
        values = getattr(layer, part)["default"]
        assert 0.85 * bound < values.abs().max() <= bound, (method, part)
        assert not layer.fact_V["default"].any()


def test_vpt_starts_within_xaviers_bound_of_the_patch_embedding() -> None:
    model = wrapped("vpt_deep", "vit", num_tokens=50)
    bound = math.sqrt(6 / (3 * 16**2 + 32))
    layers = [module for module in model.modules() if isinstance(module, BaselineLayer)]
    assert len(layers) == 2
    for layer in layers:
        prompt = layer.vpt_prompt["default"]
        assert 0.95 * bound < prompt.abs().max() <= bound
        assert prompt.mean().abs() < 0.1 * bound
    assert not torch.equal(layers[0].vpt_prompt["default"], layers[1].vpt_prompt["default"])


def test_ssfs_initial_difference_is_proportional_to_init_std() -> None:
    plain = outputs(backbone("vit").double(), "vit", dtype=torch.float64)

    def distance(std: float) -> float:
        model = wrapped("ssf", "vit", backbone("vit").double(), init_std=std)
        return float((outputs(model, "vit", dtype=torch.float64) - plain).norm())

    assert distance(0.0) == 0.0
    assert distance(1e-4) / distance(1e-5) == pytest.approx(10, rel=0.01)
    held = [m for m in wrapped("ssf", "vit").modules() if isinstance(m, BaselineLayer)]
    for part, mean in (("ssf_scale", 1.0), ("ssf_shift", 0.0)):
        values = torch.cat([getattr(layer, part)["default"].detach() for layer in held])
        assert values.mean().item() == pytest.approx(mean, abs=0.003)
        assert values.std().item() == pytest.approx(0.02, rel=0.1)
