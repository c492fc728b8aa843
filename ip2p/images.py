"""The codec between rendered arrays and the bytes that are stored."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ip2p.config import ImageFormat

Array = NDArray[np.uint8]
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""A picture in a table, as `datasets` has it."""


def encode_image(pixels: Array, image_format: ImageFormat, quality: int) -> bytes:
    """(H, W, 3) uint8 to an image file; `quality` is that of the lossy formats."""
    options: dict[ImageFormat, dict[str, Any]] = {
        "png": {},
        "webp": {"quality": quality, "method": 4},
        "jpeg": {"quality": quality, "subsampling": 0},  # 4:4:4: thin coloured edges survive
    }
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format.upper(), **options[image_format])
    return buffer.getvalue()


def decode_image(content: bytes) -> Image.Image:
    """An image file to RGB."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def format_of(content: bytes) -> ImageFormat:
    """What an image file is, by its first bytes; anything else counts as PNG."""
    if content.startswith(b"\xff\xd8"):
        return "jpeg"
    return "webp" if content[:4] == b"RIFF" else "png"
