"""Images as arrays: they are decoded once, cached in a memory-mapped file, and augmented if the settings say so."""

import hashlib
import io
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from PIL import Image, __version__

from flexlora.errors import UserError, one_line
from flexlora.reading import NotRead, open_regular
from flexlora.results.files import replacing
from flexlora.tasks.image_lists import ImageRows
from flexlora.tasks.image_modes import to_rgb

log = logging.getLogger("flexlora")

# The version of the file format, part of every file's name. Increase it whenever the content changes.
FORMAT = 2
# The number of images that all threads together decode at a time.
CHUNK = 256
# The number of bytes of the checksum at the end of a file: the CRC-32 of its name and of all bytes before it.
CHECKSUM = 8
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Form:
    """The size of every decoded image, and how an image of another aspect ratio gets it."""

    height: int
    width: int
    interpolation: str
    crop: bool = False
    """Whether the largest centred part with the aspect ratio of the size is cut out. If not, the image is stretched."""

    def facts(self) -> dict[str, Any]:
        """Return what identifies decoded images. Those that are stretched keep the names of an earlier version."""
        return {name: value for name, value in asdict(self).items() if name != "crop" or value}


class BadImages(Exception):
    """Some images cannot be read. `problems` lists all of them with the reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(f"{len(problems)} images cannot be read")
        self.problems = problems


class ImageExamples(Sequence[dict[str, Any]]):
    """Images with their classes. Each image has the shape and type (3, height, width) uint8."""

    def __init__(self, images: Array, labels: Sequence[int]) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {"images": self.images[index], "labels": self.labels[index]}


class Augmented(ImageExamples):
    """The augmented images of one epoch. Each image depends only on (seed, epoch, index)."""

    def __init__(self, examples: ImageExamples, transform: Any, seed: int, epoch: int) -> None:
        super().__init__(examples.images, examples.labels)
        self._transform = transform
        self._seed = seed
        self._epoch = epoch

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return super().__getitem__(index)
        index = range(len(self))[index]
        image = torch.from_numpy(self.images[index].copy())
        # torchvision and dropout share torch's generator, so its state is restored afterwards. torch.manual_seed is
        # not used because it also seeds the GPU's generator.
        state = torch.get_rng_state()
        try:
            drawn = np.random.SeedSequence([self._seed, self._epoch, index]).generate_state(1, np.uint64)
            torch.default_generator.manual_seed(int(drawn[0]))
            return {"images": self._transform(image).numpy(), "labels": self.labels[index]}
        finally:
            torch.set_rng_state(state)


def augmentation(form: Form, smallest_crop: float | None, flip: float) -> Any:
    """Make the transform of training images: random crop, resize, mirror. None if no augmentation is set."""
    if smallest_crop is None and flip == 0:
        return None
    from torchvision.transforms import InterpolationMode, v2

    steps: list[Any] = []
    if smallest_crop is not None:
        mode = InterpolationMode(form.interpolation)
        steps.append(v2.RandomResizedCrop((form.height, form.width), scale=(smallest_crop, 1.0), interpolation=mode))
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    return v2.Compose(steps)


def decode(content: bytes, form: Form) -> Array:
    """Decode an image file to RGB, (3, height, width), resized by Pillow as in torchvision's `Resize`."""
    with Image.open(io.BytesIO(content)) as image:
        rgb = to_rgb(image)
    size = (form.width, form.height)
    if rgb.size != size:
        rgb = rgb.resize(size, RESAMPLING[form.interpolation], box=_centre(rgb, form) if form.crop else None)
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def _centre(image: Image.Image, form: Form) -> tuple[float, float, float, float]:
    """Return the largest centred box of the image with the aspect ratio of `form`: left, upper, right, lower."""
    scale = min(image.width / form.width, image.height / form.height)
    # The width or the height is whole, but its product may exceed it in the last digit.
    left, upper = max(0.0, image.width - scale * form.width) / 2, max(0.0, image.height - scale * form.height) / 2
    return left, upper, image.width - left, image.height - upper


