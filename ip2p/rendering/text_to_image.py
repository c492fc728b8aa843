"""The text-to-image model of backends that have one on this machine, and whether it reads captions whole."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from diffusers import DiffusionPipeline

from ip2p.config import RenderingConfig
from ip2p.models.architecture import architecture_of
from ip2p.models.pipelines import load_text_to_image
from ip2p.p2p.sampler import fits_encoders
from ip2p.records import Candidate

logger = logging.getLogger(__name__)


def load_pipeline(config: RenderingConfig) -> DiffusionPipeline:
    """Loads the model that a config names, once per process."""
    return load_text_to_image(
        config.model, revision=config.revision, variant=config.variant, dtype=config.dtype, device=config.device
    )


def too_long_triplets(config: RenderingConfig, candidates: Sequence[Candidate]) -> set[str]:
    """Returns the triplets whose captions the model's text encoders would cut, with a warning each."""
    pipeline = load_pipeline(config)
    encoders = architecture_of(pipeline).text_encoders(pipeline, config.max_sequence_length)
    firsts = [candidate for candidate in candidates if candidate.spec.candidate == 0]
    too_long = dict.fromkeys(first.triplet.id for first in firsts if not fits_encoders(encoders, first))
    for triplet_id in too_long:
        limit = min(encoders.lengths)
        logger.warning("triplet %s is not rendered: a caption is longer than %d tokens", triplet_id, limit)
    return set(too_long)
