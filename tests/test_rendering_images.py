"""What the image codecs keep."""

from __future__ import annotations

import numpy as np
import pytest

from ip2p.config import ImageFormat
from ip2p.images import encode_image, open_picture


def gradient() -> np.ndarray:
    y, x = np.mgrid[0:40, 0:56]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], axis=-1).astype(np.uint8)


def test_png_keeps_every_pixel() -> None:
    assert np.array_equal(np.asarray(open_picture(encode_image(gradient(), "png", 1))), gradient())


@pytest.mark.parametrize("image_format", ["webp", "jpeg"])
def test_lossy_codecs_keep_a_smooth_picture_closely_and_obey_the_quality(image_format: ImageFormat) -> None:
    fine, coarse = encode_image(gradient(), image_format, 95), encode_image(gradient(), image_format, 20)
    error = np.abs(np.asarray(open_picture(fine)).astype(int) - gradient()).mean()
    assert error < 4
    assert len(coarse) < len(fine)


def test_jpeg_keeps_the_colour_of_a_single_pixel_line() -> None:
    picture = np.full((32, 32, 3), 255, np.uint8)
    picture[:, 16] = (255, 0, 0)
    line = np.asarray(open_picture(encode_image(picture, "jpeg", 95)))[:, 16].astype(int)
    assert np.abs(line - (255, 0, 0)).max() < 40