class ImageCache:
    """A cache of decoded images by content: the same files in the same order and size are decoded once.

    Each entry is one file: uint8, (images, 3, height, width), and a checksum. One process writes it to a temporary name
    and renames it; the others wait. A damaged file is detected and made again. If the folder cannot be written, the
    images go into a temporary file of this process.
    """

    def __init__(self, folder: Path | None, form: Form) -> None:
        self._folder = folder
        self._form = form

    def images(self, rows: ImageRows) -> tuple[Array, str]:
        """Decode the images of `rows` and hash their files. The images are a memory map, loaded when accessed.

        Raises:
            BadImages: some files are missing or are not images.
            UserError: the disk has no room for the decoded images.
        """
        with ThreadPoolExecutor(_threads()) as pool:
            digest, problems = _digest(rows, pool)
            shape = (len(rows), 3, self._form.height, self._form.width)
            if self._folder is not None and not problems:
                facts = json.dumps({"format": FORMAT, "pillow": __version__, "files": digest, **self._form.facts()})
                path = self._folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:40]}.uint8"
                try:
                    return self._kept(path, rows, shape, pool), digest
                except OSError as error:
                    reason = error.strerror or error
                    log.warning(
                        "images are not cached: cannot write in %s: %s (task.image_cache=DIR sets another folder)",
                        path.parent,
                        reason,
                    )
                    self._folder = None
            return self._aside(rows, shape, pool, problems), digest

    def _kept(self, path: Path, rows: ImageRows, shape: tuple[int, ...], pool: ThreadPoolExecutor) -> Array:
        array = _mapped(path, shape)
        if array is not None:
            return array
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):  # the system releases it when the process ends
            array = _mapped(path, shape, warn=True)
            if array is None:
                if len(rows) > CHUNK:
                    log.info("decoding %d images; the next run reads them from %s", len(rows), path.parent)
                with replacing(path) as part, part.open("wb") as file:
                    self._write(file, rows, pool, {}, name=path.name)
                array = _mapped(path, shape)
        if array is None:
            raise OSError(f"{path.name} differs from what was written")
        return array

    def _aside(self, rows: ImageRows, shape: tuple[int, ...], pool: ThreadPoolExecutor, bad: dict[int, str]) -> Array:
        try:
            with tempfile.TemporaryFile() as file:
                self._write(file, rows, pool, bad)
                return np.asarray(np.memmap(file, dtype=np.uint8, mode="r", shape=shape))
        except OSError as error:
            need = f"{np.prod(shape) / 2**30:.1f} GiB"
            raise UserError(
                f"no room for {need} of decoded images in {tempfile.gettempdir()}: {error.strerror or error}; "
                "task.image_cache=DIR sets another folder"
            ) from error

    def _write(
        self, file: BinaryIO, rows: ImageRows, pool: ThreadPoolExecutor, bad: dict[int, str], name: str = ""
    ) -> None:
        """Decode all images into `file` and append a checksum. Images in `bad` are already known to be unreadable."""
        problems, crc = dict(bad), zlib.crc32(name.encode())
        for first in range(0, len(rows), CHUNK):
            chunk = [i for i in range(first, min(first + CHUNK, len(rows))) if i not in bad]
            for index, image in zip(chunk, pool.map(lambda i: self._decoded(rows, i), chunk), strict=True):
                if isinstance(image, str):
                    problems[index] = image
                else:
                    crc = zlib.crc32(image.data, crc)
                    file.write(image.data)
        if problems:
            raise BadImages([f"{rows.names[index]} ({problems[index]})" for index in sorted(problems)])
        file.write(f"{crc:08x}".encode())
        file.flush()

    def _decoded(self, rows: ImageRows, index: int) -> Array | str:
        """Decode an image, or return the reason why it cannot be read."""
        try:
            return decode(rows.read(index), self._form)
        except Exception as error:  # Pillow raises any kind of error on a broken file
            if isinstance(error, Image.UnidentifiedImageError):
                return "is not an image"
            return one_line(error)


def _digest(rows: ImageRows, pool: ThreadPoolExecutor) -> tuple[str, dict[int, str]]:
    """Hash all files in order, and give the reason for each file that cannot be read."""

    def of(index: int) -> bytes | str:
        try:
            return hashlib.sha256(rows.read(index)).digest()
        except OSError as error:
            return "is missing" if isinstance(error, FileNotFoundError) else error.strerror or one_line(error)

    whole, problems = hashlib.sha256(), {}
    for index, part in enumerate(pool.map(of, range(len(rows)))):
        if isinstance(part, str):
            problems[index] = part
        else:
            whole.update(part)
    return whole.hexdigest(), problems


def _mapped(path: Path, shape: tuple[int, ...], warn: bool = False) -> Array | None:
    """Map the images of a file into memory; None if the file is missing or incomplete."""
    size = int(np.prod(shape))
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == size + CHECKSUM:
                array = np.asarray(np.memmap(file, dtype=np.uint8, mode="r", shape=shape))
                file.seek(size)
                if file.read() == f"{_crc(array, path.name):08x}".encode():
                    return array
    except FileNotFoundError:
        return None
    except NotRead:
        pass  # the caller replaces the file
    if warn:
        log.warning("%s is damaged: making it again", path)
    return None


def _crc(array: Array, name: str) -> int:
    crc = zlib.crc32(name.encode())
    for part in _parts(array.reshape(-1), 1 << 26):
        crc = zlib.crc32(part.data, crc)
    return crc


def _parts(flat: Array, size: int) -> Iterator[Array]:
    return (flat[first : first + size] for first in range(0, len(flat), size))


def _threads() -> int:
    """Return the number of decoding threads. Threads help because Pillow releases the interpreter lock."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
