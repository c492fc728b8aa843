"""Pairs share noise and nothing else, whatever the batch and the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ip2p.config import CrossAlignment, RenderingConfig
from ip2p.models.noise.discrete import DiscreteNoise, usable_schedulers
from ip2p.models.pipelines import load_text_to_image
from ip2p.models.stable_diffusion import ARCHITECTURE as BASE
from ip2p.p2p.alignment import map_tokens, stack_maps
from ip2p.p2p.sampler import (
    check_renderable,
    encode_texts,
    fits_encoders,
    sample_latents,
)
from ip2p.p2p.steps import StepShares, is_shared
from ip2p.records import Candidate, EditTriplet, RenderSpec
from ip2p.rendering import render_pairs

CIRCLE, SQUARE, EMPTY = (
    "a small red circle on a white background",
    "a large blue square on a black background",
    "an empty black background",
)
CONFIG = RenderingConfig(num_inference_steps=4, batch_size=8)
STOCHASTIC = [
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DDPMScheduler",
    "LCMScheduler",
    "SASolverScheduler",
]
DETERMINISTIC = [
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


@pytest.fixture(scope="module")
def pipeline(tiny_sd: Path) -> Any:
    return load_text_to_image(str(tiny_sd), revision=None, variant=None, dtype="float32", device="cpu")


def candidate(
    original: str,
    edited: str,
    *,
    seed: int = 1,
    guidance_scale: float = 5.0,
    p2p: float = 0.5,
    cross_p2p: float = 0.0,
    shared_steps: float = 0.0,
) -> Candidate:
    triplet = EditTriplet(original_prompt=original, edit_prompt="-", edited_prompt=edited)
    spec = RenderSpec(
        triplet_id=triplet.id,
        candidate=0,
        seed=seed,
        guidance_scale=guidance_scale,
        p2p=p2p,
        cross_p2p=cross_p2p,
        shared_steps=shared_steps,
    )
    return Candidate(triplet=triplet, spec=spec)


MIXED = [
    candidate(CIRCLE, SQUARE, seed=1, guidance_scale=7.0, p2p=0.9),
    candidate(SQUARE, EMPTY, seed=2, guidance_scale=3.0, p2p=0.0),
    candidate(EMPTY, CIRCLE, seed=3, guidance_scale=1.0, p2p=0.4),
    candidate(CIRCLE, EMPTY, seed=4, guidance_scale=5.0, p2p=0.7),
    candidate(SQUARE, CIRCLE, seed=5, guidance_scale=4.0, p2p=0.8, shared_steps=0.5),
    candidate(SQUARE, CIRCLE, seed=6, guidance_scale=1.0, p2p=0.2, shared_steps=1.0),
    candidate(SQUARE, CIRCLE, seed=7, guidance_scale=3.0, p2p=0.5, cross_p2p=0.7),
    candidate(EMPTY, CIRCLE, seed=8, guidance_scale=1.0, p2p=0.0, cross_p2p=1.1, shared_steps=0.3),
]


def sides(
    pipeline: Any, candidates: Sequence[Candidate], config: RenderingConfig = CONFIG
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        original, edited = sample_latents(pipeline, candidates, config).chunk(2)
    return original, edited


@pytest.mark.parametrize("scheduler", [None, "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.slow
def test_a_batch_of_pairs_equals_one_pair_at_a_time(pipeline: Any, scheduler: str | None) -> None:
    config = replace(CONFIG, scheduler=scheduler)
    together = list(render_pairs(pipeline, MIXED, config))
    alone = list(render_pairs(pipeline, MIXED, replace(config, batch_size=1)))
    backwards = list(render_pairs(pipeline, MIXED[::-1], replace(config, batch_size=3)))[::-1]
    for one, two, three in zip(together, alone, backwards, strict=True):
        for side in ("original", "edited"):
            image = getattr(one, side).astype(int)
            assert np.abs(image - getattr(two, side)).max() <= 1
            assert np.abs(image - getattr(three, side)).max() <= 1


def test_latents_of_a_batch_equal_those_of_single_pairs(pipeline: Any) -> None:
    together = sides(pipeline, MIXED)
    for index, each in enumerate(MIXED):
        for side, alone in zip(together, sides(pipeline, [each]), strict=True):
            torch.testing.assert_close(side[index], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheduler", STOCHASTIC + DETERMINISTIC)
@pytest.mark.slow
def test_equal_prompts_give_equal_images_under_any_scheduler(pipeline: Any, scheduler: str) -> None:
    pairs = [candidate(CIRCLE, CIRCLE, seed=5, p2p=p, cross_p2p=1.0 - p) for p in (0.0, 0.6, 1.0)]
    original, edited = sides(pipeline, pairs, replace(CONFIG, scheduler=scheduler))
    assert original.isfinite().all()
    torch.testing.assert_close(original, edited, atol=1e-4 * float(original.abs().max()), rtol=0)


@pytest.mark.parametrize("scheduler", STOCHASTIC)
def test_ancestral_noise_comes_from_the_pairs_seed_alone(pipeline: Any, scheduler: str) -> None:
    config = replace(CONFIG, scheduler=scheduler)
    torch.manual_seed(1)
    first, _ = sides(pipeline, [candidate(CIRCLE, SQUARE, seed=6)], config)
    torch.manual_seed(2)
    second, _ = sides(pipeline, [candidate(CIRCLE, SQUARE, seed=6)], config)
    other, _ = sides(pipeline, [candidate(CIRCLE, SQUARE, seed=7)], config)
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=1e-2)


def test_different_prompts_give_different_images(pipeline: Any) -> None:
    (pair,) = render_pairs(pipeline, [candidate(CIRCLE, SQUARE)], CONFIG)
    assert pair.original.shape == (64, 64, 3)
    assert pair.original.dtype == np.uint8
    assert not np.array_equal(pair.original, pair.edited)


def test_p2p_leaves_the_original_alone_and_changes_the_edited_side(pipeline: Any) -> None:
    original, edited = sides(pipeline, [candidate(CIRCLE, SQUARE, p2p=p) for p in (0.0, 0.5, 1.0)])
    torch.testing.assert_close(original[0], original[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(original[0], original[2], atol=1e-5, rtol=0)
    assert (edited[0] - edited[1]).abs().max() > 1e-3
    assert (edited[1] - edited[2]).abs().max() > 1e-3


@pytest.mark.parametrize("alignment", ["replace", "refine"])
def test_cross_p2p_changes_the_edited_side_alone(pipeline: Any, alignment: CrossAlignment) -> None:
    config = replace(CONFIG, cross_alignment=alignment)
    original, edited = sides(pipeline, [candidate(CIRCLE, SQUARE, p2p=0.0, cross_p2p=p) for p in (0, 0.5, 1.0)], config)
    torch.testing.assert_close(original[0], original[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(original[0], original[2], atol=1e-5, rtol=0)
    assert (edited[0] - edited[1]).abs().max() > 1e-3
    assert (edited[1] - edited[2]).abs().max() > 1e-3


def test_the_unconditional_half_keeps_its_cross_attention(pipeline: Any) -> None:
    """Both sides of it read the empty text, whose tokens are not those that the captions' alignment speaks of."""
    pair = candidate(CIRCLE, SQUARE, guidance_scale=3.0, cross_p2p=1.1)
    with torch.inference_mode():
        plan = StepShares.of([pair.spec], 0, 4).plan(2)
        maps = stack_maps([map_tokens(pipeline.tokenizer, CIRCLE, SQUARE, "replace")], torch.device("cpu"))
    cross = plan.cross_sharing(maps)
    assert cross is not None
    assert (cross.rows.tolist(), cross.sources.tolist()) == ([3], [2])


