"""The text-to-image model of backends that have one on this machine: what it reads whole, and pairs of its edits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline

from ip2p.config import RenderingConfig
from ip2p.images import Array, open_pixels
from ip2p.models.architecture import Architecture, architecture_of, size_step
from ip2p.models.pipelines import load_text_to_image, text_to_image_base
from ip2p.p2p.sampler import fits_encoders
from ip2p.records import Candidate
from ip2p.rendering.backends import MakesPairs, Pictures
from ip2p.rendering.table import DrawnPair

logger = logging.getLogger(__name__)


class ReadsCaptions(MakesPairs):
    """A backend whose text-to-image model reads the captions."""

    def check(self, config: RenderingConfig) -> None:
        """Refuses the base of a model on this machine by its class; that of one on the hub is refused when it loads."""
        super().check(config)
        if Path(config.model).expanduser().is_dir():
            self.check_base(text_to_image_base(config.model, config.revision))

    def check_base(self, base: Architecture) -> None:
        """Raises a ValueError of one line for a base that it cannot render with. Default: takes every base."""

    def load_pipeline(self, config: RenderingConfig) -> DiffusionPipeline:
        """Loads the model that a config names, once per process."""
        return load_text_to_image(
            config.model,
            revision=config.revision,
            variant=config.variant,
            dtype=config.dtype,
            device=config.device,
            check_base=self.check_base,
        )

    def too_long(self, config: RenderingConfig, candidates: Sequence[Candidate]) -> Collection[str]:
        """Returns the triplets whose captions the model's text encoders would cut, with a warning each."""
        pipeline = self.load_pipeline(config)
        encoders = architecture_of(pipeline).text_encoders(pipeline, config.max_sequence_length)
        firsts = [candidate for candidate in candidates if candidate.spec.candidate == 0]
        too_long = dict.fromkeys(first.triplet.id for first in firsts if not fits_encoders(encoders, first))
        for triplet_id in too_long:
            limit = min(encoders.lengths)
            logger.warning("triplet %s is not rendered: a caption is longer than %d tokens", triplet_id, limit)
        return too_long


def redrawn_pairs(
    pipeline: DiffusionPipeline,
    config: RenderingConfig,
    candidates: Sequence[Candidate],
    pictures: Pictures,
    redraw: Callable[[Array, Sequence[Candidate]], Array],
) -> Iterator[DrawnPair]:
    """Yields pairs of a picture and what `redraw` makes of it, which takes (N, H, W, 3) and the batch's candidates."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(candidates), config.batch_size):
            batch = candidates[start : start + config.batch_size]
            originals = [pictures[candidate.triplet.picture] for candidate in batch]
            images = np.stack(list(pool.map(open_pixels, originals)))
            _check_size(pipeline, images.shape[1:3])
            yield from map(DrawnPair, originals, redraw(images, batch))


def _check_size(pipeline: DiffusionPipeline, size: tuple[int, ...]) -> None:
    """Raises a ValueError for a (height, width) that the model cannot divide."""
    step = size_step(pipeline, architecture_of(pipeline))
    for name, pixels in zip(("height", "width"), size, strict=True):
        if pixels % step:
            raise ValueError(
                f"rendering.{name} must be a multiple of {step} for this model, got pictures of {pixels}. Set it to "
                f"{max(1, round(pixels / step)) * step}."
            )
