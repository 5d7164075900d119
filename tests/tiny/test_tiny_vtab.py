"""`scale=tiny` for VTAB-1K: scikit-learn's digits, and a small pretrained ViT."""

import hashlib
import io
from functools import cache

import numpy as np
import pytest
from compose_helpers import settings_of_run
from PIL import Image
from vtab_helpers import TASKS

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.results.record import read_record
from flexlora.tasks import load_task
from flexlora.tiny.digit_images import RELATIVES, SETS
from flexlora.tiny.tasks.digits import _parts

TINY = ("scale=tiny", "method=lora")
TASK = "vtab/svhn"
# Hashes of the pixels and labels of the five tasks with documented results.
PUBLISHED = {
    "vtab/svhn": "303500bedb04bbc2",
    "vtab/patch_camelyon": "1dc0e605e0d1eb02",
    "vtab/clevr_count": "e0210c20e2a3ea13",
    "vtab/dsprites_loc": "f2bd9856255c3713",
    "vtab/dsprites_ori": "a9e485552c74f2ed",
}


@cache
def task(name: str, *overrides: str):
    return load_task(settings_of_run(f"task={name}", *TINY, *overrides).task)


def test_every_vtab_task_has_a_small_relative():
    assert sorted(RELATIVES) == [f"vtab/{name}" for name in TASKS]
    assert len(RELATIVES) == 19
    assert sorted(SETS) == sorted(f"images/{path.stem}" for path in (conf_dir() / "task" / "images").glob("*.yaml"))


@pytest.mark.parametrize("name", [*RELATIVES, "images/cars", "images/gtsrb", "images/folder"])
def test_small_tasks_have_the_splits_and_classes_of_the_benchmark(name):
    made = task(name)
    sizes = {"train": len(made.train_rows), **{key: len(rows) for key, rows in made.evaluation_rows.items()}}
    assert sizes == {"train": 1000, "test": 797}
    classes = set(range(made.settings.num_classes))
    for rows in (made.train_rows, *made.evaluation_rows.values()):
        assert set(rows.labels) == classes
    # The training rows without the 200 validation rows also have every class.
    assert set(made.train_rows.labels[:800]) == classes
    assert made.num_labels == (RELATIVES | SETS)[name][0]


@pytest.mark.parametrize("name", RELATIVES)
def test_no_image_occurs_twice_and_images_are_deterministic(name):
    made, again = task(name), task.__wrapped__(name)
    train, test = made.train_rows, made.evaluation_rows["test"]
    assert len({*train.images, *test.images}) == 1797
    assert (train.images, train.labels) == (again.train_rows.images, again.train_rows.labels)


def test_no_digit_is_in_both_train_and_test():
    """All 1,797 digits differ, and each of the two parts has its own."""
    train, test = _parts()
    assert len({digit.tobytes() for part in (train, test) for digit in part.pixels}) == 1797
    assert (len(train), len(test)) == (1000, 797)


def test_two_hundred_rows_are_held_out():
    held = task(TASK, "task.split=train800_val200")
    assert (len(held.train_rows), {name: len(rows) for name, rows in held.evaluation_rows.items()}) == (
        800,
        {"val": 200},
    )
    assert held.provenance["held_out"] == 200


@pytest.mark.parametrize("name", PUBLISHED)
def test_pixels_match_the_documented_results(name):
    """docs/reference/tiny.md has results on these images. The hash is of pixels: a PNG's bytes depend on zlib."""
    made = task(name)
    digest = hashlib.sha256()
    for rows in (made.train_rows, made.evaluation_rows["test"]):
        for image, label in zip(rows.images, rows.labels, strict=True):
            digest.update(np.asarray(Image.open(io.BytesIO(image))).tobytes() + bytes([label]))
    assert digest.hexdigest()[:16] == PUBLISHED[name]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("task.data_dir=somewhere",), "scale=tiny generates its data: leave out task.data_dir"),
        (("task=images/svhn", "task.num_classes=7"), "task.num_classes is 7, but images/svhn has 10 classes at"),
        (("task=images/svhn", "task.name=images/own"), "scale=tiny has no task images/own: it has images/cars, "),
        (("task.num_classes=7",), "task.num_classes is 7, but vtab/svhn has 10 classes at scale=tiny"),
    ],
)
def test_unsupported_settings_are_refused(overrides, said):
    with pytest.raises(UserError) as refused:
        task(TASK, *overrides)
    assert said in str(refused.value)


def test_a_task_without_a_small_relative_is_refused():
    with pytest.raises(UserError, match="scale=tiny has no task vtab/own: it has vtab/cifar100, vtab/caltech101, "):
        task(TASK, "task.name=vtab/own")


def test_a_local_model_is_refused():
    settings = settings_of_run(f"task={TASK}", *TINY).model
    settings.path = "somewhere"
    with pytest.raises(UserError, match="scale=tiny makes its own small model"):
        load_backbone(settings, 10)


@pytest.mark.slow
def test_adapting_beats_the_linear_probe_and_ranks_change(flexlora_run, tmp_path):
    """Accuracy gains at least 0.10. One matrix ends at rank 10 or more, one at rank 6 or less."""
    accuracy: dict[str, float] = {}
    for method in ("linear", "lora", "flexlora"):
        result = flexlora_run(f"task={TASK}", "scale=tiny", f"method={method}", f"output_root={tmp_path}")
        assert result.returncode == 0, result.stderr
        record = read_record(tmp_path / f"tiny/{TASK}/vit_b16/{method}/default/seed0/result.json")
        accuracy[method] = record.metrics["last"]["accuracy"]
    ranks = record.rank_events["final_ranks"].values()
    assert min(accuracy["lora"], accuracy["flexlora"]) >= accuracy["linear"] + 0.10, accuracy
    assert min(ranks) <= 6
    assert max(ranks) >= 10