@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
@pytest.mark.parametrize("scheduler", [None, "EulerAncestralDiscreteScheduler", "PNDMScheduler"])
def test_without_p2p_each_side_equals_diffusers_own_pipeline(
    pipeline: Any, scheduler: str | None, guidance_scale: float
) -> None:
    pair = candidate(CIRCLE, SQUARE, seed=11, guidance_scale=guidance_scale, p2p=0.0)
    found = sides(pipeline, [pair], replace(CONFIG, scheduler=scheduler))
    own = DiscreteNoise.new_scheduler(pipeline.scheduler, scheduler)
    peer = StableDiffusionPipeline(**{**pipeline.components, "scheduler": own})
    peer.set_progress_bar_config(disable=True)
    for prompt, latents in zip((CIRCLE, SQUARE), found, strict=True):
        expected = peer(
            prompt,
            num_inference_steps=4,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(11),
            output_type="latent",
        ).images
        torch.testing.assert_close(latents, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("scheduler", STOCHASTIC + DETERMINISTIC)
@pytest.mark.slow
def test_shared_steps_equal_a_caption_that_changes_on_the_way(pipeline: Any, scheduler: str) -> None:
    config = replace(CONFIG, scheduler=scheduler, num_inference_steps=6)
    pair = candidate(CIRCLE, SQUARE, guidance_scale=3.0, p2p=0.0, shared_steps=0.5)
    original, edited = sides(pipeline, [pair], config)
    alone, _ = sides(pipeline, [candidate(CIRCLE, EMPTY, guidance_scale=3.0, p2p=0.0)], config)
    steps = DiscreteNoise.new_scheduler(pipeline.scheduler, scheduler)
    steps.set_timesteps(6)
    num_steps, seen = len(steps.timesteps), [0]

    def change_caption(_: object, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        texts = options["encoder_hidden_states"].clone()
        if is_shared(0.5, seen[0], num_steps):
            texts[[1, 3]] = texts[[0, 2]]
        seen[0] += 1
        return args, {**options, "encoder_hidden_states": texts}

    hook = pipeline.unet.register_forward_pre_hook(change_caption, with_kwargs=True)
    try:
        _, expected = sides(pipeline, [replace(pair, spec=replace(pair.spec, shared_steps=0.0))], config)
    finally:
        hook.remove()
    scale = float(original.abs().max())
    torch.testing.assert_close(original, alone, atol=1e-4 * scale, rtol=0)
    torch.testing.assert_close(edited, expected, atol=1e-4 * scale, rtol=0)
    assert (edited - original).abs().max() > 1e-3 * scale


def test_shared_steps_are_computed_once(pipeline: Any) -> None:
    seen: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        sides(pipeline, [candidate(CIRCLE, SQUARE, shared_steps=share) for share in (0.0, 0.5)])
    finally:
        hook.remove()
    assert seen == [6, 6, 8, 8]


def test_texts_are_encoded_as_diffusers_does(pipeline: Any) -> None:
    with torch.inference_mode():
        found = encode_texts(pipeline, BASE, ["", CIRCLE, SQUARE, CIRCLE]).hidden
        positive, negative = pipeline.encode_prompt([CIRCLE, SQUARE], "cpu", 1, True)
    expected = torch.stack([negative[0], positive[0], positive[1], positive[0]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("scales", "rows"), [((1.0, 0.5), 4), ((1.0, 3.0), 8)])
def test_the_unconditional_half_is_run_only_where_some_pair_is_guided(
    pipeline: Any, scales: tuple[float, ...], rows: int
) -> None:
    seen: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        sides(pipeline, [candidate(CIRCLE, SQUARE, guidance_scale=scale) for scale in scales])
    finally:
        hook.remove()
    assert seen == [rows] * 4


def test_the_image_size_can_be_set_and_must_fit_the_latents(pipeline: Any) -> None:
    (pair,) = render_pairs(pipeline, [candidate(CIRCLE, SQUARE)], replace(CONFIG, height=32, width=48))
    assert pair.original.shape == (32, 48, 3)
    with pytest.raises(ValueError, match="multiple of 4"):
        check_renderable(pipeline, replace(CONFIG, width=50))


@pytest.mark.parametrize("name", ["NoSuchScheduler", "StableDiffusionPipeline", "DPMSolverSDEScheduler"])
def test_a_scheduler_that_cannot_be_used_is_refused_with_a_list_of_others(pipeline: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} .*Use one of .*DDIMScheduler.*EulerAncestralDiscreteScheduler"):
        next(render_pairs(pipeline, MIXED, replace(CONFIG, scheduler=name)))


def test_a_scheduler_keeps_the_models_noise_schedule(pipeline: Any) -> None:
    scheduler = DiscreteNoise.new_scheduler(pipeline.scheduler, "EulerAncestralDiscreteScheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr
    assert scheduler.config.timestep_spacing == "trailing"


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a text-to-image pipeline. Give one of: .*Stable Diffusion XL"):
        check_renderable(object(), CONFIG)


def test_a_caption_is_measured_before_it_is_cut(pipeline: Any) -> None:
    encoders = BASE.text_encoders(pipeline)
    assert fits_encoders(encoders, candidate(CIRCLE, SQUARE))
    assert fits_encoders(encoders, candidate("red " * 30, SQUARE))
    assert not fits_encoders(encoders, candidate(SQUARE, "red " * 31))


def test_the_models_processors_are_back_after_rendering_and_after_an_error(pipeline: Any) -> None:
    attention = BASE.attention_layers(pipeline.unet)
    layers = [*attention.to_itself, *attention.to_text]
    before = [layer.processor for layer in layers]

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    sides(pipeline, MIXED)
    assert [layer.processor for layer in layers] == before
    hook = pipeline.unet.conv_out.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        sides(pipeline, MIXED)
    hook.remove()
    assert [layer.processor for layer in layers] == before


def test_every_scheduler_that_is_offered_is_tested_here(pipeline: Any) -> None:
    offered = usable_schedulers(pipeline.scheduler)
    assert "DDIMScheduler" in offered
    assert set(offered) <= {*STOCHASTIC, *DETERMINISTIC}
