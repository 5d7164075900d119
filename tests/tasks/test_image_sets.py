"""Whole image sets: every layout gives the same images and classes, and whatever is wrong is refused in one line."""

import io
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from compose_helpers import settings_of_run
from image_set_helpers import (
    CLASSES,
    LAYOUTS,
    TEST,
    TRAIN,
    draw,
    settings_of,
    write_cars,
    write_dtd,
    write_folders,
    write_gtsrb,
    write_lists,
    write_parquet,
    write_svhn,
)
from PIL import Image
from vtab_helpers import picture

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.models.image_classifier import ImageInput
from flexlora.settings import Resize
from flexlora.tasks import load_task
from flexlora.tasks.images import Form, ImageCache, decode

BICUBIC = Image.Resampling.BICUBIC
CLIP = ImageInput((16, 16), "bicubic", (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), torch.float32)
# Classes and images to train and to evaluate on: torchvision's documentation, and the hub's copies of the sets.
SETS = {
    "cars": (196, {8144}, 8041),
    "dtd": (47, {3760}, 1880),
    "eurosat": (10, {21600}, 2700),
    "gtsrb": (43, {26640, 39209}, 12630),
    "resisc45": (45, {18900}, 6300),
    "sun397": (397, {19850}, 19850),
    "svhn": (10, {73257}, 26032),
}


def load(folder: Path, name: str = "folder", **changes: object):
    return load_task(settings_of(name, data_dir=str(folder), **changes))


def refusal(folder: Path, name: str = "folder", **changes: object) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, name, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder), "DIR")


def total(image: Image.Image) -> int:
    return int(np.asarray(image).sum(dtype=int))


