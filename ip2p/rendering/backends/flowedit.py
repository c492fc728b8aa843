"""The `flowedit` backend: leads pictures from their captions to the edited ones on a base trained by flow matching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from diffusers import DiffusionPipeline

from ip2p.config import RenderingConfig
from ip2p.editing.flowedit import Way, lead_images
from ip2p.images import Array
from ip2p.models.architecture import Architecture
from ip2p.models.noise.flow import FlowNoise
from ip2p.records import Candidate
from ip2p.rendering.backends import Pictures
from ip2p.rendering.table import DrawnPair
from ip2p.rendering.text_to_image import ReadsCaptions, redrawn_pairs

STRENGTH = 0.66
"""Its authors' for Stable Diffusion 3, where none is set: 33 of 50 steps."""


class FlowEdit(ReadsCaptions):
    """Needs no training and no inversion."""

    name = "flowedit"
    draws = ("strength",)
    unread = ("scheduler",)

    def check_base(self, base: Architecture) -> None:
        """Requires a base that is trained by flow matching."""
        if not issubclass(base.noise, FlowNoise):
            raise ValueError(
                f"rendering.model is a {base.title}, expected a base that is trained by flow matching, such as Stable "
                "Diffusion 3.5 or FLUX.1. Set rendering.backend to sdedit."
            )

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[DrawnPair]:
        """Leads a batch of pictures at a time."""
        pipeline = self.load_pipeline(config)
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
