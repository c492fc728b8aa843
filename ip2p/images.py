"""Opens and encodes pictures: which pixels a picture file shows, and how pixels are stored.

Every picture is opened by the same rules: it is turned upright, transparency is laid on white, deep greys are scaled to
8 bits, and nothing above `MAX_PIXELS` is read. So import, trainer, evaluation and editor see the same pixels.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ip2p.config import ImageFormat
from ip2p.records import content_hash

Array = NDArray[np.uint8]
"""(height, width, 3) uint8."""
Picture = Image.Image | Path | str | bytes | IO[bytes]
"""An opened image, a path, the content of a file, or an open file."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""The type of an image column, as `datasets` stores it."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 2**26
"""Larger pictures are refused, since they would fill the memory."""
MAX_SHAPE_DIFFERENCE = 0.02
"""By how much the aspect ratios of a pair's images may differ; what one has more is cropped."""
MARKED = 250
"""Darkest value of a pixel that counts as marked where a mask is read as yes or no."""
STORED_AS_IS = ("PNG", "JPEG", "WEBP")
"""Formats in which a plain picture is kept byte for byte."""


def open_picture(source: Picture) -> Image.Image:
    """Opens a picture as upright RGB on white. ValueError if it does not decode or is above `MAX_PIXELS`."""
    return _as_rgb(open_upright(source))


def open_pixels(source: Picture) -> Array:
    """Opens a picture as (height, width, 3) uint8, by the rules of `open_picture`."""
    return np.asarray(open_picture(source))


def open_upright(source: Picture) -> Image.Image:
    """Opens a picture in its own mode, upright. ValueError if it does not decode or is above `MAX_PIXELS`."""
    image = _load(source)
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def open_mask(source: Picture) -> Image.Image:
    """Opens a mask in grey, as how far it marks each pixel. ValueError as in `open_picture`.

    A mask marks what it makes transparent or, if that is nothing, what is white in it.
    """
    image = open_upright(source)
    if image.has_transparency_data:
        opacity = image.convert("RGBA").getchannel("A")
        if np.asarray(opacity).min() < 255:
            return ImageOps.invert(opacity)
    return _as_rgb(image).convert("L")


def read_mask(source: Picture) -> NDArray[np.bool_]:
    """Reads the area that a mask marks, by the rule of `open_mask`: what it marks wholly or all but."""
    marked: NDArray[np.bool_] = np.asarray(open_mask(source)) >= MARKED
    return marked


def encode_mask(source: Picture) -> bytes:
    """Encodes the area that a mask marks as a grey PNG: white where it marks, black elsewhere."""
    return encode_png(read_mask(source).astype(np.uint8) * np.uint8(255))


def plain_file(content: bytes) -> tuple[bytes, tuple[int, int]]:
    """Returns a picture file as upright RGB, unchanged if it is that already, else as PNG; and its (width, height).

    ValueError as in `open_picture`.
    """
    image = _load(content)
    is_plain = image.mode == "RGB" and not image.has_transparency_data and image.getexif().get(0x0112, 1) == 1
    if is_plain and image.format in STORED_AS_IS:
        return content, image.size
    picture = open_picture(image)
    return encode_png(picture), picture.size


def read_size(source: Picture) -> tuple[int, int]:
    """Reads (width, height) from the file's header, before it is turned upright. ValueError if there is none."""
    return _open(source).size


def check_size(size: tuple[int, int]) -> None:
    """Raises a ValueError if (width, height) is above `MAX_PIXELS`."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"image too large: {width} x {height} pixels, at most {MAX_PIXELS} are read. Shrink it.")


def fitted_size(size: tuple[int, int], short_side: int, multiple: int = 1) -> tuple[int, int]:
    """Scales (width, height) until the shorter is `short_side`, both rounded to a multiple."""
    width, height = (max(multiple, round(side * short_side / min(size) / multiple) * multiple) for side in size)
    return width, height


def check_shapes(original: tuple[int, int], edited: tuple[int, int]) -> None:
    """Raises a ValueError if the shapes of two (width, height) differ by more than `MAX_SHAPE_DIFFERENCE`."""
    wide, high = original[0] * edited[1], edited[0] * original[1]
    if abs(wide - high) > MAX_SHAPE_DIFFERENCE * wide:
        raise ValueError(f"two shapes: {original} and {edited}")


def fit_picture(
    picture: Image.Image, size: tuple[int, int], centering: tuple[float, float] = (0.5, 0.5)
) -> Image.Image:
    """Crops a picture to the shape of (width, height), and resizes it if it has another size then."""
    if picture.size == size:
        return picture
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS, centering=centering)


def encode_image(pixels: Array, image_format: ImageFormat, quality: int) -> bytes:
    """Encodes (H, W, 3) uint8 as an image file; `quality` is for the lossy formats."""
    options: dict[ImageFormat, dict[str, int]] = {
        "png": {},
        "webp": {"quality": quality, "method": 4},
        "jpeg": {"quality": quality, "subsampling": 0},  # 4:4:4: thin coloured edges survive
    }
    return _saved(Image.fromarray(pixels), image_format.upper(), **options[image_format])


def encode_png(picture: Image.Image | Array) -> bytes:
    """Encodes a picture without loss."""
    return _saved(picture if isinstance(picture, Image.Image) else Image.fromarray(picture), "PNG")


def format_of(content: bytes) -> ImageFormat:
    """Returns the format of an image file by its first bytes; an unknown one counts as PNG."""
    if content.startswith(b"\xff\xd8"):
        return "jpeg"
    return "webp" if content[:4] == b"RIFF" else "png"


def _open(source: Picture) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Image.DecompressionBombError as error:
        raise ValueError(f"image too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError("image does not decode: its format is unknown") from error
    except Exception as error:  # codecs raise many kinds, and a broken picture must not end a run
        raise ValueError(f"image does not decode: {error}") from error


def _load(source: Picture) -> Image.Image:
    image = _open(source)
    check_size(image.size)
    try:
        image.load()
    except Exception as error:  # as above
        raise ValueError(f"image does not decode: {error}") from error
    return image


def _as_rgb(image: Image.Image) -> Image.Image:
    try:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _from_deep_grey(image)
        if not image.has_transparency_data:
            return image.convert("RGB")
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    except Exception as error:  # such as a colour space that Pillow cannot convert
        raise ValueError(f"image does not decode: {error}") from error


def hash_pixels(pixels: NDArray[Any] | None) -> str:
    """Hashes shape and values; empty for None."""
    return "" if pixels is None else content_hash(pixels.shape, hashlib.sha256(pixels.tobytes()).hexdigest())


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Scales greys of 16 or 32 bits to 8; Pillow would clip them to white."""
    values = np.asarray(image)
    is_short = image.mode.startswith("I;16") or image.format == "PPM"
    grey = (values >> 8 if is_short else _scaled_by_range(values)).clip(0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _scaled_by_range(values: NDArray[Any]) -> NDArray[Any]:
    """Scales values of unknown depth by the smallest of 1, 8, 16 and 32 bits that holds them all."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        high = values.max(initial=0)
        white = next((white for white in (1, 255, 65535) if high <= white), high)
        return np.rint(values * (255 / white))
    wide = values.astype(np.int64)
    if wide.max(initial=0) <= 255:
        return wide
    if wide.max() <= 65535 and wide.min() >= 0:
        return wide >> 8
    return (wide & 0xFFFFFFFF) >> 24  # Pillow shows the upper half of unsigned values as negative


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
