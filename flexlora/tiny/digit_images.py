"""The images of `scale=tiny`: each image task has a small relative made of handwritten digits."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

# Side lengths in pixels: of an image, and of a digit in it. scikit-learn's digits are 8 x 8.
CANVAS, DIGIT = 32, 16

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Digits:
    """Some of the 1,797 digits: `pixels` is (rows, 8, 8), `digits` is the class of each row, 0 to 9."""

    pixels: Pixels
    digits: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digits)

    def before(self, row: int) -> int:
        """Count the earlier rows with the same digit. Classes assigned by this count are evenly distributed."""
        return int(np.sum(self.digits[:row] == self.digits[row]))

    def another(self, digit: int, draw: np.random.Generator) -> Pixels:
        """Draw a random image of `digit`."""
        return self.pixels[draw.choice(np.flatnonzero(self.digits == digit))]


Example = Callable[[Digits, int, np.random.Generator], tuple[Pixels, int]]
"""Makes one row, given all digits, the row's number and a random generator. It returns the image, (32, 32) or in colour
(32, 32, 3), and the class."""
Look = Callable[[Digits, int, int, np.random.Generator], Pixels]
"""Draws the digit of a row with the look of the given number."""


def which(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The class is the digit."""
    return _resized(digits.pixels[row], CANVAS), int(digits.digits[row])


