"""FlowEdit: equal to its algorithm written plainly, one pair at a time, on models of the real classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ip2p.config import FlowEditConfig, PipelineConfig, PromptsConfig, RenderingBackend, RenderingConfig
from ip2p.editing.flowedit import Way, lead_images, lead_latents
from ip2p.images import encode_png
from ip2p.models.latents import LatentSpace, decode_images, encode_posterior
from ip2p.models.pipelines import load_text_to_image
from ip2p.records import Candidate, EditTriplet, RenderSpec, hash_picture
from ip2p.rendering.backends import backend_of, check_backend
from ip2p.rendering.table import DrawnPair
from tests.test_rendering_exact import BOTH, CIRCLE, SQUARE, distance

STEPS = 6
TOLERANCE = 2e-4
WAYS = [
    Way(source=CIRCLE, target=SQUARE, guidance_scale=5.0, strength=0.67, seed=3),
    Way(source=BOTH, target=CIRCLE, guidance_scale=2.0, strength=1.0, seed=4),
    Way(source=SQUARE, target=BOTH, guidance_scale=7.0, strength=0.34, seed=5),
]
Velocity = Callable[[Any, Tensor, float, str, float], Tensor]
"""Of a pipeline, for (1, C, h, w) latents at a sigma, towards a caption under a guidance scale."""


def load(folder: Path) -> Any:
    return load_text_to_image(str(folder), revision=None, variant=None, dtype="float32", device="cpu")


def pictures(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 64, 64, 3), dtype=np.uint8)


def velocity_of_sd3(pipeline: Any, latents: Tensor, sigma: float, caption: str, scale: float) -> Tensor:
    """Two calls of the transformer and diffusers' own embeddings."""
    text, none, pooled, no_pooled = pipeline.encode_prompt(caption, None, None)

    def predict(hidden: Tensor, projection: Tensor) -> Tensor:
        at = torch.tensor([1000 * sigma])
        network: Tensor = pipeline.transformer(latents, hidden, projection, at, return_dict=False)[0]
        return network

    without = predict(none, no_pooled)
    return without + scale * (predict(text, pooled) - without)


def velocity_of_flux(pipeline: Any, latents: Tensor, sigma: float, caption: str, scale: float) -> Tensor:
    """One call, to which the guidance is told."""
    hidden, pooled, text_ids = pipeline.encode_prompt(caption, None)
    _, channels, height, width = latents.shape
    packed = pipeline._pack_latents(latents, 1, channels, height, width)
    ids = pipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
    options = {"guidance": torch.tensor([scale]), "txt_ids": text_ids, "img_ids": ids, "return_dict": False}
    predicted: Tensor = pipeline.transformer(packed, hidden, pooled, torch.tensor([sigma]), **options)[0]
    rows = predicted.view(height // 2, width // 2, channels, 2, 2)
    return rows.permute(2, 0, 3, 1, 4).reshape(1, channels, height, width)


def sigmas_of(pipeline: Any) -> list[float]:
    """As diffusers' own pipelines set them for 16 x 16 latents."""
    scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config)
    if scheduler.config.use_dynamic_shifting:
        mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (64 - 256)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=mu)
    else:
        scheduler.set_timesteps(STEPS)
    return [float(sigma) for sigma in scheduler.sigmas]


def lead_plainly(pipeline: Any, velocity: Velocity, x: Tensor, way: Way, settings: FlowEditConfig) -> Tensor:
    """Algorithm 1 with n_max, n_min and n_avg, on one (1, C, h, w) picture."""
    chance, sigmas = torch.Generator().manual_seed(way.seed), sigmas_of(pipeline)
    n_max, n_min = round(way.strength * STEPS), round(settings.n_min * STEPS)
    z = x
    for i in range(n_max, 0, -1):
        t, after = sigmas[STEPS - i], sigmas[STEPS - i + 1]
        if i > n_min:
            v = torch.zeros_like(x)
            for _ in range(settings.n_avg):
                source = (1 - t) * x + t * torch.randn(x.shape, generator=chance)
                target = z + source - x
                v = v + velocity(pipeline, target, t, way.target, way.guidance_scale) / settings.n_avg
                v = v - velocity(pipeline, source, t, way.source, settings.source_guidance_scale) / settings.n_avg
        else:
            if i == min(n_min, n_max):
                z = z + t * (torch.randn(x.shape, generator=chance) - x)
            v = velocity(pipeline, z, t, way.target, way.guidance_scale)
        z = z + (after - t) * v
    return z


BASES = {"tiny_sd3": velocity_of_sd3, "tiny_sd3_without_t5": velocity_of_sd3, "tiny_flux": velocity_of_flux}
SETTINGS = {
    "plain": FlowEditConfig(),
    "averaged": FlowEditConfig(n_avg=2, source_guidance_scale=1.5),
    "with last steps": FlowEditConfig(n_min=0.5),
}


