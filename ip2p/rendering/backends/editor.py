"""The `editor` backend: edits pictures with a model that follows instructions, our own or any of diffusers'.

An editor of one of our bases edits in batches, each candidate with its own generator and guidance; a pipeline of
another base is called as it is, a picture at a time. Neither depends on the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ip2p.config import RenderingConfig
from ip2p.editing import Knobs, edit_images, load_editor
from ip2p.images import Array, open_picture
from ip2p.models.pipelines import load_foreign_editor
from ip2p.records import Candidate
from ip2p.rendering.backends import MakesPairs, Pictures
from ip2p.rendering.table import DrawnPair


class EditorBackend(MakesPairs):
    """Edits the picture of each candidate as its instruction says."""

    name = "editor"
    draws = ("image_guidance_scale",)
    unread = ("scheduler",)

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[DrawnPair]:
        """Edits `config.batch_size` pictures at a time."""
        source = config.model, config.device, config.revision, config.dtype
        foreign = load_foreign_editor(*source)
        pipeline = load_editor(*source) if foreign is None else foreign
        edit = _edit_batch if foreign is None else _edit_each
        for start in range(0, len(candidates), config.batch_size):
            batch = candidates[start : start + config.batch_size]
            originals = [pictures[candidate.triplet.picture] for candidate in batch]
            edited = edit(pipeline, config, batch, [open_picture(original) for original in originals])
            yield from map(DrawnPair, originals, edited)


def _edit_batch(
    pipeline: DiffusionPipeline, config: RenderingConfig, batch: Sequence[Candidate], pictures: Sequence[Image.Image]
) -> list[Array]:
    specs = [candidate.spec for candidate in batch]
    return edit_images(
        pipeline,
        pictures,
        [candidate.triplet.edit_prompt for candidate in batch],
        num_inference_steps=config.num_inference_steps,
        guidance_scale=[spec.guidance_scale for spec in specs],
        image_guidance_scale=[_image_guidance(spec.image_guidance_scale) for spec in specs],
        seeds=[spec.seed for spec in specs],
        batch_size=len(batch),
    )


def _image_guidance(drawn: float | None) -> float:
    return Knobs().image_guidance_scale if drawn is None else drawn


@torch.inference_mode()
def _edit_each(
    pipeline: DiffusionPipeline, config: RenderingConfig, batch: Sequence[Candidate], pictures: Sequence[Image.Image]
) -> list[Array]:
    """Calls a pipeline with those of our settings that it has a parameter for."""
    names = inspect.signature(pipeline.__call__).parameters
    edited = []
    for candidate, picture in zip(batch, pictures, strict=True):
        spec = candidate.spec
        settings: dict[str, Any] = {
            "num_inference_steps": config.num_inference_steps,
            "true_cfg_scale" if "true_cfg_scale" in names else "guidance_scale": spec.guidance_scale,
            "image_guidance_scale": _image_guidance(spec.image_guidance_scale),
            "negative_prompt": "" if "true_cfg_scale" in names else None,
            "height": picture.height,
            "width": picture.width,
            "max_sequence_length": config.max_sequence_length,
            "generator": torch.Generator().manual_seed(spec.seed),
        }
        arguments = {name: value for name, value in settings.items() if name in names and value is not None}
        image = pipeline(image=picture, prompt=candidate.triplet.edit_prompt, **arguments).images[0]
        edited.append(np.asarray(image.convert("RGB").resize(picture.size, Image.Resampling.LANCZOS)))
    return edited
