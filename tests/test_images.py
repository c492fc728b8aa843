"""Every picture is opened as upright RGB on white, whatever its file holds."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ip2p import images
from ip2p.images import (
    check_size,
    encode_mask,
    encode_png,
    fitted_size,
    open_mask,
    open_picture,
    open_pixels,
    plain_file,
    read_mask,
)
from ip2p.training.data import RawPair
from ip2p.training.decoding import Framing, Regions, decode_pair

RAMP = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(4, 0)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_greys_of_sixteen_bits_keep_their_levels(kind: str) -> None:
    pixels = open_pixels(saved(Image.fromarray(RAMP), kind))
    assert np.array_equal(pixels, (RAMP >> 8).astype(np.uint8)[..., None].repeat(3, -1))


def test_greys_of_thirty_two_bits_are_scaled_by_what_holds_them() -> None:
    small = np.arange(64, dtype=np.int32)[None].repeat(4, 0)
    assert np.array_equal(open_pixels(saved(Image.fromarray(small), "TIFF"))[..., 0], small)
    assert np.array_equal(open_pixels(saved(Image.fromarray(small << 8), "TIFF"))[..., 0], small)
    assert np.array_equal(open_pixels(saved(Image.fromarray(small << 24), "TIFF"))[..., 0], small)
    share = np.linspace(0, 1, 256, dtype=np.float32)[None]
    for full in (1, 255):
        assert np.array_equal(open_pixels(saved(Image.fromarray(share * full), "TIFF"))[0, :, 0], np.arange(256))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "I;16"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    hidden = Image.new("RGBA", (4, 4), (255, 0, 255, 0))
    palette = hidden.convert("RGB").quantize(2)
    files = {
        "RGBA": saved(hidden, "PNG"),
        "LA": saved(hidden.convert("LA"), "PNG"),
        "P": saved(palette, "PNG", transparency=palette.getpixel((0, 0))),
        "RGB": saved(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
        "I;16": saved(Image.fromarray(np.full((4, 4), 5, np.uint16)), "PNG", transparency=5),
    }
    assert (open_pixels(files[mode]) == 255).all()
    assert (open_pixels(plain_file(files[mode])[0]) == 255).all()


def test_colour_spaces_become_rgb() -> None:
    colour = Image.new("RGB", (4, 4), (200, 30, 40))
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    in_lab = ImageCms.profileToProfile(colour, srgb, lab, outputMode="LAB")
    assert in_lab is not None
    files = [
        saved(colour.convert("CMYK"), "TIFF"),
        saved(in_lab, "TIFF"),
        saved(colour.quantize(4), "GIF"),
        saved(colour.convert("YCbCr"), "JPEG", quality=100),
    ]
    for content in files:
        assert np.abs(open_pixels(content).astype(int) - (200, 30, 40)).max() <= 3


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_upright_in_any_mode(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    for picture in (Image.fromarray(RAMP), Image.new("RGB", (64, 4))):
        assert open_picture(saved(picture, "PNG", exif=exif)).size == ((64, 4) if turn < 5 else (4, 64))


def test_what_is_not_a_picture_and_what_is_too_large_are_errors_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "PNG")
    for content in (b"", b"text", whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="image does not decode: ") as caught:
            open_picture(content)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(images, "MAX_PIXELS", 63 * 64)
    with pytest.raises(ValueError, match="image too large: 64 x 64 pixels, at most 4032"):
        open_picture(whole)
    with pytest.raises(ValueError, match="image too large: 64 x 64"):
        check_size(fitted_size((8, 8), 64))


def test_the_short_side_is_fitted() -> None:
    assert fitted_size((90, 60), 32) == (48, 32)
    assert fitted_size((90, 60), 33, multiple=8) == (48, 32)
    assert fitted_size((4000, 10), 64) == (25600, 64)


def test_every_reader_of_a_mask_asks_one_rule_what_it_marks() -> None:
    """Grey levels for the trainer, yes or no for the evaluation and the exports, of masks of every kind."""
    marks = np.zeros((4, 6), np.uint8)
    marks[1:3, 2:5], marks[3, 5] = 255, 100
    clear = np.dstack([np.full((4, 6, 3), 9, np.uint8), 255 - marks])
    masks = {
        "white on black": Image.fromarray(marks),
        "in colours": Image.fromarray(np.dstack([marks] * 3)),
        "transparent": Image.fromarray(clear),
        "opaque, with transparency": Image.fromarray(np.dstack([marks, np.full_like(marks, 255)]), "LA"),
        "sixteen bits": Image.fromarray(marks.astype(np.uint16) * 257),
    }
    black = encode_png(np.zeros((4, 6, 3), np.uint8))
    framing = Framing(lambda size: size, Regions(1, 0.1, from_mask=True))
    for name, mask in masks.items():
        content = saved(mask, "PNG")
        assert np.array_equal(np.asarray(open_mask(content)), marks), name
        assert np.array_equal(read_mask(content), marks == 255), name
        assert np.array_equal(np.asarray(open_mask(encode_mask(content))), (marks == 255) * 255), name
        changed = decode_pair(RawPair(black, black, "-", content), framing).changed
        assert changed is not None and np.array_equal(np.round(changed * 255), marks), name
