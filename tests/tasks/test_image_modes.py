"""Every mode that Pillow opens becomes the right 8-bit RGB, or is refused by its name."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin
from vtab_helpers import settings_of, write_task

from flexlora.errors import UserError
from flexlora.tasks import load_task
from flexlora.tasks.image_modes import EIGHT_BIT, PREMULTIPLIED, SIXTEEN_BIT, UNSIGNED, WIDE, UnsupportedMode, to_rgb
from flexlora.tasks.images import Form, decode

COLOUR = (200, 100, 50)
GREY = round((299 * 200 + 587 * 100 + 114 * 50) / 1000)
DEEP = 40_000  # of 65,535: 156 of 255, while Pillow's own conversion gives 255
OPENED = {
    *Image.MODES,
    *(mode for mode, _ in TiffImagePlugin.OPEN_INFO.values()),
    *(mode for mode, _ in PngImagePlugin._MODES.values()),
}
# Formats that Pillow does not open, or only with another program, or will soon drop.
NOT_OPENED = {"EPS", "PDF", "IM"}


def flat(mode: str) -> Image.Image:
    """A picture of one colour, or grey, in this mode."""
    rgb = Image.new("RGB", (16, 16), COLOUR)
    if mode in SIXTEEN_BIT:
        order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
        return Image.frombytes(mode, rgb.size, np.full((16, 16), DEEP, dtype=order).tobytes())
    if mode in WIDE:
        return Image.new(mode, rgb.size, DEEP)
    if mode in PREMULTIPLIED:
        rgb.putalpha(128)
        return rgb.convert(PREMULTIPLIED[mode]).convert(mode)
    if mode in ("P", "PA"):
        return rgb.quantize(4).convert(mode)
    return rgb.convert(mode)


def expected(mode: str) -> tuple[int, int, int]:
    if mode in SIXTEEN_BIT:
        return (round(DEEP / 257),) * 3
    return (GREY,) * 3 if mode in ("1", "L", "LA", "La") else COLOUR


def files(mode: str) -> dict[str, bytes]:
    """The picture in every format that Pillow can write this mode in and open again."""
    Image.init()
    found = {}
    for name in sorted(Image.SAVE.keys() - NOT_OPENED):
        file = io.BytesIO()
        try:
            flat(mode).save(file, name)
            with Image.open(io.BytesIO(file.getvalue())) as image:
                image.load()
        except Exception:
            continue
        found[name] = file.getvalue()
    return found


def test_every_mode_is_known():
    assert {*EIGHT_BIT, *PREMULTIPLIED, *SIXTEEN_BIT, *WIDE} == OPENED


@pytest.mark.parametrize("mode", sorted(OPENED))
def test_a_picture_in_memory_has_the_right_colour_or_is_refused(mode):
    image = flat(mode)
    image.format = "TIFF"
    if mode in WIDE:
        with pytest.raises(UnsupportedMode, match=f"^has Pillow's mode {mode} \\({WIDE[mode]} in TIFF\\)"):
            to_rgb(image)
        return
    rgb = np.asarray(to_rgb(image)).astype(int)
    assert rgb.shape == (16, 16, 3)
    if mode == "1":  # dithered
        assert set(rgb.flatten().tolist()) == {0, 255}
        return
    assert np.abs(rgb - expected(mode)).max() <= 2


@pytest.mark.parametrize("mode", sorted(OPENED - {"1"}))
def test_a_picture_in_a_file_has_the_right_colour_or_is_refused_by_its_mode(mode):
    """Whatever mode Pillow opens the file in: a picture never becomes brighter or darker than it was."""
    for name, content in files(mode).items():
        with Image.open(io.BytesIO(content)) as image:
            opened = image.mode
        if opened in WIDE or (opened in SIXTEEN_BIT and name not in UNSIGNED):
            with pytest.raises(UnsupportedMode, match=f"^has Pillow's mode {opened} "):
                decode(content, Form(16, 16, "bicubic"))
        elif opened != "1" and (opened == mode or mode not in (*WIDE, *SIXTEEN_BIT)):  # else Pillow cut it in writing
            pixels = decode(content, Form(16, 16, "bicubic")).astype(int)
            assert np.abs(pixels - np.reshape(expected(mode), (3, 1, 1))).max() <= 6, (name, opened)


def tiff(bits: int, photometric: int, data: bytes, width: int) -> bytes:
    """A grey TIFF file of one row, made by hand: Pillow does not write these."""
    values = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, v) for tag, v in values.items())
    start = 8 + len(data)
    return struct.pack("<2sHI", b"II", 42, start) + data + struct.pack("<H", len(values)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("bits", "photometric", "data", "values"),
    [
        (16, 1, struct.pack("<4H", 0, 128, 32_768, 65_535), [0, 0, 128, 255]),
        (16, 0, struct.pack("<4H", 0, 128, 32_768, 65_535), [255, 255, 127, 0]),  # 0 is white
        (12, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x10]), [0, 128, 255, 1]),
    ],
)
def test_grey_values_of_12_and_16_bits_keep_their_place_between_black_and_white(bits, photometric, data, values):
    pixels = decode(tiff(bits, photometric, data, 4), Form(1, 4, "bicubic"))
    assert pixels.tolist() == [[values]] * 3


def test_every_value_of_a_deep_png_is_scaled():
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    pixels = decode(file.getvalue(), Form(256, 256, "bicubic"))
    assert np.array_equal(pixels[1], np.round(values / 257).astype(np.uint8))


def test_integers_of_a_format_with_signs_are_refused():
    """FITS keeps 16 bits with a sign; where white is, only the reader of its header could say."""
    header = "".join(f"{line:<80}" for line in (
        "SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2",
        "NAXIS1  =                    2", "NAXIS2  =                    1", "END",
    )).ljust(2880).encode()  # fmt: skip
    content = header + struct.pack(">2h", -5, 300).ljust(2880, b"\0")
    with pytest.raises(UnsupportedMode, match=r"has Pillow's mode I;16 \(16-bit integers in FITS\)"):
        decode(content, Form(1, 2, "bicubic"))


@pytest.mark.parametrize("transparency", [3, bytes([0, 255, 10])])
def test_transparency_is_dropped_without_a_warning(transparency):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *COLOUR, 9, 9, 9])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode(file.getvalue(), Form(4, 4, "bicubic"))
    assert pixels[:, 0, 0].tolist() == list(COLOUR)


def test_the_orientation_of_a_photograph_is_not_applied():
    """As in the readers of the VTAB-1K literature: docs/reference/vtab.md says it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    left = np.zeros((8, 8, 3), dtype=np.uint8)
    left[:, :4] = 255
    file = io.BytesIO()
    Image.fromarray(left).save(file, "PNG", exif=exif)
    assert np.array_equal(decode(file.getvalue(), Form(8, 8, "bicubic")), left.transpose(2, 0, 1))


def test_pictures_that_cannot_be_read_are_named_with_their_mode(tmp_path):
    from flexlora.models.image_classifier import ImageInput

    folder = write_task(tmp_path / "kitti")
    for number in (0, 3):
        Image.new("F", (8, 8), 0.5).save(folder / f"images/test/{number:06d}.png", "TIFF")
    task = load_task(settings_of(data_dir=str(tmp_path), image_cache=None))
    with pytest.raises(UserError) as caught:
        task.preprocess(ImageInput((8, 8), "bicubic", (0.5,) * 3, (0.5,) * 3, None))
    assert "2 images cannot be read: images/test/000000.png (has Pillow's mode F (32-bit floats in TIFF), whose" in str(
        caught.value
    )
