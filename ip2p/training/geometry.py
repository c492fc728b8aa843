"""From the cells of a row to two square images under one geometry. No torch here."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


@dataclass(frozen=True, slots=True)
class RawPair:
    """A row as it is stored: two undecoded images and the instruction."""

    original: Any
    edited: Any
    edit_prompt: str | None


@dataclass(frozen=True, slots=True)
class DecodedPair:
    """Two images under one geometry."""

    pixels: NDArray[np.uint8]
    """(2, resolution, resolution, 3): original and edited."""
    size: tuple[int, int]
    """(height, width) before."""
    top_left: tuple[int, int]
    """Where the crop begins in the resized image."""

    def mirrored(self) -> DecodedPair:
        """From right to left; the crop is counted from the mirrored image's left."""
        resolution = self.pixels.shape[1]
        rest = _resized(self.size, resolution)[1] - resolution
        top, left = self.top_left
        return DecodedPair(self.pixels[..., ::-1, :].copy(), self.size, (top, rest - left))

    def time_ids(self) -> tuple[int, ...]:
        """What a Stable Diffusion XL is told: original size, crop and target size."""
        resolution = self.pixels.shape[1]
        return (*self.size, *self.top_left, resolution, resolution)


def decode_pair(pair: RawPair, resolution: int, crop: tuple[float, float] = (0.5, 0.5)) -> DecodedPair:
    """Resizes the short side and crops square, at shares `crop` of the rest from top and left.

    ValueError where the row is of no use.
    """
    if pair.edit_prompt is None:
        raise ValueError("no instruction")
    original, edited = _open_image(pair.original), _open_image(pair.edited)
    if abs(original.width * edited.height - edited.width * original.height) > 0.02 * original.width * edited.height:
        raise ValueError(f"two shapes, {original.size} and {edited.size}")
    size = original.height, original.width
    top, left = (
        round((side - resolution) * share) for side, share in zip(_resized(size, resolution), crop, strict=True)
    )
    pixels = np.stack([_fit(image, resolution, crop) for image in (original, edited)])
    return DecodedPair(pixels, size, (top, left))


def _resized(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """(height, width) once the short side is `resolution`."""
    height, width = (round(side * resolution / min(size)) for side in size)
    return height, width


def is_square(cell: Any) -> bool:
    """By the header alone; what cannot be read counts as square, since it is dropped later."""
    content = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else str(content)) as image:
            return image.width == image.height
    except Exception:  # codecs raise many kinds
        return True


def _open_image(cell: Any) -> Image.Image:
    content = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
    if not content:
        raise ValueError("no image")
    try:
        image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # codecs raise many kinds, and a broken row must not end the run
        raise ValueError(f"image does not decode: {error}") from error


def _fit(image: Image.Image, resolution: int, crop: tuple[float, float]) -> NDArray[np.uint8]:
    if image.size != (resolution, resolution):
        centering = crop[1], crop[0]
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS, centering=centering)
    return np.asarray(image, dtype=np.uint8)
