"""`scale=tiny`: scikit-learn's handwritten digits as whole image sets."""

from dataclasses import replace

from flexlora.settings import ImageSetTask
from flexlora.tasks import image_sets
from flexlora.tasks.image_task import ImageClassification, image_task
from flexlora.tiny.digit_images import SETS
from flexlora.tiny.tasks.digits import check, drawn, provenance


def load(settings: ImageSetTask) -> ImageClassification:
    """Load a small relative of an image set: 1,000 digits to train on, and 797 other digits to test on.

    A folder of the user is read itself, so that it can be tried with the small model.

    Raises:
        UserError: `task.data_dir` is set, the task has no small relative, or `task.num_classes` is not its number.
    """
    if settings.is_own and settings.data_dir is not None:
        return image_sets.load(settings)
    check(settings, SETS)
    classes, example = SETS[settings.name]
    train, test = drawn(example)
    return image_task(replace(settings, num_classes=classes), train, {"test": test}, provenance())
