"""timm models: only timm's layout is read, the head is fresh, and every error is one line."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from compose_helpers import settings_of_run
from safetensors.torch import load_file, save_file
from vtab_helpers import SIZE, VIT, write_vit

from flexlora.errors import UserError
from flexlora.methods import RunContext, build_method
from flexlora.methods.base import refuse_half_precision
from flexlora.models import load_backbone, on_hub, outline
from flexlora.settings import Dtype, ModelSettings, Quantization, Schedule


def settings(path: object, **changes) -> ModelSettings:
    values = {
        "name": None,
        "kind": "image_classifier",
        "scale": "local",
        "path": None if path is None else str(path),
        "revision": None,
        "use_safetensors": True,
        "dtype": Dtype.float32,
        "quantization": None,
    }
    return ModelSettings(**{**values, **changes})


def wrapped(backbone, method: str = "lora", **changes) -> torch.nn.Module:
    run = settings_of_run("task=vtab/kitti", f"method={method}")
    context = RunContext(
        total_steps=100,
        schedule=Schedule.scaled,
        paper_steps=run.paper_steps,
        seed=0,
        target_modules=backbone.target_modules,
        head_modules=backbone.head_modules,
        task_type=backbone.task_type,
    )
    method_ = build_method(run.method.with_fields(**changes), context)
    model = method_.wrap(backbone.model)
    return method_, model


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    return write_vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture
def copy(vit, tmp_path) -> Path:
    return Path(shutil.copytree(vit, tmp_path / "copy"))


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def refusal(path: object, num_labels: int | None = 3, **changes) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(settings(path, **changes), num_labels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_in_timms_layout_is_loaded(vit):
    torch.manual_seed(3)
    backbone = load_backbone(settings(vit), 3)
    saved = load_file(vit / "model.safetensors")
    held = backbone.model.state_dict()
    assert backbone.model.get_classifier().weight.shape == (3, 32)
    assert {n for n in held if not n.startswith("head.") and not held[n].equal(saved[n])} == set()
    assert (backbone.head_modules, backbone.task_type, backbone.revision) == (["head"], None, None)
    takes = backbone.processor
    assert (takes.size, takes.interpolation) == ((SIZE, SIZE), "bilinear")
    assert (takes.mean, takes.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    batch = backbone.made_batch(2, 0)
    assert batch["images"].shape == (2, 3, SIZE, SIZE)
    assert backbone.logits(backbone.model, batch).shape == (2, 3)
    with torch.no_grad():
        pixels = torch.rand(2, 3, SIZE, SIZE)
        assert backbone.logits(backbone.model, {"images": pixels}).equal(backbone.model(pixels))


def test_the_head_is_always_freshly_initialised(vit):
    """The head is fresh even if the checkpoint has the same number of classes. The run's seed determines it."""
    saved = load_file(vit / "model.safetensors")["head.weight"]
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load_backbone(settings(vit), 7).model.head.weight.detach())
    assert heads[0].shape == saved.shape
    assert not heads[1].equal(saved)
    assert heads[0].equal(heads[1])
    assert not heads[1].equal(heads[2])


