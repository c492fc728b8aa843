"""Chooses the sizes that pairs are cropped to: one square, or the nearest of several shapes by diffusers' own rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from diffusers.training_utils import find_nearest_bucket, generate_aspect_ratio_buckets

from ip2p.config import TrainingConfig
from ip2p.models.architecture import base_architecture
from ip2p.training.decoding import Framing, Size, Square
from ip2p.training.regions import regions_of


@dataclass(frozen=True, slots=True)
class Buckets:
    """Sizes of about the same area for each resolution."""

    by_resolution: Mapping[int, Sequence[Size]]

    def __call__(self, size: Size) -> Size:
        """Returns the shape nearest to an image's, at the largest resolution whose area the image has."""
        area = size[0] * size[1]
        smallest = min(self.by_resolution)
        resolution = max((each for each in self.by_resolution if each**2 <= area), default=smallest)
        buckets = self.by_resolution[resolution]
        nearest: int = find_nearest_bucket(*size, buckets)
        return buckets[nearest]


def buckets_of(config: TrainingConfig) -> Buckets:
    """Generates the config's buckets, whose sides the base can take."""
    step = base_architecture(config).bucket_step(config)
    resolutions = sorted({*config.bucket_resolutions} or {config.resolution})
    return Buckets({each: generate_aspect_ratio_buckets(each, step) for each in resolutions})


def framing_of(config: TrainingConfig) -> Framing:
    """Returns what a training takes of its pairs."""
    size_of: Callable[[Size], Size] = Square(config.resolution)
    if config.aspect_ratio_buckets:
        size_of = buckets_of(config)
    return Framing(size_of, regions_of(config))
