"""AdapterFusion: the contract of the second stage, its equation in float64, and its error messages."""

from __future__ import annotations

import copy

import pytest
import torch
from baseline_helpers import HEADS, backbone, config, outputs, train, wrapped
from peft import PeftModel, get_peft_model

import flexlora
from flexlora.baselines import AdapterFusionConfig
from flexlora.baselines.adapter_fusion import AdapterFusionLayer
from flexlora.models.random_init import random_init

BACKBONES = ("bert", "deberta-v2", "llama", "vit")
SIZES = (4, 2)

everywhere = pytest.mark.parametrize("name", BACKBONES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory):
    """Folders of two trained Pfeiffer adapters of different widths for each backbone, made on first use."""
    made: dict[str, list[str]] = {}

    def of(name: str) -> list[str]:
        if name not in made:
            made[name] = [str(tmp_path_factory.mktemp(f"{name}-{size}")) for size in SIZES]
            for folder, size in zip(made[name], SIZES, strict=True):
                train(wrapped("pfeiffer", name, bottleneck=size), name, steps=3 + size).save_pretrained(folder)
        return made[name]

    return of


def fused(name: str, folders: list[str], base=None, **settings) -> PeftModel:
    torch.manual_seed(1)
    heads = HEADS.get(name, ["pooler", "classifier"])
    settings = AdapterFusionConfig(adapters=folders, modules_to_save=heads, **settings)
    return get_peft_model(backbone(name) if base is None else base, settings)


@everywhere
def test_the_equation(name, sources):
    """The reference adds the sum over adapters after each MLP with torch's hooks, in float64."""
    model = fused(name, sources(name), backbone(name).double())
    adapters = [PeftModel.from_pretrained(backbone(name).double(), folder) for folder in sources(name)]
    base = backbone(name).double()
    draw = torch.Generator().manual_seed(4)
    count = 0
    for key, layer in model.base_model.model.named_modules():
        if not isinstance(layer, AdapterFusionLayer):
            continue
        count += 1
        held = {part: getattr(layer, part)["default"] for part in layer.adapter_layer_names}
        with torch.no_grad():
            for value in held.values():
                value.copy_(0.3 * torch.randn(value.shape, generator=draw, dtype=torch.float64))
        own = [adapter.base_model.model.get_submodule(key) for adapter in adapters]

        def hook(module, args, h, held=held, own=own):
            z = [
                torch.relu(h @ a.pfeiffer_down["default"].T + a.pfeiffer_down_bias["default"])
                @ a.pfeiffer_up["default"].T
                + a.pfeiffer_up_bias["default"]
                for a in own
            ]
            query = h @ held["fusion_query"].T + held["fusion_query_bias"]
            weights = [(query * (zn @ held["fusion_key"].T)).sum(-1).exp() for zn in z]
            values = [weight[..., None] * (zn @ held["fusion_value"].T) for weight, zn in zip(weights, z, strict=True)]
            return h + sum(values) / sum(weights)[..., None]

        base.get_submodule(key).register_forward_hook(hook)
    assert count == 2
    options = {"dtype": torch.float64} if name == "vit" else {}
    torch.testing.assert_close(outputs(model, name, **options), outputs(base, name, **options), rtol=1e-10, atol=1e-10)


@everywhere
def test_the_initial_output_is_near_the_mean_of_the_adapters(name, sources):
    """V = I, and Q = 0 makes the attention weights equal."""
    model = fused(name, sources(name), init_std=0.0)
    layer = next(m for m in model.modules() if isinstance(m, AdapterFusionLayer))
    h = torch.randn(5, layer.base_layer.in_features)
    plain = layer.base_layer(h)
    key = next(key for key, m in model.base_model.model.named_modules() if m is layer)
    alone = [
        PeftModel.from_pretrained(backbone(name), folder).base_model.model.get_submodule(key)(h)
        for folder in sources(name)
    ]
    torch.testing.assert_close(layer(h) - plain, sum(alone) / 2 - plain, rtol=1e-3, atol=1e-4)


