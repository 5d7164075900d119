"""Image sets in small: the same pictures in every layout that `task=images/…` reads."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from compose_helpers import settings_of_run
from scipy.io import savemat
from vtab_helpers import picture

from flexlora.settings import ImageSetTask

CLASSES = ("ant", "bee", "cow")
TRAIN, TEST = 4, 2  # images of each class


@cache
def _task(name: str) -> ImageSetTask:
    return settings_of_run(f"task=images/{name}", "method=lora").task


def settings_of(name: str = "folder", **changes: object) -> ImageSetTask:
    """`task=images/<name>` as composed, with some settings changed; the images have three classes."""
    return ImageSetTask(**{**vars(_task(name)), "num_classes": 3, "sizes": {}, **changes})  # type: ignore[arg-type]


def pictures(split: str) -> list[tuple[int, int]]:
    """The class and the seed of each image of a split."""
    count, first = (TRAIN, 0) if split == "train" else (TEST, 100)
    return [(label, first + seed) for label in range(len(CLASSES)) for seed in range(count)]


def draw(path: Path, label: int, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(label, seed).save(path)
    return path


def write_folders(folder: Path, splits: tuple[str, str] = ("train", "test")) -> Path:
    for split, name in zip(("train", "test"), splits, strict=True):
        for label, seed in pictures(split):
            draw(folder / name / CLASSES[label] / f"{seed:03d}.png", label, seed)
    return folder


def write_lists(folder: Path, names: tuple[str, str] = ("train.txt", "test.txt")) -> Path:
    for split, name in zip(("train", "test"), names, strict=True):
        lines = []
        for label, seed in pictures(split):
            draw(folder / "images" / f"{label}_{seed:03d}.png", label, seed)
            lines.append(f"images/{label}_{seed:03d}.png {label}\n")
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder


def write_parquet(folder: Path, *, texts: bool = False, names: tuple[str, str] = ("image", "label")) -> Path:
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images = [draw(folder / "drawn.png", label, seed).read_bytes() for label, seed in pictures(split)]
        labels = [CLASSES[label] if texts else label for label, _ in pictures(split)]
        kind = datasets.Value("string") if texts else datasets.ClassLabel(names=list(CLASSES))
        columns = {names[0]: [{"bytes": content, "path": None} for content in images], names[1]: labels}
        features = datasets.Features({names[0]: datasets.Image(), names[1]: kind})
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (folder / "drawn.png").unlink()
    return folder


def write_cars(folder: Path) -> Path:
    for split, name in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = []
        for number, (label, seed) in enumerate(pictures(split), start=1):
            draw(folder / f"cars_{split}" / f"{number:05d}.png", label, seed)
            rows.append((1, 2, 3, 4, label + 1, f"{number:05d}.png"))
        kinds = [(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
        (folder / name).parent.mkdir(exist_ok=True)
        savemat(folder / name, {"annotations": np.array([rows[i] for i in range(len(rows))], dtype=kinds)[None]})
    return folder


def write_dtd(folder: Path) -> Path:
    (folder / "labels").mkdir(parents=True)
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for split in ("train", "test"):
        for label, seed in pictures(split):
            name = f"{CLASSES[label]}/{CLASSES[label]}_{seed:04d}.png"
            draw(folder / "images" / name, label, seed)
            lines["val" if seed == 1 else split].append(name)
    for name, listed in lines.items():
        (folder / "labels" / f"{name}1.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    return folder


def write_gtsrb(folder: Path, training: str = "Final_Training/Images", truth: str = "GT-final_test.csv") -> Path:
    for label, seed in pictures("train"):
        draw(folder / training / f"{label:05d}" / f"00000_{seed:05d}.png", label, seed)
        (folder / training / f"{label:05d}" / f"GT-{label:05d}.csv").write_text("Filename;ClassId\n")
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number, (label, seed) in enumerate(pictures("test")):
        draw(folder / "Final_Test" / "Images" / f"{number:05d}.png", label, seed)
        rows.append(f"{number:05d}.png;40;30;5;5;35;25;{label}")
    (folder / truth).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_gtsrb_tables(folder: Path) -> Path:
    for split, name in (("train", "Train"), ("test", "Test")):
        rows = ["Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"]
        for label, seed in pictures(split):
            draw(folder / name / f"{label}_{seed:05d}.png", label, seed)
            rows.append(f"40,30,5,5,35,25,{label},{name}/{label}_{seed:05d}.png")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_sun397(folder: Path) -> Path:
    (folder / "Partitions").mkdir(parents=True)
    for split, name in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        lines = []
        for label, seed in pictures(split):
            image = f"/{CLASSES[label][0]}/{CLASSES[label]}/sun_{seed:04d}.png"
            draw(folder / "SUN397" / image.lstrip("/"), label, seed)
            lines.append(image)
        (folder / "Partitions" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_svhn(folder: Path) -> Path:
    """The classes are the digits 0, 1 and 2; SVHN writes 0 as 10."""
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        images = [np.asarray(picture(label, seed, (32, 32))) for label, seed in pictures(split)]
        labels = [[label or 10] for label, _ in pictures(split)]
        arrays = {"X": np.stack(images, axis=-1), "y": np.array(labels, dtype=np.uint8)}
        savemat(folder / f"{split}_32x32.mat", arrays)
    return folder


def write_gtsrb_of_torchvision(folder: Path) -> Path:
    write_gtsrb(folder / "GTSRB", "Training", "../GT-final_test.csv")
    return folder


def write_parquet_with_texts(folder: Path) -> Path:
    return write_parquet(folder, texts=True, names=("img", "labels"))


LAYOUTS: dict[str, tuple[str, str, Callable[[Path], Path]]] = {
    "folders": ("folder", "folders", write_folders),
    "folders with val": ("folder", "folders", lambda folder: write_folders(folder, ("train", "val"))),
    "lists": ("folder", "lists", write_lists),
    "VTAB's lists": ("gtsrb", "lists", lambda folder: write_lists(folder, ("train800val200.txt", "test.txt"))),
    "parquet": ("folder", "columns", write_parquet),
    "parquet in data": ("eurosat", "columns", lambda folder: write_parquet(folder / "data").parent),
    "parquet with texts": (
        "folder",
        "columns",
        write_parquet_with_texts,
    ),
    "cars": ("cars", "cars", write_cars),
    "dtd": ("dtd", "dtd", write_dtd),
    "gtsrb": ("gtsrb", "gtsrb", write_gtsrb),
    "gtsrb of torchvision": ("gtsrb", "gtsrb", write_gtsrb_of_torchvision),
    "gtsrb of tables": ("gtsrb", "gtsrb", write_gtsrb_tables),
    "sun397": ("sun397", "sun397", write_sun397),
    "svhn": ("svhn", "svhn", write_svhn),
}
"""By name: the task, the layout that its record names, and the function that writes it into a folder."""
