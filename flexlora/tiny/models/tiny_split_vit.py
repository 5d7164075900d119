"""`scale=tiny`: the small relative of the paper's ViT, with query, key and value as three linears."""

from flexlora.models.image_classifier import ImageBackbone
from flexlora.models.split_image_classifier import split
from flexlora.settings import ModelSettings
from flexlora.tiny.models import tiny_vit


def load(settings: ModelSettings, num_labels: int | None) -> ImageBackbone:
    """Load the small relative of `model.name`, and split its attention.

    Raises:
        UserError: `tiny_vit.load` raises it.
    """
    return split(tiny_vit.load(settings, num_labels))
