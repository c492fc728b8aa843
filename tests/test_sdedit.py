"""SDEdit: equal to diffusers' own pipelines from picture to picture, one at a time, on models of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ip2p.config import RenderingConfig
from ip2p.editing.sdedit import Redrawing, redraw_images
from ip2p.images import encode_png
from ip2p.models.pipelines import load_text_to_image
from ip2p.records import Candidate, EditTriplet, RenderSpec, hash_picture
from ip2p.rendering.backends import backend_of
from ip2p.rendering.table import DrawnPair
from tests.test_rendering_exact import BOTH, CIRCLE, SQUARE

STEPS = 8
LEVEL = 1
"""Levels of 255 by which a batch may differ from pictures that diffusers draws one at a time."""
REDRAWINGS = [
    Redrawing(caption=CIRCLE, guidance_scale=4.0, strength=0.6, seed=3),
    Redrawing(caption=SQUARE, guidance_scale=1.0, strength=1.0, seed=4),
    Redrawing(caption=BOTH, guidance_scale=7.0, strength=0.3, seed=5),
]
Pipelines = dict[str, Callable[[Any], Any]]
PIPELINES: Pipelines = {
    "tiny_sd": diffusers.StableDiffusionImg2ImgPipeline.from_pipe,
    "tiny_xl": diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe,
    "tiny_sd3": diffusers.StableDiffusion3Img2ImgPipeline.from_pipe,
    "tiny_sd3_without_t5": diffusers.StableDiffusion3Img2ImgPipeline.from_pipe,
    "tiny_flux": diffusers.FluxImg2ImgPipeline.from_pipe,
    "tiny_kontext": diffusers.FluxImg2ImgPipeline.from_pipe,
}
SCHEDULERS = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "PNDMScheduler",
)


def load(folder: Path) -> Any:
    return load_text_to_image(str(folder), revision=None, variant=None, dtype="float32", device="cpu")


def pictures(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 64, 64, 3), dtype=np.uint8)


def drawn_alone(pipeline: Any, image: np.ndarray, each: Redrawing) -> np.ndarray:
    """diffusers' pipeline on one picture, of which some resize it to their own size unless they are told one."""
    is_older = isinstance(
        pipeline, diffusers.StableDiffusionImg2ImgPipeline | diffusers.StableDiffusionXLImg2ImgPipeline
    )
    further = {} if is_older else {"height": 64, "width": 64}
    with torch.inference_mode():
        output = pipeline(
            prompt=each.caption,
            image=Image.fromarray(image),
            strength=each.strength,
            num_inference_steps=STEPS,
            guidance_scale=each.guidance_scale,
            generator=torch.Generator().manual_seed(each.seed),
            **further,
        )
    return np.asarray(output.images[0]).astype(int)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[pytest.FixtureRequest, str], Path]:
    """Finds a tiny model, or writes one that has no fixture for all tests."""
    from tests import tiny_flow

    root = tmp_path_factory.mktemp("tiny")

    def folder(request: pytest.FixtureRequest, name: str) -> Path:
        if name in ("tiny_flux", "tiny_kontext", "tiny_klein"):
            path: Path = getattr(tiny_flow, f"write_{name}")(root / name)
        else:
            path = request.getfixturevalue(name)
        return path

    return folder


@pytest.mark.parametrize("name", PIPELINES)
def test_a_batch_of_strengths_equals_diffusers_own_pipeline_on_one_at_a_time(
    name: str, request: pytest.FixtureRequest, folders: Callable[[pytest.FixtureRequest, str], Path]
) -> None:
    pipeline, images = load(folders(request, name)), pictures(3)
    alone = PIPELINES[name](pipeline)
    alone.set_progress_bar_config(disable=True)
    together = redraw_images(pipeline, images, REDRAWINGS, STEPS).astype(int)
    for made, image, each in zip(together, images, REDRAWINGS, strict=True):
        assert np.abs(made - drawn_alone(alone, image, each)).max() <= LEVEL
    other = redraw_images(pipeline, images, [replace(each, caption=f"no {BOTH}") for each in REDRAWINGS], STEPS)
    assert np.abs(together - other).max() > 5


