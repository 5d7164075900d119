"""Images: they are decoded as in the VTAB-1K literature, cached by content, and named if they cannot be read."""

import multiprocessing
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from vtab_helpers import picture, settings_of, write_task

from flexlora.errors import UserError
from flexlora.models.image_classifier import ImageInput
from flexlora.settings import Interpolation, Normalization
from flexlora.tasks import images, load_task
from flexlora.tasks.image_lists import ImageRows
from flexlora.tasks.images import Augmented, BadImages, Form, ImageCache, ImageExamples, augmentation, decode

FORM = Form(16, 24, "bicubic")
INPUT = ImageInput((16, 24), "bilinear", (0.5, 0.5, 0.5), (0.25, 0.5, 1.0), torch.float32)


def png(image: Image.Image) -> bytes:
    import io

    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def rows_of(count: int = 5) -> ImageRows:
    return ImageRows([f"{i}.png" for i in range(count)], [png(picture(i % 4, i)) for i in range(count)], [0] * count)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.uint8"))


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Count how often an image is decoded."""
    calls: list[int] = []
    whole = images.decode
    monkeypatch.setattr(images, "decode", lambda content, form: (calls.append(1), whole(content, form))[1])
    return calls


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_images_are_decoded_as_torchvision_does(interpolation, mode):
    """The result equals Pillow to RGB, `Resize((height, width))`, `PILToTensor`: the protocol without normalisation."""
    import io

    from torchvision.transforms import InterpolationMode, v2

    file = io.BytesIO()
    picture(1, 0).convert(mode).save(file, "TIFF")
    expected = v2.Compose([v2.Resize((16, 24), InterpolationMode(interpolation)), v2.PILToTensor()])(
        Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    )
    decoded = decode(file.getvalue(), Form(16, 24, interpolation))
    assert decoded.dtype == np.uint8
    assert decoded.flags["C_CONTIGUOUS"]
    assert torch.from_numpy(decoded).equal(expected)


def test_images_are_decoded_once(tmp_path, counted):
    rows = rows_of()
    first, digest = ImageCache(tmp_path / "images", FORM).images(rows)
    again, digest_again = ImageCache(tmp_path / "images", FORM).images(rows)
    assert len(counted) == 5
    assert len(entries(tmp_path / "images")) == 1
    assert first.shape == (5, 3, 16, 24)
    assert np.array_equal(first, again)
    assert np.array_equal(first, np.stack([decode(rows.read(i), FORM) for i in range(5)]))
    assert digest == digest_again
    assert not again.flags["WRITEABLE"]
    assert stat.S_IMODE(entries(tmp_path / "images")[0].stat().st_mode) == 0o644


def test_cached_images_are_named_after_their_content(tmp_path):
    """Another image, order, size or interpolation makes another entry; another path or label does not."""
    rows = rows_of()
    moved = ImageRows(["a", "b", "c", "d", "e"], rows.images, [1] * 5)
    swapped = ImageRows(rows.names, [rows.images[1], rows.images[0], *rows.images[2:]], rows.labels)
    count = []
    for form, some in (
        (FORM, rows),
        (FORM, moved),
        (FORM, swapped),
        (FORM, rows.first(4)),
        (Form(24, 16, "bicubic"), rows),
        (Form(16, 24, "bilinear"), rows),
    ):
        ImageCache(tmp_path, form).images(some)
        count.append(len(entries(tmp_path)))
    assert count == [1, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", ["cut", "byte", "empty"])
def test_a_damaged_image_file_is_detected_and_made_again(tmp_path, damage, caplog):
    whole, _ = ImageCache(tmp_path, FORM).images(rows_of())
    whole = whole.copy()
    (file,) = entries(tmp_path)
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes({"cut": bytes(content[:-1]), "byte": bytes(content), "empty": b""}[damage])
    again, _ = ImageCache(tmp_path, FORM).images(rows_of())
    assert np.array_equal(again, whole)
    assert caplog.text.count("damaged: making it again") == 1
    assert np.array_equal(ImageCache(tmp_path, FORM).images(rows_of())[0], whole)
    assert caplog.text.count("damaged: making it again") == 1


def _fill(folder: str, seconds: float, barrier, decoded) -> None:
    import time

    whole = images.decode

    def slow(content: bytes, form: Form) -> np.ndarray:
        time.sleep(seconds)
        with decoded.get_lock():
            decoded.value += 1
        return whole(content, form)

    images.decode = slow
    barrier.wait()
    array, _ = ImageCache(Path(folder), FORM).images(rows_of())
    os._exit(0 if array.sum() > 0 else 1)


def test_two_processes_decode_images_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, decoded = context.Barrier(2), context.Value("i", 0)
    processes = [context.Process(target=_fill, args=(str(tmp_path), 0.05, barrier, decoded)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert decoded.value == 5
    assert len(entries(tmp_path)) == 1
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("how", ["a file in its place", "none"])
def test_images_are_decoded_without_a_cache(tmp_path, how, caplog):
    folder = None
    if how == "a file in its place":
        folder = tmp_path / "images"
        folder.write_text("in the way")
    array, _ = ImageCache(folder, FORM).images(rows_of())
    assert np.array_equal(array, np.stack([decode(rows_of().read(i), FORM) for i in range(5)]))
    assert ("images are not cached" in caplog.text) == (how != "none")


def test_a_disk_without_room_is_refused_in_one_line(tmp_path, monkeypatch):
    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match=r"no room for .* of decoded images in .*No space left.*task.image_cache=DIR"):
        ImageCache(None, FORM).images(rows_of())


def test_an_error_names_all_unreadable_images(tmp_path):
    rows = rows_of(6)
    cut = rows.images[1][: len(rows.images[1]) // 2]
    contents = [rows.images[0], cut, b"no image", tmp_path / "missing.png", tmp_path, b""]
    with pytest.raises(BadImages) as caught:
        ImageCache(tmp_path / "images", FORM).images(ImageRows(rows.names, contents, rows.labels))
    problems = caught.value.problems
    assert [problem.split(" ")[0] for problem in problems] == ["1.png", "2.png", "3.png", "4.png", "5.png"]
    assert "truncated" in problems[0]
    assert problems[1:3] == ["2.png (is not an image)", "3.png (is missing)"]
    assert problems[3] == "4.png (it is a folder, not a regular file)"
    assert not entries(tmp_path / "images")


def test_unreadable_images_of_all_splits_are_refused_in_one_line(tmp_path):
    folder = write_task(tmp_path / "kitti")
    (folder / "images/train800/000003.png").unlink()
    (folder / "images/test/000001.png").write_bytes(b"GIF89a")
    (folder / "images/test/000002.png").write_text("<html>", encoding="utf-8")
    task = load_task(settings_of(data_dir=str(tmp_path), image_cache=str(tmp_path / "images")))
    with pytest.raises(UserError) as caught:
        task.preprocess(INPUT)
    message = str(caught.value)
    assert "3 images cannot be read: images/train800/000003.png (is missing)" in message
    assert "images/test/000001.png (" in message
    assert "images/test/000002.png (is not an image)" in message
    assert "\n" not in message
    for file in (folder / "images/test").iterdir():
        file.write_bytes(b"")
    for file in (folder / "images/train800").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"28 images cannot be read: .* and 8 more in "):
        task.preprocess(INPUT)


@pytest.mark.parametrize(
    ("normalization", "mean", "std"),
    [
        (Normalization.imagenet, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (Normalization.model, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0)),
        (Normalization.none, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ],
)
def test_the_model_gets_normalised_images(tmp_path, normalization, mean, std):
    """The result equals the protocol's ToTensor and Normalize, although images are cached as integers."""
    folder = write_task(tmp_path / "kitti")
    task = load_task(settings_of(data_dir=str(tmp_path), image_cache=None, normalization=normalization))
    task.preprocess(INPUT)
    batch = task.collate([task.train.examples[i] for i in (3, 0)])
    assert batch["images"].dtype == torch.uint8
    assert batch["labels"].tolist() == [3, 0]
    seen = {}

    class Model(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen["pixels"] = pixels
            return pixels.mean(dim=(2, 3)) @ torch.ones(3, 4)

    loss, predicted = task.predict(Model(), batch)
    image = torch.from_numpy(decode((folder / "images/train800/000003.png").read_bytes(), FORM)).double() / 255
    expected = (image - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]
    torch.testing.assert_close(seen["pixels"][0].double(), expected, atol=1e-5, rtol=1e-5)
    logits = seen["pixels"].mean(dim=(2, 3)) @ torch.ones(3, 4)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, batch["labels"]))
    assert predicted.shape == (2,)
    assert batch["images"].dtype == torch.uint8  # not normalised in place


