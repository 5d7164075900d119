"""A small ViT, and methods wrapped around it."""

import timm.models.vision_transformer
import torch
from method_helpers import Sentences, configured, context, settings_of
from torch import nn

from flexlora.methods import Method, build_method

LINEARS = r"(.*\.)?blocks\.\d+\.(attn\.(qkv|[qkv]_proj|proj)|mlp\.fc[12])"


class Pictures(Sentences):
    """Twenty images in two classes; the model answers with logits alone, as timm's do."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        for rows in (self.train.examples, self.evaluation[0].examples):
            for row in rows:
                row.setdefault("images", torch.randn(3, 32, 32, generator=draw))
                row.pop("input_ids", None)

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch["images"]), batch["labels"])

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(batch["images"])
        return nn.functional.cross_entropy(logits, batch["labels"]), logits.argmax(-1)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=2
    )


def wrapped(name: str, *overrides: str, base: nn.Module | None = None) -> tuple[Method, nn.Module]:
    told = context("bert", target_modules=LINEARS, head_modules=["head"], task_type=None)
    method = build_method(settings_of(name, *overrides).method, told)
    return method, method.wrap(configured(method, base or vit(), Pictures()))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    rows = Pictures().evaluation[0].examples
    return model.eval()(torch.stack([row["images"] for row in rows]))