def sums(task, split: str) -> list[tuple[int, int]]:
    """The class and the sum of the pixels of each image, in order of these."""
    rows = task.train_rows if split == "train" else task.evaluation_rows["test"]
    images, _ = ImageCache(None, Form(30, 40, "bicubic")).images(rows)
    return sorted(zip(rows.labels, images.reshape(len(rows), -1).sum(axis=1).tolist(), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_images_and_classes(tmp_path, monkeypatch, layout):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name, recorded, write = LAYOUTS[layout]
    changes = {"num_classes": 10} if layout == "svhn" else {}
    task = load(write(tmp_path / "set"), name, **changes)
    size = (32, 32) if layout == "svhn" else (40, 30)
    for split, count, first in (("train", TRAIN, 0), ("test", TEST, 100)):
        drawn = [(label, first + seed) for label in range(3) for seed in range(count)]
        pixels = [(label, total(picture(label, seed, size).resize((40, 30), BICUBIC))) for label, seed in drawn]
        assert sums(task, split) == sorted(pixels)
    assert task.provenance["layout"] == recorded
    assert task.num_labels == changes.get("num_classes", 3)
    hashed = task.provenance["sha256"]
    assert all((Path(task.provenance["path"]) / file).is_file() for file in hashed)
    assert bool(hashed) == (recorded != "folders")


def test_a_set_s_own_folder_is_found_below_data_dir(tmp_path):
    write_dtd(tmp_path / "dtd")
    write_folders(tmp_path / "EuroSAT")
    assert load(tmp_path, "dtd").provenance["path"] == str(tmp_path / "dtd")
    assert load(tmp_path, "eurosat").provenance["path"] == str(tmp_path / "EuroSAT")


def test_a_folder_without_a_split_is_split_by_class_and_the_same_for_every_seed(tmp_path):
    for label, name in enumerate(CLASSES):
        for seed in range(10 * (label + 1)):
            draw(tmp_path / name / f"{seed}.png", label, seed)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    task = load(tmp_path)
    train, test = task.train_rows, task.evaluation_rows["test"]
    assert np.bincount(train.labels).tolist() == [8, 16, 24]
    assert np.bincount(test.labels).tolist() == [2, 4, 6]
    assert not {*train.names} & {*test.names}
    assert load(tmp_path).train_rows.names == train.names
    third = load(tmp_path, train_share=0.5, test_share=0.05)
    assert (len(third.train_rows), len(third.evaluation_rows["test"])) == (30, 3)
    assert not {*third.train_rows.names} & {*third.evaluation_rows["test"].names}


def test_a_folder_of_ones_own_is_called_after_itself_and_says_and_records_what_it_holds(tmp_path, caplog):
    caplog.set_level(logging.INFO, "flexlora")
    for label, name in enumerate(CLASSES):
        for seed in range(5):
            draw(tmp_path / "my birds" / name / f"{seed}.png", label, seed)
    given = ("task=images/folder", "method=lora", f"task.data_dir={tmp_path / 'my birds'}")
    task, other = (load_task(settings_of_run(*given, *more).task) for more in ([], ["task.split_seed=1"]))
    assert task.name == "images/my_birds"
    assert task.provenance["classes"] == [*CLASSES]
    assert task.provenance["split"] == {"by": "drawn with seed 0", "train": 12, "test": 3}
    assert "data: 3 classes, in this order: ant, bee, cow" in caplog.text
    assert "data: 12 train, 3 test images, drawn with seed 0" in caplog.text
    assert other.train_rows.names != task.train_rows.names
    split = type("Split", (), {"name": "test"})
    assert task.score(split, task.evaluation_rows["test"].labels) == {"accuracy": 1.0, "macro_f1": 1.0}
    tiny = load_task(settings_of_run(*given, "scale=tiny").task)
    assert tiny.train_rows.names == task.train_rows.names  # the user's images, and not generated ones


def test_the_numbers_of_classes_and_images_are_the_sets():
    assert {path.stem for path in (conf_dir() / "task" / "images").glob("*.yaml")} == {*SETS, "folder"}
    for name, (classes, train, test) in SETS.items():
        composed = settings_of_run(f"task=images/{name}", "method=lora").task
        assert (composed.num_classes, set(composed.sizes["train"]), composed.sizes["test"]) == (classes, train, [test])
        # The sibling papers' rule: about a thousand steps.
        batches = -(-composed.sizes["train"][0] // composed.batch_size)
        assert composed.epochs == max(1, round(1000 / batches))


def test_other_numbers_of_images_are_said_and_recorded(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="flexlora")
    task = load(write_folders(tmp_path), "cars", sizes={"train": [8144, 9000], "test": [6]})
    assert caplog.messages == [
        "images/cars has 12 training images, but the set has 8,144 or 9,000: this is not its usual split"
    ]
    assert task.provenance["sizes"] == {"train": [12, 8144, 9000], "test": [6, 6]}


def test_a_class_without_training_images_is_said(tmp_path, caplog):
    folder = write_lists(tmp_path)
    (folder / "train.txt").write_text("images/2_000.png 2\nimages/0_000.png 0\n")
    caplog.set_level(logging.WARNING, logger="flexlora")
    assert load(folder, num_classes=None).num_labels == 3
    assert caplog.messages == ["1 of 3 classes have no training image: 1"]


def test_rows_can_be_held_out_or_left_out(tmp_path):
    write_folders(tmp_path)
    held = load(tmp_path, validation_rows=5)
    assert {name: len(rows) for name, rows in held.evaluation_rows.items()} == {"validation": 5}
    assert (len(held.train_rows), held.provenance["held_out"]) == (7, 5)
    assert load(tmp_path, max_train_rows=3).subset


def test_images_of_a_model_s_size_are_cached_and_normalised_as_the_model_wants(tmp_path):
    task = load(write_folders(tmp_path / "set"), image_cache=str(tmp_path / "cache"))
    task.preprocess(CLIP)
    assert task.train.examples.images.shape == (12, 3, 16, 16)
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 2
    assert np.allclose(task._mean.flatten() / 255, CLIP.mean)
    assert np.allclose(task._std.flatten() / 255, CLIP.std)
    again = load(tmp_path / "set", image_cache=str(tmp_path / "cache"))
    again.preprocess(CLIP)
    assert np.array_equal(again.train.examples.images, task.train.examples.images)


def test_the_centre_is_cut_out_as_clip_s_own_preprocessing_does():
    """Resize the shorter side, then cut out the centre: the same pixels as in one step."""
    image = picture(1, 3, (60, 20))
    cut = decode(content(image), Form(10, 10, "bicubic", crop=True))
    two_steps = image.resize((30, 10), BICUBIC).crop((10, 0, 20, 10))
    assert np.array_equal(cut, np.asarray(two_steps).transpose(2, 0, 1))
    stretched = decode(content(image), Form(10, 10, "bicubic"))
    assert np.array_equal(stretched, np.asarray(image.resize((10, 10), BICUBIC)).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(29, 33), (224, 224), (7, 500), (333, 41)])
def test_any_shape_can_be_cut_out(size):
    assert decode(content(Image.new("RGB", size, "green")), Form(224, 224, "bicubic", crop=True)).shape == (3, 224, 224)


def test_images_that_are_stretched_and_cut_have_their_own_cache(tmp_path):
    write_folders(tmp_path / "set")
    for resize in Resize:
        task = load(tmp_path / "set", image_cache=str(tmp_path / "cache"), resize=resize)
        task.preprocess(CLIP)
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 4
    assert "crop" not in Form(1, 1, "bicubic").facts()  # images that were decoded before keep their name


def content(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def one_class(folder: Path) -> None:
    for name in ("train.txt", "test.txt"):
        (folder / name).write_text("images/0_000.png 0\n")


def matrix_of_cars(folder: Path) -> None:
    shutil.copy(write_cars(folder / "cars") / "devkit" / "cars_train_annos.mat", folder / "test_32x32.mat")


@pytest.mark.parametrize(
    ("name", "write", "change", "said"),
    [
        ("folder", write_folders, lambda f: shutil.rmtree(f / "test"),
         "task.data_dir: DIR has the folder train, but no folder test or val to evaluate on: for a split by chance, "
         "set task.data_dir=DIR/train"),
        ("folder", write_folders, lambda f: (f / "test" / "ant").rename(f / "test" / "dog"),
         "task.data_dir: DIR/test has the class 'dog', which the training images do not have"),
        ("folder", write_folders, lambda f: shutil.rmtree(f / "train" / "ant"),
         "task.data_dir: DIR/test has the class 'ant', which the training images do not have"),
        ("folder", write_folders, lambda f: [shutil.rmtree(f / "test" / name) for name in CLASSES],
         "task.data_dir: DIR/test has no images"),
        ("cars", lambda f: f.mkdir(), lambda f: None,
         "task.data_dir: DIR: no files of cars's own, no train.txt and test.txt, no train.parquet, and no folders of "
         "classes (train/<class>/ and test/<class>/) with images: docs/reference/images.md has the layouts"),
        ("folder", write_lists, lambda f: (f / "test.txt").write_text("images/0_000.png 70000\n"),
         "task.data_dir: DIR/test.txt line 1: label 70000 is not between 0 and 65535 (a head has no more classes)"),
        ("folder", write_lists, lambda f: (f / "test.txt").write_text("../0.png 0\n"),
         "task.data_dir: DIR/test.txt line 1: '../0.png' is outside the folder"),
        ("folder", write_lists, one_class,
         "task.data_dir: DIR has 1 class: a task needs at least 2"),
        ("cars", write_cars, lambda f: (f / "cars_test_annos_withlabels.mat").unlink(),
         "task.data_dir: DIR has no cars_test_annos_withlabels.mat: the test list of the devkit has no classes"),
        ("cars", write_cars, lambda f: (f / "cars_test_annos_withlabels.mat").write_bytes(b"no matrix"),
         "task.data_dir: cannot read DIR/cars_test_annos_withlabels.mat: "),
        ("dtd", write_dtd, lambda f: (f / "labels" / "val1.txt").write_text("ant\n"),
         "task.data_dir: DIR/labels/val1.txt line 1: 'ant' is not the path of an image in its class's folder"),
        ("gtsrb", write_gtsrb, lambda f: (f / "GT-final_test.csv").unlink(),
         "task.data_dir: DIR has no GT-final_test.csv, the classes of the test images (GTSRB_Final_Test_GT)"),
        ("gtsrb", write_gtsrb, lambda f: (f / "GT-final_test.csv").write_text("Filename;ClassId\n00000.png;x\n"),
         "task.data_dir: DIR/GT-final_test.csv line 2: it needs Filename (a path) and ClassId (a number)"),
        ("svhn", write_svhn, matrix_of_cars,
         "task.data_dir: DIR/test_32x32.mat does not have SVHN's images X (… x 3 x count) and digits y (1 to 10)"),
        ("folder", write_parquet, lambda f: (f / "test-00000-of-00001.parquet").unlink(),
         "task.data_dir: DIR has train-00000-of-00001.parquet, but no test.parquet"),
        ("folder", write_parquet, lambda f: (f / "test-00000-of-00001.parquet").write_bytes(b"PAR1"),
         "task.data_dir: cannot read DIR/test-00000-of-00001.parquet: "),
        ("folder", lambda f: write_parquet(f, names=("picture", "label")), lambda f: None,
         "DIR has no column 'image'. It has: picture, label"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, name, write, change, said):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    write(folder)
    change(folder)
    message = refusal(folder, name, num_classes=None)
    assert message == said or (said.endswith(": ") and message.startswith(said))


def test_a_wrong_number_of_classes_is_refused(tmp_path):
    write_folders(tmp_path)
    assert refusal(tmp_path, "cars", num_classes=196) == (
        "task.num_classes is 196, but DIR has 3 classes: set task.num_classes=3 if the folder is right"
    )


def test_settings_that_cannot_be_are_refused(tmp_path):
    write_folders(tmp_path)
    assert refusal(tmp_path, train_share=0.9, test_share=0.2) == (
        "task.train_share=0.9 and task.test_share=0.2 are more than 1"
    )
    assert refusal(tmp_path, "cars", distribution="car") == (
        "there is no task.distribution 'car'. Did you mean cars? There are: cars, dtd, gtsrb, sun397, svhn."
    )


def test_broken_images_are_all_named(tmp_path):
    folder = write_folders(tmp_path / "set")
    (folder / "train" / "ant" / "000.png").write_bytes(b"no image")
    (folder / "test" / "bee" / "100.png").unlink()
    (folder / "test" / "bee" / "100.png").symlink_to("nowhere")
    task = load(folder, image_cache=None)
    with pytest.raises(UserError) as caught:
        task.preprocess(CLIP)
    assert str(caught.value) == (
        f"task.data_dir: 2 images cannot be read: train/ant/000.png (is not an image), test/bee/100.png (is missing) "
        f"in {folder}"
    )


def test_without_a_folder_the_hub_is_read(monkeypatch):
    """A set is asked for by its name on the hub; the images of a folder have none."""
    import datasets

    import flexlora.hub

    monkeypatch.setattr(flexlora.hub, "trouble_with", lambda *_: None)
    asked = []

    def loaded(*args: object, **words: object):
        asked.append((args, words))
        columns = {"image": [None] * 3, "label": [0, 1, 2]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[*CLASSES])})
        return {split: datasets.Dataset.from_dict(columns, features=features) for split in ("train", "extra", "test")}

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    task = load_task(settings_of("svhn"))
    assert asked == [(("ufldl-stanford/svhn", "cropped_digits"), {"revision": None})]
    assert (task.provenance["source"], task.train_rows.labels) == ("hub", [0, 1, 2])
    with pytest.raises(UserError, match=r"6 images cannot be read: train row 1 \(has no content\)"):
        task.preprocess(CLIP)
    with pytest.raises(UserError, match=r"task.data_dir is not set: set task.data_dir=DIR, a folder with images"):
        load_task(settings_of("folder"))