def test_a_base_without_such_a_pipeline_draws_from_all_noise_what_it_draws_of_the_caption(
    request: pytest.FixtureRequest, folders: Callable[[pytest.FixtureRequest, str], Path]
) -> None:
    pipeline, images = load(folders(request, "tiny_klein")), pictures(2)
    whole = Redrawing(caption=CIRCLE, guidance_scale=4.0, strength=1.0, seed=3)
    made = redraw_images(pipeline, images, [whole, replace(whole, strength=0.3)], STEPS).astype(int)
    chance = torch.Generator().manual_seed(3)
    _, noise = (torch.randn((1, 16, 8, 8), generator=chance) for _ in range(2))  # the first was for the posterior
    with torch.inference_mode():
        drawn = pipeline(
            prompt=CIRCLE, latents=noise, num_inference_steps=STEPS, guidance_scale=4.0, height=64, width=64
        )
    assert np.abs(made[0] - np.asarray(drawn.images[0])).max() <= LEVEL
    kept = redraw_images(pipeline, images, [replace(whole, strength=0.0)] * 2, 1000).astype(int)
    near, far = np.abs(made[1] - kept[1]).mean(), np.abs(made[0] - kept[0]).mean()
    assert 0 < near < far


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_s_memory_of_earlier_steps_is_each_picture_s_own(name: str, tiny_sd: Path) -> None:
    pipeline, images = load(tiny_sd), pictures(3)
    alone = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    alone.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    alone.set_progress_bar_config(disable=True)
    together = redraw_images(pipeline, images, REDRAWINGS, STEPS, scheduler=name).astype(int)
    for made, image, each in zip(together, images, REDRAWINGS, strict=True):
        assert np.abs(made - drawn_alone(alone, image, each)).max() <= LEVEL


@pytest.mark.parametrize("name", ["tiny_sd", "tiny_sd3"])
def test_at_least_one_step_is_taken_however_low_the_strength(name: str, request: pytest.FixtureRequest) -> None:
    pipeline, images = load(request.getfixturevalue(name)), pictures(1)
    least, one = (
        redraw_images(pipeline, images, [replace(REDRAWINGS[0], strength=strength)], STEPS)
        for strength in (0.0, 1 / STEPS)
    )
    assert np.array_equal(least, one)


@pytest.mark.parametrize("name", ["tiny_sd", "tiny_sd3"])
def test_pairs_depend_neither_on_their_batch_nor_on_their_order(name: str, request: pytest.FixtureRequest) -> None:
    stored = {hash_picture(content): content for content in map(encode_png, pictures(3))}
    candidates = [
        Candidate(
            triplet=(
                triplet := EditTriplet(original_prompt="", edit_prompt="-", edited_prompt=each.caption, picture=picture)
            ),
            spec=RenderSpec(
                triplet_id=triplet.id,
                candidate=0,
                seed=each.seed,
                guidance_scale=each.guidance_scale,
                strength=strength,
            ),
        )
        for each, picture, strength in zip(REDRAWINGS, stored, (0.5, None, 1.0), strict=True)
    ]
    model = str(request.getfixturevalue(name))
    config = RenderingConfig(backend="sdedit", model=model, num_inference_steps=STEPS, device="cpu", batch_size=3)
    backend = backend_of(config)
    together = list(backend.make_pairs(config, candidates, stored))
    apart = list(backend.make_pairs(replace(config, batch_size=1), candidates[::-1], stored))[::-1]
    for candidate, one, other in zip(candidates, together, apart, strict=True):
        assert isinstance(one, DrawnPair) and isinstance(other, DrawnPair)
        assert one.original == other.original == stored[candidate.triplet.picture]
        difference = one.edited.astype(int) - other.edited
        assert np.abs(difference).max() <= LEVEL


def test_pictures_that_the_model_cannot_divide_are_one_line(tiny_sd3: Path) -> None:
    content = encode_png(np.zeros((64, 60, 3), np.uint8))
    triplet = EditTriplet(original_prompt="", edit_prompt="-", edited_prompt=CIRCLE, picture=hash_picture(content))
    spec = RenderSpec(triplet_id=triplet.id, candidate=0, seed=1, guidance_scale=1.0)
    config = RenderingConfig(backend="sdedit", model=str(tiny_sd3), device="cpu")
    with pytest.raises(ValueError, match=r"rendering.width must be a multiple of 8 for this model, got pictures of 60"):
        list(backend_of(config).make_pairs(config, [Candidate(triplet=triplet, spec=spec)], {triplet.picture: content}))