def odd(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The class is whether the digit is odd."""
    return _resized(digits.pixels[row], CANVAS), int(digits.digits[row] % 2)


def four_alike(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The image holds four images of the same digit. The class is the digit."""
    image, digit = _empty(), int(digits.digits[row])
    _put(image, digits.pixels[row], 0, 0)
    for top, left in ((0, DIGIT), (DIGIT, 0), (DIGIT, DIGIT)):
        _put(image, digits.another(digit, draw), top, left)
    return image, digit


def two_of_ten(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The image holds two different digits side by side, in either order. The class is the pair, one of 45."""
    digit = int(digits.digits[row])
    other = (digit + 1 + digits.before(row) % 9) % 10
    image, left = _empty(), int(draw.integers(2))
    _put(image, digits.pixels[row], 0, DIGIT * left, CANVAS)
    _put(image, digits.another(other, draw), 0, DIGIT * (1 - left), CANVAS)
    low, high = sorted((digit, other))
    return image, high * (high - 1) // 2 + low


def blotted(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """Zero to four grey squares cover parts of the digit, each 1/16 of the image. The class is their number."""
    image, count = _resized(digits.pixels[row], CANVAS).copy(), int(draw.integers(5))
    side = CANVAS // 4
    for cell in draw.permutation(16)[:count]:
        top, left = side * (cell // 4), side * (cell % 4)
        image[top : top + side, left : left + side] = 128
    return image, count


def how_many(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """One to eight digits lie in the nine cells of a square. The class is their number minus one."""
    count = int(draw.integers(1, 9))
    square = np.zeros((3 * DIGIT, 3 * DIGIT), dtype=np.uint8)
    others = draw.integers(len(digits), size=count - 1)
    for cell, number in zip(draw.permutation(9)[:count], [row, *others], strict=True):
        _put(square, digits.pixels[number], DIGIT * (cell // 3), DIGIT * (cell % 3))
    return _resized(square, CANVAS), count - 1


def nearest(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The image holds two digits. The class is the distance of the nearer one: six sizes, from 28 pixels down to 8."""
    distance = int(draw.integers(6))
    image = _empty()
    for number, side in ((row, 28 - 4 * distance), (draw.integers(len(digits)), 6)):
        top, left = draw.integers(CANVAS - side + 1, size=2)
        _put(image, digits.pixels[number], top, left, side, side)
    return image, distance


def how_far_and_odd(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The class combines the distance of the digit (30, 22 or 14 pixels large) and whether the digit is odd."""
    distance = int(draw.integers(3))
    side = 30 - 8 * distance
    top, left = draw.integers(CANVAS - side + 1, size=2)
    return _alone(digits.pixels[row], top, left, side, side), 2 * distance + int(digits.digits[row] % 2)


def on_a_road(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """A digit stands on a road. The class is the range of its distance, one of four: a farther digit is smaller."""
    side = int(draw.integers(8, 32))
    top, left = (CANVAS - side) // 2, int(draw.integers(CANVAS - side + 1))
    return _alone(digits.pixels[row], top, left, side, side), (31 - side) // 6


def column(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The class is the column where the digit begins, one of 16. Its height is random."""
    left, top = int(draw.integers(16)), int(draw.integers(CANVAS - DIGIT + 1))
    return _alone(digits.pixels[row], top, left), left


def from_above(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The class is the height from which the digit is seen, one of nine: from 32 pixels tall down to 8."""
    height = int(draw.integers(9))
    tall = CANVAS - 3 * height
    return _alone(digits.pixels[row], (CANVAS - tall) // 2, 0, tall, CANVAS), height


def turned(steps: int) -> tuple[int, Example]:
    """Make a task whose class is the rotation of the digit: one of `steps` equal steps of the full circle."""

    def example(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
        step = int(draw.integers(steps))
        image = Image.fromarray(_resized(digits.pixels[row], CANVAS))
        return np.asarray(image.rotate(360 / steps * step, Image.Resampling.BICUBIC)), step

    return steps, example


def digit_and(classes: int, look: Look) -> tuple[int, Example]:
    """Make a task whose class is the pair (digit, look): the first `classes` pairs, evenly distributed."""

    def example(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
        digit = int(digits.digits[row])
        number = digits.before(row) % len(range(digit, classes, 10))
        return look(digits, row, number, draw), 10 * number + digit

    return classes, example


def beside(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """The look is the digit to the right of the row's digit."""
    image = _empty()
    _put(image, digits.pixels[row], 0, 0, CANVAS)
    _put(image, digits.another(number, draw), 0, DIGIT, CANVAS)
    return image


def quarter_and_ground(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """The look is the digit's quarter of the image, and bright on black, bright on grey, or dark on white."""
    image = _in_quarter(digits.pixels[row], number % 4)
    return [image, 128 + image // 2, 255 - image][number // 4]


def quarter_and_colour(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """The look is the digit's quarter of the image and one of ten colours."""
    return _coloured(_in_quarter(digits.pixels[row], number % 4), (number // 4) / 10)


def colour(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """The look is one of eleven colours."""
    return _coloured(_resized(digits.pixels[row], CANVAS), number / 11)


def quarter_and_few_colours(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """The look is the digit's quarter of the image and one of five colours."""
    return _coloured(_in_quarter(digits.pixels[row], number % 4), (number // 4) / 5)


def build(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """The look is one of four shapes: large, narrow, flat or small."""
    height, width = ((28, 28), (28, 14), (14, 28), (14, 14))[number]
    return _alone(digits.pixels[row], (CANVAS - height) // 2, (CANVAS - width) // 2, height, width)


def pattern(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """The look is which quarters repeat the digit: all, the upper two, the left two, or those of either diagonal."""
    quarters = ((0, 1, 2, 3), (0, 1), (0, 2), (0, 3), (1, 2))[number]
    return np.max([_in_quarter(digits.pixels[row], quarter) for quarter in quarters], axis=0)


RELATIVES: dict[str, tuple[int, Example]] = {
    "vtab/cifar100": digit_and(100, beside),
    "vtab/caltech101": digit_and(102, quarter_and_ground),
    "vtab/dtd": digit_and(47, pattern),
    "vtab/oxford_flowers102": digit_and(102, colour),
    "vtab/oxford_iiit_pet": digit_and(37, build),
    "vtab/svhn": (10, which),
    "vtab/sun397": digit_and(397, quarter_and_colour),
    "vtab/patch_camelyon": (2, odd),
    "vtab/eurosat": (10, four_alike),
    "vtab/resisc45": (45, two_of_ten),
    "vtab/diabetic_retinopathy": (5, blotted),
    "vtab/clevr_count": (8, how_many),
    "vtab/clevr_dist": (6, nearest),
    "vtab/dmlab": (6, how_far_and_odd),
    "vtab/kitti": (4, on_a_road),
    "vtab/dsprites_loc": (16, column),
    "vtab/dsprites_ori": turned(16),
    "vtab/smallnorb_azi": turned(18),
    "vtab/smallnorb_ele": (9, from_above),
}
"""Maps a VTAB-1K task to its number of classes, the same as in the real task, and to its small relative."""

SETS: dict[str, tuple[int, Example]] = {
    "images/cars": digit_and(196, quarter_and_few_colours),
    "images/dtd": RELATIVES["vtab/dtd"],
    "images/eurosat": RELATIVES["vtab/eurosat"],
    "images/gtsrb": digit_and(43, pattern),
    "images/resisc45": RELATIVES["vtab/resisc45"],
    "images/sun397": RELATIVES["vtab/sun397"],
    "images/svhn": RELATIVES["vtab/svhn"],
    "images/folder": RELATIVES["vtab/svhn"],
}
"""The same for whole image sets."""


def _empty() -> Pixels:
    return np.zeros((CANVAS, CANVAS), dtype=np.uint8)


def _resized(pixels: Pixels, height: int, width: int | None = None) -> Pixels:
    """Resize to `height` x `width`, or to a square where no width is given."""
    size = (height if width is None else width, height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _put(image: Pixels, digit: Pixels, top: int, left: int, height: int = DIGIT, width: int = DIGIT) -> None:
    """Draw a digit into an image: each pixel keeps the larger of the two values."""
    place = image[top : top + height, left : left + width]
    np.maximum(place, _resized(digit, height, width), out=place)


def _alone(digit: Pixels, top: int, left: int, height: int = DIGIT, width: int = DIGIT) -> Pixels:
    """Draw the digit into an empty image."""
    image = _empty()
    _put(image, digit, top, left, height, width)
    return image


def _in_quarter(digit: Pixels, quarter: int) -> Pixels:
    """Draw the digit into one quarter of an empty image: 0 and 1 are the upper ones, 2 and 3 the lower ones."""
    return _alone(digit, DIGIT * (quarter // 2), DIGIT * (quarter % 2))


def _coloured(image: Pixels, hue: float) -> Pixels:
    """Colour the bright pixels with `hue`, a fraction of the colour circle: (rows, columns, 3)."""
    return np.rint(image[:, :, None] * np.array(colorsys.hsv_to_rgb(hue, 1.0, 1.0))).astype(np.uint8)