def test_interpolation_model_takes_that_of_the_model(tmp_path):
    write_task(tmp_path / "kitti")
    task = load_task(settings_of(data_dir=str(tmp_path), image_cache=None, interpolation=Interpolation.model))
    task.preprocess(INPUT)
    assert task._form == Form(16, 24, "bilinear")
    strange = ImageInput((16, 24), "hamming", INPUT.mean, INPUT.std, torch.float32)
    with pytest.raises(
        UserError, match=r"the model's interpolation 'hamming' is not supported: set task.interpolation to"
    ):
        task.preprocess(strange)


def test_a_text_model_is_refused_for_images(tmp_path):
    write_task(tmp_path / "kitti")
    task = load_task(settings_of(data_dir=str(tmp_path)))
    with pytest.raises(UserError, match="is an image task: set model=vit_b16"):
        task.preprocess(object())


def examples(count: int = 6) -> ImageExamples:
    array = np.stack([decode(png(picture(i % 4, i)), FORM) for i in range(count)])
    array.flags.writeable = False
    return ImageExamples(array, list(range(count)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10**6), index=st.integers(0, 5))
def test_augmentation_depends_only_on_seed_epoch_and_index(seed, epoch, index):
    """Neither earlier draws nor the order of access matter, and the global random state does not change."""
    transform = augmentation(FORM, 0.3, 0.5)
    before = examples()
    original = before.images.copy()
    torch.manual_seed(1)
    first = Augmented(before, transform, seed, epoch)[index]
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.rand(3).equal(drawn)
    torch.manual_seed(2)
    for other in reversed(range(6)):
        again = Augmented(examples(), transform, seed, epoch)[other]
        if other == index:
            assert np.array_equal(again["images"], first["images"])
    assert first["labels"] == index
    assert first["images"].shape == (3, 16, 24)
    assert first["images"].dtype == np.uint8
    assert np.array_equal(before.images, original)