def test_pretrained_cfg_keys_at_the_top_level_are_read(copy):
    """Some config.json files have the keys of pretrained_cfg at the top level."""
    shape = {"architecture": "deit_tiny_patch16_224", "embed_dim": 192, "library": "timm", "num_classes": 1000}
    (copy / "config.json").write_text(
        json.dumps(shape | {"interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    )
    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), copy / "model.safetensors")
    backbone = load_backbone(settings(copy), 5)
    assert (backbone.processor.size, backbone.processor.mean) == ((224, 224), (0.1, 0.2, 0.3))
    assert sum(p.numel() for p in backbone.model.parameters()) == 5_524_416 + 5 * 193


def test_the_real_deit_is_loaded_and_adapted(shared):
    backbone = load_backbone(settings(shared / "models" / "deit-tiny-patch16-224"), 102)
    assert backbone.processor.std == (0.229, 0.224, 0.225)
    method, model = wrapped(backbone, "flexlora")
    assert method.parameters(model)["adapter_active"] == 295_296  # 12 blocks, 8 directions of 3,072 values and 4 λ


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": None}, "config.json of .* names no architecture: it is not a timm model"),
        ({"architecture": "vit_bse_patch16_224"}, "'vit_bse_patch16_224', which timm does not have. Did you mean vit_"),
        ({"model_args": {**VIT, "depth": 3}}, "lacks 12 of the model's weights, such as blocks.2.norm1.weight"),
        ({"model_args": {**VIT, "embed_dim": 64}}, r"contradicts its config.json: cls_token has shape \[1, 1, 32\]"),
        ({"model_args": {**VIT, "wings": 2}}, "timm cannot make the model in config.json of .*: .*wings"),
        ({"model_args": {**VIT, "num_heads": 5}}, "timm cannot make the model in config.json of"),
        ({"model_args": [1]}, "is not in timm's format"),
        ({"pretrained_cfg": "none"}, "is not in timm's format"),
        ({"model_args": {**VIT, "in_chans": 1}, "pretrained_cfg": {"input_size": [1, 32, 32]}}, "channel|contradicts"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_refused(copy, changes, said):
    edit(copy, **changes)
    assert re.search(said, refusal(copy)), refusal(copy)


def test_wrong_weight_files_are_refused(copy, tmp_path):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-10])
    assert "cannot read model.safetensors of" in refusal(copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert refusal(copy).endswith("has no model.safetensors: weights in other files are not read")
    (copy / "config.json").write_text("{")
    (copy / "model.safetensors").write_bytes(weights)
    assert "cannot read config.json of" in refusal(copy)
    (copy / "config.json").unlink()
    assert "has no config.json: it is not a timm model" in refusal(copy)
    assert "there is no folder" in refusal(tmp_path / "nowhere")
    assert "model.path is not set" in refusal(None)


def test_unsupported_uses_are_refused(vit):
    assert "this task has no classes" in refusal(vit, None)
    assert "read from safetensors only" in refusal(vit, use_safetensors=False)
    assert "model.quantization=null" in refusal(vit, quantization=Quantization("4bit"))


def test_unused_tensors_are_reported(copy, caplog):
    tensors = load_file(copy / "model.safetensors") | {"pre_logits.fc.weight": torch.zeros(2)}
    save_file(tensors, copy / "model.safetensors")
    load_backbone(settings(copy), 3)
    assert "1 tensors of" in caplog.text
    assert "pre_logits.fc.weight" in caplog.text


def test_an_unreachable_hub_model_is_refused():
    hub = settings("timm/some_model", name="some", scale="paper")
    assert on_hub(hub)
    with pytest.raises(UserError, match=r"not in the local cache and the hub cannot be reached.*model=local"):
        load_backbone(hub, 3)
    with pytest.raises(UserError, match="not known without the hub"):
        outline(hub, 3)


def test_a_snapshot_in_the_hub_cache_is_loaded_with_its_commit(vit, tmp_path, monkeypatch):
    """The cache has the layout of huggingface_hub. The record has the commit although no revision was set."""
    commit = "c" * 40
    repository = tmp_path / "models--timm--small"
    shutil.copytree(vit, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = load_backbone(settings("timm/small", name="small"), 3)
    assert backbone.revision == commit


def test_vit_b16_has_its_exact_shapes_without_the_hub():
    """The parameter counts of the baselines are those of the adapter without the head."""
    model = settings_of_run("task=vtab/cifar100", "method=flexlora").model
    counts = {}
    for name in ("lora", "flexlora", "adalora", "adalora_r8", "bitfit", "full", "linear"):
        backbone, source = outline(model, 100)
        assert source == "exact shapes, hub not asked"
        assert backbone.processor is None
        assert backbone.made_batch(2, 0)["images"].shape == (2, 3, 224, 224)
        method, wrapped_ = wrapped(backbone, name)
        parameters = method.parameters(wrapped_)
        assert parameters["head"] == 76_900
        counts[name] = parameters["adapter_active"]
    assert counts == {
        "lora": 1_179_648,
        "flexlora": 1_180_032,
        "adalora": 1_770_048,
        "adalora_r8": 1_180_032,
        "bitfit": 102_912,
        "full": 85_798_656,
        "linear": 0,
    }


def test_only_linears_of_the_blocks_are_adapted(vit):
    backbone = load_backbone(settings(vit), 3)
    _, model = wrapped(backbone)
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A") and name}
    assert adapted == {
        f"base_model.model.blocks.{block}.{linear}"
        for block in range(2)
        for linear in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


def test_a_convolutional_network_trains_its_head_and_needs_target_modules(tmp_path, monkeypatch):
    """A network without linear blocks trains its head. An adapter on it needs `target_modules`."""
    folder = tmp_path / "resnet"
    folder.mkdir()
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}
    save_file(timm.create_model("resnet18", **arguments).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "model_args": arguments}))
    backbone = load_backbone(settings(folder), 3)
    assert backbone.head_modules == ["fc"]
    method, model = wrapped(backbone, "linear")
    assert method.parameters(model)["head"] == 3 * 17
    with pytest.raises(
        UserError, match=r"method: the model has no .*blocks.*: name its linears in method.target_modules"
    ):
        wrapped(load_backbone(settings(folder), 3))
    method, model = wrapped(load_backbone(settings(folder), 3), target_modules=r"layer1\.0\.conv1")
    assert method.parameters(model)["adapter_active"] == 8 * (64 * 9 + 8)  # of a 3 × 3 convolution
    backbone = load_backbone(settings(folder), 3)
    monkeypatch.delattr(type(backbone.model), "set_grad_checkpointing")
    with pytest.raises(UserError, match="timm's ResNet does not support it"):
        backbone.recompute_activations()


@pytest.mark.parametrize("method", ["flexlora", "lora"])
def test_recomputed_activations_give_the_same_gradients(vit, method):
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        backbone = load_backbone(settings(vit), 3)
        if again:
            backbone.recompute_activations()
        _, model = wrapped(backbone, method)
        model.train()
        pixels = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        model(pixels).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@pytest.mark.parametrize("method", ["linear", "lora", "flexlora", "adalora"])
def test_a_bfloat16_base_gets_images_in_its_own_type(vit, method):
    """Images have the base's type, whatever the adapter's type."""
    if method == "linear":
        _, model = wrapped(load_backbone(settings(vit, dtype=Dtype.bfloat16), 3), method)
        with pytest.raises(UserError, match=r"model\.dtype=float32"):
            refuse_half_precision(model)
        return
    backbone = load_backbone(settings(vit, dtype=Dtype.bfloat16), 3)
    _, model = wrapped(backbone, method)
    logits = backbone.logits(model, backbone.made_batch(2, 0))
    logits.float().square().sum().backward()
    assert all(
        p.dtype == torch.float32 for name, p in model.named_parameters() if "lora_" in name or "flexlora_" in name
    )
