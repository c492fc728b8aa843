"""The whole sampling of a batch against one pair at a time with every attention map written out (`explicit.py`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ip2p.config import RenderingConfig
from ip2p.models.architecture import architecture_of
from ip2p.models.pipelines import load_text_to_image
from ip2p.p2p.sampler import fits_encoders, render_pairs, sample_latents
from ip2p.records import Candidate, EditTriplet, RenderSpec
from tests.explicit_attention import ExplicitPair

CIRCLE, SQUARE, BOTH = (
    "a small red circle on a white background",
    "a small blue square on a white background",
    "a small red circle and a large green star on a white background",
)
CONFIG = RenderingConfig(num_inference_steps=5)
TOLERANCE = 2e-4
OPERATORS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "self": {"p2p": 0.6},
    "self under a cap": {"p2p": 1.0, "p2p_max_positions": 64},
    "replace": {"cross_p2p": 0.7},
    "refine": {"cross_p2p": 0.7, "cross_alignment": "refine"},
    "reweight": {"reweight": 2.5, "reweight_steps": 0.6},
    "reweight below zero": {"reweight": -1.5},
    "blend": {"local_blend": 0.6, "blend_threshold": 0.99},
    "blend at the lowest resolution": {"local_blend": 1.0, "blend_threshold": 0.99, "blend_max_positions": 64},
    "blend by difference": {"local_blend": 0.6, "blend_by_difference": True, "blend_threshold": 0.8},
    "all": {
        "p2p": 0.5,
        "cross_p2p": 0.8,
        "reweight": 2.0,
        "reweight_steps": 0.9,
        "local_blend": 0.8,
        "blend_threshold": 0.99,
        "shared_steps": 0.3,
    },
}


@pytest.fixture(scope="module", params=["sd", "xl"])
def pipeline(request: pytest.FixtureRequest, tiny_sd: Path, tiny_xl: Path) -> Any:
    folder = {"sd": tiny_sd, "xl": tiny_xl}[request.param]
    return load_text_to_image(str(folder), revision=None, variant=None, dtype="float32", device="cpu")


def candidate(original: str, edited: str, guidance_scale: float, seed: int, **shares: float) -> Candidate:
    triplet = EditTriplet(original_prompt=original, edit_prompt="-", edited_prompt=edited)
    spec = RenderSpec(
        triplet_id=triplet.id, candidate=0, seed=seed, guidance_scale=guidance_scale, **{"p2p": 0.0, **shares}
    )
    return Candidate(triplet=triplet, spec=spec)


def with_operator(
    operator: dict[str, Any], config: RenderingConfig = CONFIG
) -> tuple[RenderingConfig, list[Candidate]]:
    """Four pairs with an operator, and one without any in their midst."""
    settings = {name: value for name, value in operator.items() if not hasattr(RenderSpec, name)}
    shares = {name: value for name, value in operator.items() if hasattr(RenderSpec, name)}
    batch = [
        candidate(CIRCLE, SQUARE, 4.0, 1, **shares),
        candidate(CIRCLE, BOTH, 1.0, 2, **shares),
        candidate(SQUARE, BOTH, 6.0, 3),
        candidate(BOTH, CIRCLE, 3.0, 4, **shares),
        candidate(SQUARE, SQUARE, 2.0, 5, **shares),
    ]
    return replace(config, **settings), batch


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize(
    ("scheduler", "name"), [*((None, name) for name in OPERATORS), ("EulerAncestralDiscreteScheduler", "all")]
)
@pytest.mark.slow
def test_a_batch_on_fused_kernels_equals_pairs_with_explicit_maps(
    pipeline: Any, scheduler: str | None, name: str
) -> None:
    config, batch = with_operator(OPERATORS[name])
    config = replace(config, scheduler=scheduler)
    plain = [replace(each, spec=replace(each.spec, p2p=0.0)) for each in with_operator({})[1]]
    with torch.inference_mode():
        found = torch.unflatten(sample_latents(pipeline, batch, config), 0, (2, -1))
        without = torch.unflatten(sample_latents(pipeline, plain, config), 0, (2, -1))
        expected = [ExplicitPair(pipeline, each, config).sample() for each in batch]
    moved = []
    for index, (original, edited) in enumerate(expected):
        assert distance(found[0, index], original) < TOLERANCE
        assert distance(found[1, index], edited) < TOLERANCE
        moved.append(distance(without[1, index], edited))
    assert max(moved[2], moved[4]) < TOLERANCE
    assert name == "nothing" or max(moved) > 5 * TOLERANCE


@pytest.mark.parametrize(("dtype", "name"), [*(("bfloat16", name) for name in OPERATORS), ("float16", "all")])
@pytest.mark.slow
def test_half_precision_differs_from_explicit_maps_by_its_rounding_alone(tiny_sd: Path, dtype: str, name: str) -> None:
    """One step from the same noise, so that rounding has no time to grow; blended places may flip and are left out."""
    config, batch = with_operator({key: value for key, value in OPERATORS[name].items() if key != "local_blend"})
    config = replace(config, num_inference_steps=1)
    options: dict[str, Any] = {"revision": None, "variant": None, "device": "cpu"}
    low, high = (load_text_to_image(str(tiny_sd), dtype=each, **options) for each in (dtype, "float32"))
    with torch.inference_mode():
        found = torch.unflatten(sample_latents(low, batch, config), 0, (2, -1))
        exact = torch.unflatten(sample_latents(high, batch, config), 0, (2, -1))
        expected = [ExplicitPair(low, each, config).sample() for each in batch]
    for index, pair in enumerate(expected):
        for side in range(2):
            rounding = distance(pair[side], exact[side, index])
            assert distance(found[side, index], exact[side, index]) < max(2 * rounding, 0.02)
            assert 0 < rounding < 0.1


@pytest.mark.parametrize("guidance_scale", [0.0, 5.0])
def test_without_sharing_each_side_equals_diffusers_own_xl_pipeline(tiny_xl: Path, guidance_scale: float) -> None:
    pipeline = load_text_to_image(str(tiny_xl), revision=None, variant=None, dtype="float32", device="cpu")
    pair = candidate(CIRCLE, SQUARE, guidance_scale, 11)
    with torch.inference_mode():
        found = sample_latents(pipeline, [pair], CONFIG)
    for prompt, latents in zip((CIRCLE, SQUARE), found, strict=True):
        chance = torch.Generator().manual_seed(11)
        options = {"num_inference_steps": 5, "guidance_scale": guidance_scale, "generator": chance}
        expected = pipeline(prompt, **options, output_type="latent").images
        assert distance(latents[None], expected) < TOLERANCE


def test_a_pair_of_xl_is_rendered_and_a_long_caption_refused(tiny_xl: Path) -> None:
    pipeline = load_text_to_image(str(tiny_xl), revision=None, variant=None, dtype="float32", device="cpu")
    (pair,) = render_pairs(pipeline, [candidate(CIRCLE, SQUARE, 3.0, 1, p2p=0.5)], CONFIG)
    assert pair.original.shape == pair.edited.shape == (64, 64, 3)
    encoders = architecture_of(pipeline).text_encoders(pipeline)
    assert fits_encoders(encoders, candidate(CIRCLE, SQUARE, 3.0, 1))
    assert not fits_encoders(encoders, candidate(CIRCLE, "red " * 31, 3.0, 1))