@everywhere
def test_the_contract(name, sources, tmp_path):
    model = fused(name, sources(name))
    before = {key: value.detach().clone() for key, value in model.state_dict().items()}
    trains = {key for key, p in model.named_parameters() if p.requires_grad}
    expected_parameters = 2 * (3 * 32**2 + 32)
    assert flexlora.count_parameters(model).adapter_active == expected_parameters
    train(model, name)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == trains  # the adapters, which are buffers, are where they were
    expected = outputs(model, name)
    assert not torch.allclose(expected, outputs(fused(name, sources(name)), name), atol=1e-3)
    model.save_pretrained(str(tmp_path))
    for quick in (False, True):  # the adapters come with it: their own folders are not read again
        for folder in model.peft_config["default"].adapters:
            assert folder in sources(name)
        loaded = PeftModel.from_pretrained(backbone(name), str(tmp_path), low_cpu_mem_usage=quick)
        torch.testing.assert_close(outputs(loaded, name), expected)
    with pytest.raises(ValueError, match="AdapterFusion cannot be merged into the backbone"):
        model.merge_and_unload()
    with model.disable_adapter():
        assert torch.equal(outputs(model, name), outputs(backbone(name), name))
    twin = copy.deepcopy(model)
    train(twin, name)
    assert torch.equal(outputs(model, name), expected)


def test_a_saved_fusion_loads_without_its_source_folders(sources, tmp_path):
    import json

    model = train(fused("bert", sources("bert")), "bert")
    model.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"adapters": ["/nowhere/a", "/nowhere/b"]}
    file.write_text(json.dumps(settings))
    loaded = PeftModel.from_pretrained(backbone("bert"), str(tmp_path))
    torch.testing.assert_close(outputs(loaded, "bert"), outputs(model, "bert"))


def test_one_configuration_works_for_two_models(sources):
    settings = AdapterFusionConfig(adapters=sources("bert"))
    for _ in range(2):
        layers = [m for m in get_peft_model(backbone("bert"), settings).modules() if isinstance(m, AdapterFusionLayer)]
        assert all(layer.fusion_up["default"].any() for layer in layers)
    assert settings.bottleneck is None


def test_a_bfloat16_backbone(sources):
    model = train(fused("bert", sources("bert"), backbone("bert").to(torch.bfloat16)), "bert")
    layers = [m for m in model.modules() if isinstance(m, AdapterFusionLayer)]
    assert {layer.fusion_value["default"].dtype for layer in layers} == {torch.float32}
    assert {layer.fusion_down["default"].dtype for layer in layers} == {torch.float32}
    out = outputs(model, "bert")
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert outputs(fused("bert", sources("bert")), "bert").isfinite().all()


def test_the_penalty_pulls_the_values_to_the_identity(sources):
    model = fused("bert", sources("bert"), value_weight=0.25)
    values = [m.fusion_value["default"] for m in model.modules() if isinstance(m, AdapterFusionLayer)]
    with torch.no_grad():
        for value in values:
            value.add_(torch.randn_like(value))
    penalty = sum(0.25 * (value - torch.eye(32)).square().sum() for value in values)
    expected = torch.autograd.grad(penalty, values)
    for value in values:
        value.grad = torch.ones_like(value)
    model.base_model.regularise(1)
    for value, gradient in zip(values, expected, strict=True):
        torch.testing.assert_close(value.grad, gradient + 1)


def test_parameters_at_the_shape_of_deberta_v3_base():
    """The fusion has 18 times the parameters of Table 1."""
    settings = AdapterFusionConfig(adapters=["a", "b"], bottleneck=64, non_linearity="relu")
    model = get_peft_model(random_init("deberta_v3_base", device="meta"), settings)
    assert flexlora.count_parameters(model).adapter_active == 12 * (3 * 768**2 + 768) == 21_242_880


def test_invalid_adapters_are_refused(sources, tmp_path):
    with pytest.raises(ValueError, match="`adapters` must be the folders of at least two"):
        AdapterFusionConfig(adapters=sources("bert")[:1])
    with pytest.raises(ValueError, match=r"is not an adapter saved by PEFT: it has no adapter_config\.json"):
        fused("bert", [*sources("bert"), str(tmp_path)])
    with pytest.raises(ValueError, match=r"has no adapter for .*output\.dense: it is of another backbone"):
        fused("bert", sources("vit"))
    wrapped("houlsby", "bert").save_pretrained(str(tmp_path / "houlsby"))
    with pytest.raises(ValueError, match="has a HOULSBY adapter: AdapterFusion needs Pfeiffer adapters"):
        fused("bert", [*sources("bert"), str(tmp_path / "houlsby")])
    other = get_peft_model(backbone("bert"), config("pfeiffer", "bert", non_linearity="gelu"))
    other.save_pretrained(str(tmp_path / "gelu"))
    with pytest.raises(ValueError, match="adapters must have the same non_linearity, not gelu and relu"):
        fused("bert", [*sources("bert"), str(tmp_path / "gelu")])
