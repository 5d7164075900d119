"""Converts an image in any of Pillow's modes to 8-bit RGB, or refuses the mode by its name.

Neither an embedded colour profile nor the EXIF orientation is applied, and an alpha channel is dropped: all this is as
in the readers of the VTAB-1K literature (torchvision's).
"""

import numpy as np
from PIL import Image

# Pillow's own conversion is right for these: they have 8 bits, or 1 bit, for each channel.
EIGHT_BIT = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "LA", "PA", "RGBA")
# The colours of these are multiplied by their alpha; the second mode has the colours themselves.
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
# Pillow's own conversion cuts these off at 255, so that nearly every picture becomes white.
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
# The formats whose 16-bit values go from 0 to the largest number of their bits; those of FITS, for example, have signs.
UNSIGNED = ("PNG", "TIFF", "JPEG2000")
# Tags of a TIFF file: the bits of a value, and whether 0 is white.
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0

WIDE = {"I": "32-bit integers", "F": "32-bit floats"}


class UnsupportedMode(ValueError):
    """The image has a mode whose values have no known place between black and white."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image, as opened by Pillow, to 8-bit RGB.

    Raises:
        UnsupportedMode: the mode has no known range; the message names it.
    """
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    if image.mode in EIGHT_BIT:
        image.load()
        image.info.pop("transparency", None)  # it has no effect on the colours, but Pillow warns of it
        return image.convert("RGB")
    if image.mode in SIXTEEN_BIT and image.format in UNSIGNED:
        return _from_sixteen_bits(image).convert("RGB")
    values = WIDE.get(image.mode, "16-bit integers" if image.mode in SIXTEEN_BIT else "an unknown mode")
    raise UnsupportedMode(
        f"has Pillow's mode {image.mode} ({values} in {image.format}), whose white is not known: save it as 8-bit RGB"
    )


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Scale grey values, from 0 to the largest number of their bits, to 0 to 255."""
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(BITS, (16,)) or (16,)
    white = 2**bits - 1
    grey = np.asarray(image).astype(np.uint32)
    scaled = ((grey * 255 + white // 2) // white).astype(np.uint8)
    return Image.fromarray(255 - scaled if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else scaled)
