"""Decodes a stored pair to what a training sees: two images of one size, and where they differ. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ip2p.images import check_shapes, fit_picture, open_mask, open_picture, read_size
from ip2p.training.data import RawPair

Size = tuple[int, int]
"""(height, width) in pixels."""
CENTRE = 0.5, 0.5


@dataclass(frozen=True, slots=True)
class Regions:
    """Where a pair counts as changed."""

    side: int
    """Pixels on the side of the square that a position of the latents stands for."""
    threshold: float
    """Difference of a colour, from 0 to 1, above which a pixel has changed."""
    from_mask: bool
    """Whether a mask says it instead."""


@dataclass(frozen=True, slots=True)
class Framing:
    """What is taken of a pair."""

    size_of: Callable[[Size], Size]
    """Chooses the size of the crop by the image's own."""
    regions: Regions | None = None
    """Where a pair counts as changed; None if that is not asked for."""


@dataclass(frozen=True, slots=True)
class Square:
    """Crops every image to a square of one size."""

    resolution: int

    def __call__(self, size: Size) -> Size:
        return self.resolution, self.resolution


@dataclass(frozen=True, slots=True)
class DecodedPair:
    """Two images under one geometry."""

    pixels: NDArray[np.uint8]
    """(2, height, width, 3): original and edited."""
    size: Size
    """(height, width) before."""
    top_left: tuple[int, int]
    """Where the crop begins in the resized image."""
    changed: NDArray[np.float32] | None = None
    """(h, w) share of each position's pixels that are changed; all zero without a usable mask."""
    lacks_mask: bool = False

    @property
    def crop(self) -> Size:
        """(height, width) of both images."""
        height, width = self.pixels.shape[1:3]
        return height, width

    def mirrored(self) -> DecodedPair:
        """Mirrors the pair; the crop is counted from the mirrored image's left."""
        rest = resized(self.size, self.crop)[1] - self.crop[1]
        top, left = self.top_left
        changed = None if self.changed is None else self.changed[:, ::-1].copy()
        pixels = self.pixels[..., ::-1, :].copy()
        return replace(self, pixels=pixels, top_left=(top, rest - left), changed=changed)

    def time_ids(self) -> tuple[int, ...]:
        """Returns what Stable Diffusion XL is conditioned on: original size, crop and target size."""
        return (*self.size, *self.top_left, *self.crop)


def decode_pair(pair: RawPair, framing: Framing | int, crop: tuple[float, float] = CENTRE) -> DecodedPair:
    """Resizes both images until they cover the crop, which lies at shares `crop` of the rest from top and left.

    A resolution stands for the square of it. ValueError if the row cannot be used.
    """
    framing = Framing(Square(framing)) if isinstance(framing, int) else framing
    if pair.edit_prompt is None:
        raise ValueError("no instruction")
    if not pair.original or not pair.edited:
        raise ValueError("no image")
    original, edited = open_picture(pair.original), open_picture(pair.edited)
    check_shapes(original.size, edited.size)
    size = original.height, original.width
    height, width = framing.size_of(size)
    sides = resized(size, (height, width))
    top, left = (round((side - kept) * share) for side, kept, share in zip(sides, (height, width), crop, strict=True))

    def fitted(picture: Image.Image) -> Image.Image:
        return fit_picture(picture, (width, height), (crop[1], crop[0]))

    pixels = np.stack([np.asarray(fitted(image), dtype=np.uint8) for image in (original, edited)])
    decoded = DecodedPair(pixels, size, (top, left))
    if framing.regions is None:
        return decoded
    if not framing.regions.from_mask:
        return replace(decoded, changed=_changed_pixels(pixels, framing.regions))
    try:
        mask = _mask_of(pair, original.size)
    except ValueError:
        nowhere = np.zeros((height, width), dtype=np.float32)
        return replace(decoded, changed=share_by_position(nowhere, framing.regions.side), lacks_mask=True)
    levels = np.asarray(fitted(mask), dtype=np.float32) / np.float32(255)
    return replace(decoded, changed=share_by_position(levels, framing.regions.side))


def resized(size: Size, crop: Size) -> Size:
    """Returns the size at which an image just covers the crop."""
    height, width = size
    if crop[1] * height >= crop[0] * width:  # the width decides
        return max(1, round(height * crop[1] / width)), crop[1]
    return crop[0], max(1, round(width * crop[0] / height))


def _changed_pixels(pixels: NDArray[np.uint8], regions: Regions) -> NDArray[np.float32]:
    difference = np.abs(pixels[0].astype(np.int16) - pixels[1]).max(-1)
    return share_by_position((difference > regions.threshold * 255).astype(np.float32), regions.side)


def share_by_position(levels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Averages (height, width) levels over squares of `side` pixels; what is left at the edges is cut off."""
    rows, columns = (length // side for length in levels.shape)
    squares = levels[: rows * side, : columns * side].reshape(rows, side, columns, side)
    shares: NDArray[np.float32] = squares.mean(axis=(1, 3), dtype=np.float32)
    return shares


def _mask_of(pair: RawPair, size: tuple[int, int]) -> Image.Image:
    """Opens the mask of a pair of (width, height). ValueError if there is none or it has another shape."""
    if not pair.mask:
        raise ValueError("no mask")
    mask = open_mask(pair.mask)
    check_shapes(size, mask.size)
    return mask


def is_square(picture: bytes | Path | None) -> bool:
    """Reads the header alone; an unreadable picture counts as square, since it is dropped later."""
    try:
        width, height = read_size(picture or b"")
    except ValueError:
        return True
    return width == height
