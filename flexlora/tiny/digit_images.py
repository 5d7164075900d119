"""The images of `scale=tiny` for VTAB-1K: of each of its 19 tasks a small relative, drawn from handwritten digits."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

# Pixels of a side: of an image, and of a digit in it (8 x 8 as they come).
CANVAS, DIGIT = 32, 16

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Digits:
    """Some of the 1,797 digits: (rows, 8, 8), and which digit each is."""

    pixels: Pixels
    digits: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digits)

    def before(self, row: int) -> int:
        """How many rows before this one have the same digit: what is dealt out by it is dealt out evenly."""
        return int(np.sum(self.digits[:row] == self.digits[row]))

    def another(self, digit: int, draw: np.random.Generator) -> Pixels:
        """Some image of this digit."""
        return self.pixels[draw.choice(np.flatnonzero(self.digits == digit))]


Example = Callable[[Digits, int, np.random.Generator], tuple[Pixels, int]]
"""The image, (32, 32) or in colours (32, 32, 3), and the class of a row: of these digits, the row's own, with what is
drawn for it."""
Look = Callable[[Digits, int, int, np.random.Generator], Pixels]
"""The image of a row's digit in the look of this number."""


def which(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """The digit itself."""
    return _resized(digits.pixels[row], CANVAS), int(digits.digits[row])


def odd(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """Whether the digit is odd."""
    return _resized(digits.pixels[row], CANVAS), int(digits.digits[row] % 2)


def four_alike(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """Of which digit there are four."""
    image, digit = _empty(), int(digits.digits[row])
    _put(image, digits.pixels[row], 0, 0)
    for top, left in ((0, DIGIT), (DIGIT, 0), (DIGIT, DIGIT)):
        _put(image, digits.another(digit, draw), top, left)
    return image, digit


def two_of_ten(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """Which two different digits stand side by side, in either order: 45 pairs."""
    digit = int(digits.digits[row])
    other = (digit + 1 + digits.before(row) % 9) % 10
    image, left = _empty(), int(draw.integers(2))
    _put(image, digits.pixels[row], 0, DIGIT * left, CANVAS)
    _put(image, digits.another(other, draw), 0, DIGIT * (1 - left), CANVAS)
    low, high = sorted((digit, other))
    return image, high * (high - 1) // 2 + low


def blotted(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """How many blots, none to four, lie on the digit: grey squares, a sixteenth of the image each."""
    image, count = _resized(digits.pixels[row], CANVAS).copy(), int(draw.integers(5))
    side = CANVAS // 4
    for cell in draw.permutation(16)[:count]:
        top, left = side * (cell // 4), side * (cell % 4)
        image[top : top + side, left : left + side] = 128
    return image, count


def how_many(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """How many digits, one to eight, lie in the nine cells of a square."""
    count = int(draw.integers(1, 9))
    square = np.zeros((3 * DIGIT, 3 * DIGIT), dtype=np.uint8)
    others = draw.integers(len(digits), size=count - 1)
    for cell, number in zip(draw.permutation(9)[:count], [row, *others], strict=True):
        _put(square, digits.pixels[number], DIGIT * (cell // 3), DIGIT * (cell % 3))
    return _resized(square, CANVAS), count - 1


def nearest(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """In which of six distances the nearer of two digits is: the nearer, the larger, from 28 pixels down to 8."""
    distance = int(draw.integers(6))
    image = _empty()
    for number, side in ((row, 28 - 4 * distance), (draw.integers(len(digits)), 6)):
        top, left = draw.integers(CANVAS - side + 1, size=2)
        _put(image, digits.pixels[number], top, left, side, side)
    return image, distance


def how_far_and_odd(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """In which of three distances the digit is (30, 22 or 14 pixels large), and whether it is odd."""
    distance = int(draw.integers(3))
    side = 30 - 8 * distance
    top, left = draw.integers(CANVAS - side + 1, size=2)
    return _alone(digits.pixels[row], top, left, side, side), 2 * distance + int(digits.digits[row] % 2)


def on_a_road(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """In which of four ranges the distance of a digit on a road is: the farther, the smaller, its foot the higher."""
    side = int(draw.integers(8, 32))
    top, left = (CANVAS - side) // 2, int(draw.integers(CANVAS - side + 1))
    return _alone(digits.pixels[row], top, left, side, side), (31 - side) // 6


def column(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """In which of 16 columns the digit begins, at any height."""
    left, top = int(draw.integers(16)), int(draw.integers(CANVAS - DIGIT + 1))
    return _alone(digits.pixels[row], top, left), left


def from_above(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
    """From which of nine heights the digit is seen: the higher, the flatter it is, from 32 pixels down to 8."""
    height = int(draw.integers(9))
    tall = CANVAS - 3 * height
    return _alone(digits.pixels[row], (CANVAS - tall) // 2, 0, tall, CANVAS), height


def turned(steps: int) -> tuple[int, Example]:
    """By how many of so many steps round the circle the digit is turned."""

    def example(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
        step = int(draw.integers(steps))
        image = Image.fromarray(_resized(digits.pixels[row], CANVAS))
        return np.asarray(image.rotate(360 / steps * step, Image.Resampling.BICUBIC)), step

    return steps, example


def digit_and(classes: int, look: Look) -> tuple[int, Example]:
    """Which digit, and in which look: the first so many of all pairs, dealt out evenly."""

    def example(digits: Digits, row: int, draw: np.random.Generator) -> tuple[Pixels, int]:
        digit = int(digits.digits[row])
        number = digits.before(row) % len(range(digit, classes, 10))
        return look(digits, row, number, draw), 10 * number + digit

    return classes, example


def beside(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """Which digit stands to its right."""
    image = _empty()
    _put(image, digits.pixels[row], 0, 0, CANVAS)
    _put(image, digits.another(number, draw), 0, DIGIT, CANVAS)
    return image


def quarter_and_ground(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """In which quarter of the image it stands, bright on black, bright on grey, or dark on white."""
    image = _in_quarter(digits.pixels[row], number % 4)
    return [image, 128 + image // 2, 255 - image][number // 4]


def quarter_and_colour(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """In which quarter of the image it stands, in which of ten colours."""
    return _coloured(_in_quarter(digits.pixels[row], number % 4), (number // 4) / 10)


def colour(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """In which of eleven colours it is."""
    return _coloured(_resized(digits.pixels[row], CANVAS), number / 11)


def build(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """Whether it is large, narrow, flat or small."""
    height, width = ((28, 28), (28, 14), (14, 28), (14, 14))[number]
    return _alone(digits.pixels[row], (CANVAS - height) // 2, (CANVAS - width) // 2, height, width)


def pattern(digits: Digits, row: int, number: int, draw: np.random.Generator) -> Pixels:
    """Which quarters of the image repeat it: all, the upper, the left, or those of one or the other diagonal."""
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
"""By the task's name: its classes, as many as the real one has, and its small relative."""


def _empty() -> Pixels:
    return np.zeros((CANVAS, CANVAS), dtype=np.uint8)


def _resized(pixels: Pixels, height: int, width: int | None = None) -> Pixels:
    """As high and wide, or a square."""
    size = (height if width is None else width, height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _put(image: Pixels, digit: Pixels, top: int, left: int, height: int = DIGIT, width: int = DIGIT) -> None:
    """Draw a digit into an image, over what is there."""
    place = image[top : top + height, left : left + width]
    np.maximum(place, _resized(digit, height, width), out=place)


def _alone(digit: Pixels, top: int, left: int, height: int = DIGIT, width: int = DIGIT) -> Pixels:
    """The digit in an image that is empty else."""
    image = _empty()
    _put(image, digit, top, left, height, width)
    return image


def _in_quarter(digit: Pixels, quarter: int) -> Pixels:
    """The digit in a quarter of an empty image, counted as one reads."""
    return _alone(digit, DIGIT * (quarter // 2), DIGIT * (quarter % 2))


def _coloured(image: Pixels, hue: float) -> Pixels:
    """What is bright in this hue, a share of the colour circle: (rows, columns, 3)."""
    return np.rint(image[:, :, None] * np.array(colorsys.hsv_to_rgb(hue, 1.0, 1.0))).astype(np.uint8)
