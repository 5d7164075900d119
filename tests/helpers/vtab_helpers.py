"""VTAB-1K in small: composed settings, a folder of images in the list layout, and a ViT in timm's own layout."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from compose_helpers import settings_of_run
from PIL import Image

from flexlora.conf_path import conf_dir
from flexlora.settings import VtabTask

TASKS = sorted(path.stem for path in (conf_dir() / "task" / "vtab").glob("*.yaml"))
CLASSES = 4
SIZE = 32


@cache
def _task(name: str) -> VtabTask:
    return settings_of_run(f"task=vtab/{name}", "method=lora").task


def settings_of(name: str = "kitti", **changes: object) -> VtabTask:
    """`task=vtab/<name>` as composed, with some settings changed; kitti has four classes."""
    return VtabTask(**{**vars(_task(name)), **changes})  # type: ignore[arg-type]


def picture(label: int, seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Noise that is brighter in one channel, or in none: the class."""
    pixels = np.random.default_rng([label, seed]).integers(0, 120, size=(size[1], size[0], 3))
    if label < 3:
        pixels[:, :, label] += 120
    return Image.fromarray(pixels.astype(np.uint8))


def write_task(folder: Path, *, train: int = 16, val: int = 8, test: int = 12) -> Path:
    """One task's folder: PNG files, and the four lists over them."""
    lists: dict[str, list[str]] = {}
    for split, count in (("train800", train), ("val200", val), ("test", test)):
        (folder / "images" / split).mkdir(parents=True)
        for number in range(count):
            name = f"images/{split}/{number:06d}.png"
            picture(number % CLASSES, hash_of(split, number)).save(folder / name)
            lists.setdefault(split, []).append(f"{name} {number % CLASSES}")
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for split, lines in lists.items():
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def hash_of(split: str, number: int) -> int:
    return 1000 * len(split) + number


VIT = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def write_vit(folder: Path, **changes: object) -> Path:
    """A ViT of two blocks and width 32 with random weights, as timm's `save_for_hf` lays it out."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    arguments = {**VIT, **changes}
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=7, **arguments)
    save_file(model.state_dict(), folder / "model.safetensors")
    side = arguments["img_size"]
    config = {
        "architecture": "vit_base_patch16_224",
        "num_classes": 7,
        "num_features": arguments["embed_dim"],
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.5, 1.0],
            "num_classes": 7,
            "classifier": "head",
        },
        "model_args": arguments,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
