"""The `flowedit` backend: leads pictures from their captions to the edited ones on a base trained by flow matching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from diffusers import DiffusionPipeline

from ip2p.config import RenderingConfig
from ip2p.editing.flowedit import Way, check_flow, lead_images
from ip2p.images import Array
from ip2p.records import Candidate
from ip2p.rendering.backends import Pictures
from ip2p.rendering.table import DrawnPair
from ip2p.rendering.text_to_image import ReadsCaptions, load_pipeline, redrawn_pairs

STRENGTH = 0.66
"""Its authors' for Stable Diffusion 3, where none is set: 33 of 50 steps."""


class FlowEdit(ReadsCaptions):
    """Needs no training and no inversion."""

    name = "flowedit"
    draws = ("strength",)
    unread = ("scheduler",)

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[DrawnPair]:
        """Leads a batch of pictures at a time. ValueError for a base that is not trained by flow matching."""
        pipeline = load_pipeline(config)
        check_flow(pipeline)
        yield from redrawn_pairs(pipeline, config, candidates, pictures, partial(_lead, pipeline, config))


def _lead(pipeline: DiffusionPipeline, config: RenderingConfig, images: Array, batch: Sequence[Candidate]) -> Array:
    ways = [
        Way(
            source=candidate.triplet.original_prompt,
            target=candidate.triplet.edited_prompt,
            guidance_scale=candidate.spec.guidance_scale,
            strength=STRENGTH if candidate.spec.strength is None else candidate.spec.strength,
            seed=candidate.spec.seed,
        )
        for candidate in batch
    ]
    steps, length = config.num_inference_steps, config.max_sequence_length
    return lead_images(pipeline, images, ways, config.flowedit, steps, max_sequence_length=length)