def test_augmentation_differs_by_seed_epoch_and_index():
    transform = augmentation(FORM, 0.3, 0.0)
    array = np.stack([decode(png(picture(0, 0)), FORM)] * 2)  # the same image twice
    same = ImageExamples(array, [0, 0])
    base = Augmented(same, transform, 0, 0)[0]["images"]
    for other in (Augmented(same, transform, 1, 0)[0], Augmented(same, transform, 0, 1)[0]):
        assert not np.array_equal(base, other["images"])
    assert not np.array_equal(base, Augmented(same, transform, 0, 0)[1]["images"])


def test_a_flip_only_mirrors_the_image():
    flipped = Augmented(examples(), augmentation(FORM, None, 1.0), 0, 0)
    assert np.array_equal(flipped[2]["images"], examples().images[2][:, :, ::-1])
    assert augmentation(FORM, None, 0.0) is None


def test_only_training_images_are_augmented(tmp_path):
    write_task(tmp_path / "kitti")
    task = load_task(settings_of(data_dir=str(tmp_path), image_cache=None, horizontal_flip=1.0))
    task.preprocess(INPUT)
    plain = task.train.examples[1]["images"]
    assert np.array_equal(task.train_examples(0, 0)[1]["images"], plain[:, :, ::-1])
    still = load_task(settings_of(data_dir=str(tmp_path), image_cache=None))
    still.preprocess(INPUT)
    assert still.train_examples(0, 0) is still.train.examples
