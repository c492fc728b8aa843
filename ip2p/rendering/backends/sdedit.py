"""The `sdedit` backend: noises pictures in part, and draws them again towards the edited caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from diffusers import DiffusionPipeline

from ip2p.config import RenderingConfig
from ip2p.editing.sdedit import Redrawing, redraw_images
from ip2p.images import Array
from ip2p.records import Candidate
from ip2p.rendering.backends import Pictures
from ip2p.rendering.table import DrawnPair
from ip2p.rendering.text_to_image import ReadsCaptions, redrawn_pairs

STRENGTH = 0.6
"""Share of the noise where none is set."""


class SDEdit(ReadsCaptions):
    """Needs no training, and works with every text-to-image model."""

    name = "sdedit"
    draws = ("strength",)

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[DrawnPair]:
        """Draws a batch of pictures at a time, each with its own strength and guidance."""
        pipeline = self.load_pipeline(config)
        yield from redrawn_pairs(pipeline, config, candidates, pictures, partial(_redraw, pipeline, config))


def _redraw(pipeline: DiffusionPipeline, config: RenderingConfig, images: Array, batch: Sequence[Candidate]) -> Array:
    redrawings = [
        Redrawing(
            caption=candidate.triplet.edited_prompt,
            guidance_scale=candidate.spec.guidance_scale,
            strength=STRENGTH if candidate.spec.strength is None else candidate.spec.strength,
            seed=candidate.spec.seed,
        )
        for candidate in batch
    ]
    return redraw_images(
        pipeline,
        images,
        redrawings,
        config.num_inference_steps,
        scheduler=config.scheduler,
        max_sequence_length=config.max_sequence_length,
    )