@pytest.fixture(scope="module")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_flow import write_tiny_flux

    return write_tiny_flux(tmp_path_factory.mktemp("tiny") / "flux")


@pytest.fixture(scope="module")
def tiny_klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_flow import write_tiny_klein

    return write_tiny_klein(tmp_path_factory.mktemp("tiny") / "klein")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("base", BASES)
def test_a_batch_of_ways_equals_the_paper_s_algorithm_on_one_at_a_time(
    base: str, settings: FlowEditConfig, request: pytest.FixtureRequest
) -> None:
    pipeline = load(request.getfixturevalue(base))
    originals = torch.randn((3, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = lead_latents(pipeline, originals, WAYS, settings, STEPS, (64, 64))
        expected = [
            lead_plainly(pipeline, BASES[base], original[None], way, settings)
            for original, way in zip(originals, WAYS, strict=True)
        ]
    for number, alone in enumerate(expected):
        assert distance(together[number][None], alone) < TOLERANCE
        assert distance(together[number], originals[number]) > 100 * TOLERANCE


@pytest.mark.parametrize("base", ["tiny_sd3", "tiny_flux", "tiny_klein"])
def test_a_way_from_a_caption_to_itself_returns_the_picture_as_the_autoencoder_keeps_it(
    base: str, request: pytest.FixtureRequest
) -> None:
    pipeline, images = load(request.getfixturevalue(base)), pictures(2)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        latents = LatentSpace.of(pipeline.vae.config).scaled(encode_posterior(pipeline.vae, pixels)[0])
        kept = decode_images(pipeline.vae, latents).astype(int)
    still = [Way(source=each, target=each, guidance_scale=3.5, strength=1.0, seed=1) for each in (CIRCLE, SQUARE)]
    led = [replace(way, target=BOTH) for way in still]
    settings = FlowEditConfig(source_guidance_scale=3.5)
    assert np.abs(lead_images(pipeline, images, still, settings, STEPS) - kept).max() <= 1
    assert np.abs(lead_images(pipeline, images, led, settings, STEPS) - kept).max() > 5


@pytest.mark.parametrize("base", ["tiny_sd3", "tiny_klein"])
def test_pairs_depend_neither_on_their_batch_nor_on_their_order(base: str, request: pytest.FixtureRequest) -> None:
    stored = {hash_picture(content): content for content in map(encode_png, pictures(3))}
    candidates = [
        Candidate(
            triplet=(
                triplet := EditTriplet(
                    original_prompt=way.source, edit_prompt="-", edited_prompt=way.target, picture=name
                )
            ),
            spec=RenderSpec(
                triplet_id=triplet.id, candidate=0, seed=way.seed, guidance_scale=way.guidance_scale, strength=strength
            ),
        )
        for way, name, strength in zip(WAYS, stored, (0.5, None, 1.0), strict=True)
    ]
    model = str(request.getfixturevalue(base))
    config = RenderingConfig(backend="flowedit", model=model, num_inference_steps=STEPS, device="cpu", batch_size=3)
    backend = backend_of(config)
    together = list(backend.make_pairs(config, candidates, stored))
    apart = list(backend.make_pairs(replace(config, batch_size=1), candidates[::-1], stored))[::-1]
    for candidate, one, other in zip(candidates, together, apart, strict=True):
        assert isinstance(one, DrawnPair) and isinstance(other, DrawnPair)
        assert one.original == other.original == stored[candidate.triplet.picture]
        difference = one.edited.astype(int) - other.edited
        assert np.abs(difference).max() <= 1


def test_a_scheduler_is_refused_since_its_steps_are_not_taken() -> None:
    config = RenderingConfig(backend="flowedit", scheduler="FlowMatchEulerDiscreteScheduler")
    with pytest.raises(ValueError, match=r"rendering.scheduler is not read by the backend flowedit"):
        backend_of(config).check(config)


def test_a_base_that_is_not_trained_by_flow_matching_is_refused_by_its_class(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline"}  # there are no weights to load
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    rendering = RenderingConfig(backend="flowedit", model=str(tmp_path))
    config = PipelineConfig(rendering=rendering, prompts=PromptsConfig(pictures=str(tmp_path)))
    message = r"is a Stable Diffusion .*expected a base that is trained by flow.*Set rendering.backend to sdedit"
    with pytest.raises(ValueError, match=message) as caught:
        check_backend(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        next(iter(backend_of(rendering).make_pairs(rendering, [], {})))


@pytest.mark.parametrize("backend", ["p2p", "sdedit", "flowedit"])
def test_a_base_whose_class_is_not_known_is_refused_before_the_start(backend: RenderingBackend, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxFillPipeline"}))
    config = RenderingConfig(backend=backend, model=str(tmp_path))
    with pytest.raises(ValueError, match=r"is a FluxFillPipeline, which is not supported. Give one of: FLUX.1, "):
        backend_of(config).check(config)
