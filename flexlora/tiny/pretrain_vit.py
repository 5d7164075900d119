"""Pretraining of a small ViT as a masked autoencoder (He et al., 2022): about half a minute on one core.

Its images are strokes drawn here, and no digits: the model learns how lines continue. As with large masked
autoencoders, a linear probe scores far below an adapted model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional

# Strokes are drawn this many times larger and then scaled down, so that their edges are smooth.
OVERSAMPLING = 4


@dataclass(frozen=True)
class Pretraining:
    """How the small ViT is pretrained. Every field is part of its cached name."""

    seed: int = 0
    images: int = 4096
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    masked: float = 0.5
    """Share of the patches that are masked."""


def strokes(count: int, side: int, seed: int) -> npt.NDArray[np.uint8]:
    """Draw images of one to three bent lines each, bright on black: (count, side, side)."""
    draw = np.random.default_rng(seed)
    large = OVERSAMPLING * side
    images = np.empty((count, side, side), dtype=np.uint8)
    for number in range(count):
        image = Image.new("L", (large, large))
        pen = ImageDraw.Draw(image)
        for _ in range(draw.integers(1, 4)):
            points = draw.uniform(OVERSAMPLING, large - OVERSAMPLING, size=(draw.integers(2, 5), 2))
            shade, width = int(draw.integers(140, 256)), int(draw.integers(5, 11))
            pen.line([(float(x), float(y)) for x, y in points], fill=shade, width=width, joint="curve")
        images[number] = np.asarray(image.resize((side, side), Image.Resampling.BOX))
    return images


def pretrain(model: Any, settings: Pretraining) -> list[float]:
    """Train timm's ViT `model` in place to predict masked patches, with a head that is discarded afterwards.

    Returns:
        The loss of every step: the mean squared error over the masked patches, whose values are between -1 and 1.
    """
    patch, side, width = model.patch_embed.patch_size[0], model.patch_embed.img_size[0], model.embed_dim
    drawn = torch.from_numpy(strokes(settings.images, side, settings.seed))
    images = (drawn.float() / 127.5 - 1)[:, None]
    head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, patch * patch))
    missing = nn.Parameter(0.02 * torch.randn(width))
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *head.parameters(), missing],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / settings.warmup_steps, 1) * (1 - step / settings.steps)
    )
    model.train()
    losses = []
    for _ in range(settings.steps):
        batch = images[torch.randint(len(images), (settings.batch_size,))]
        patches = functional.unfold(batch, patch, stride=patch).transpose(1, 2)
        gaps = torch.rand(patches.shape[:2]) < settings.masked
        with _hidden(model, gaps, missing):
            tokens = model.forward_features(batch.expand(-1, 3, -1, -1))
        loss = functional.mse_loss(head(tokens[:, 1:])[gaps], patches[gaps])  # the first token is the class token
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


class _hidden:
    """Replaces the patches that `gaps` marks by the vector `missing`; their position embeddings stay."""

    def __init__(self, model: Any, gaps: torch.Tensor, missing: torch.Tensor) -> None:
        def replaced(module: nn.Module, inputs: Any, patches: torch.Tensor) -> torch.Tensor:
            return torch.where(gaps[..., None], missing, patches)

        self._model, self._replaced = model, replaced

    def __enter__(self) -> None:
        self._handle = self._model.patch_embed.register_forward_hook(self._replaced)

    def __exit__(self, *_error: object) -> None:
        self._handle.remove()
