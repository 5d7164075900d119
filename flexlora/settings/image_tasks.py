"""The schema of `task.*` for tasks whose input is an image."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class VtabSplit(Enum):
    """The images of a VTAB-1K task for training and evaluation: the protocol's, or those for choosing settings."""

    train800val200_test = "train800val200_test"
    train800_val200 = "train800_val200"


class Normalization(Enum):
    """The mean and deviation that normalise an image in [0, 1]."""

    imagenet = "imagenet"
    model = "model"
    none = "none"


class Interpolation(Enum):
    """The interpolation with which an image is resized."""

    bicubic = "bicubic"
    bilinear = "bilinear"
    model = "model"


class Resize(Enum):
    """The way in which an image gets the model's size: the whole image is stretched, or its centre is cut out."""

    stretch = "stretch"
    center_crop = "center_crop"


@dataclass
class ImageTask:
    """`task.*` that every image task has. The input is an image, and the output is a class."""

    name: str = MISSING
    family: str = MISSING
    folders: list[str] = MISSING
    normalization: Normalization = MISSING
    interpolation: Interpolation = MISSING
    random_resized_crop: float | None = MISSING
    horizontal_flip: float = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    data_dir: str | None = MISSING
    max_train_rows: int | None = MISSING
    max_eval_rows: int | None = MISSING
    validation_rows: int | None = MISSING
    image_cache: str | None = MISSING


@dataclass
class VtabTask(ImageTask):
    """`task.*` of a VTAB-1K task."""

    group: str = MISSING
    num_classes: int = MISSING
    test_rows: int = MISSING
    split: VtabSplit = MISSING

    @property
    def num_labels(self) -> int:
        """The number of classes, under the name that backbones use."""
        return self.num_classes


@dataclass
class ImageSetTask(ImageTask):
    """`task.*` of a whole image data set, or of a folder of the user."""

    num_classes: int | None = MISSING
    resize: Resize = MISSING
    distribution: str | None = MISSING
    sizes: dict[str, list[int]] = MISSING
    train_share: float = MISSING
    test_share: float = MISSING
    split_seed: int = MISSING
    metric: str = MISSING
    hub_path: str | None = MISSING
    hub_name: str | None = MISSING
    hub_revision: str | None = MISSING

    @property
    def num_labels(self) -> int | None:
        """The number of classes, under the name that backbones use. None until the folder was read."""
        return self.num_classes

    @property
    def is_own(self) -> bool:
        """Whether this is a folder of the user, and not one of the known sets."""
        return self.distribution is None and self.hub_path is None
