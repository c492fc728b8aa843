"""Flow matching: levels, densities, weights and samplers against diffusers' own functions and their definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from ip2p.config import TrainingConfig
from ip2p.models.noise.discrete import DiscreteNoise
from ip2p.models.noise.flow import FlowNoise

CPU = torch.device("cpu")
SCHEMES = ("logit_normal", "mode", "none", "sigma_sqrt", "cosmap")


def process(shift: float = 3.0, scheme: str | None = None) -> tuple[FlowNoise, FlowMatchEulerDiscreteScheduler]:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return FlowNoise.of(scheduler, scheme), scheduler


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_the_schedulers_and_latents_are_noised_as_it_does(shift: float) -> None:
    noise, scheduler = process(shift)
    levels = torch.tensor([0, 1, 500, 999])
    time_inputs = noise.time_inputs(levels)
    assert torch.equal(time_inputs, scheduler.timesteps[999 - levels])
    latents, chance = randn(4, 2, 3, 3), randn(4, 2, 3, 3, seed=1)
    noised = noise.noised(latents, chance, levels)
    torch.testing.assert_close(noised, scheduler.scale_noise(latents, time_inputs, chance))
    sigma = time_inputs / 1000
    assert torch.all(sigma[1:] > sigma[:-1]) and sigma[-1] == 1


def test_the_target_is_the_slope_of_the_path_from_latents_to_noise() -> None:
    noise, _ = process(1.0)
    latents, chance = randn(1, 2, 3, 3), randn(1, 2, 3, 3, seed=1)
    before, after = (noise.noised(latents, chance, torch.tensor([level])) for level in (499, 500))
    slope = (after - before) / (noise.sigmas[500] - noise.sigmas[499])
    torch.testing.assert_close(noise.target(latents, chance, torch.tensor([500])), slope, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("options", [{}, {"logit_mean": 0.7, "logit_std": 0.5, "mode_scale": 0.8}])
def test_levels_are_drawn_as_often_as_diffusers_draws_them(scheme: Any, options: dict[str, float]) -> None:
    config = TrainingConfig(weighting_scheme=scheme, **options)  # type: ignore[arg-type]
    noise, _ = process(scheme=scheme)
    chances = noise.timestep_chances(config)
    settings = {name: getattr(config, name) for name in ("logit_mean", "logit_std", "mode_scale")}
    generator = torch.Generator().manual_seed(0)
    drawn = compute_density_for_timestep_sampling(scheme, 400_000, **settings, generator=generator)
    places = (drawn * 1000).long().clamp(0, 999)
    counts = torch.bincount(999 - places, minlength=1000).double() / len(places)
    assert chances.sum().item() == pytest.approx(1, abs=1e-6)
    gap = (counts.cumsum(0) - chances.double().cumsum(0)).abs().max().item()
    assert gap < 2.5 / math.sqrt(len(places))  # the Kolmogorov-Smirnov distance of a sample of its own law


def test_the_default_density_is_the_logit_normal_of_the_paper() -> None:
    noise, _ = process(1.0)
    share = (np.arange(1000) + 0.5) / 1000
    density = np.exp(-((np.log(share / (1 - share))) ** 2) / 2) / (np.sqrt(2 * np.pi) * share * (1 - share))
    chances = noise.timestep_chances(TrainingConfig()).numpy()
    np.testing.assert_allclose(chances, density / 1000, atol=2e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_losses_are_weighted_as_diffusers_weights_them(scheme: str) -> None:
    noise, _ = process(scheme=scheme)
    levels = torch.arange(1, 1000, 111)
    weights = noise.weights(levels)
    expected = compute_loss_weighting_for_sd3(scheme, noise.sigmas[levels])
    torch.testing.assert_close(torch.ones(len(levels)) if weights is None else weights, expected)
    prediction, latents, chance = (randn(len(levels), 1, 2, 2, seed=seed) for seed in range(3))
    plain = (expected.view(-1, 1, 1, 1) * (prediction - (chance - latents)) ** 2).mean()
    torch.testing.assert_close(noise.loss(prediction, latents, chance, levels), plain)


def towards(latents: Tensor, timestep: Tensor) -> Tensor:
    """A prediction that depends on both."""
    return latents * 0.3 + timestep / 1000


@pytest.mark.parametrize("options", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_a_sampler_takes_eulers_steps_along_the_shifted_levels(options: dict[str, Any]) -> None:
    own = FlowMatchEulerDiscreteScheduler(**options)
    sampler = FlowNoise.sampler(FlowNoise.new_scheduler(own, None), 4, CPU, [], num_positions=1024)
    if "shift" in options:
        spread = torch.linspace(float(own.sigmas[0]), float(own.sigmas[-1]), 4)
        sigmas = 3 * spread / (1 + 2 * spread)
    else:
        mu = calculate_shift(1024)
        spread = torch.linspace(1, 0.001, 4)
        sigmas = math.exp(mu) / (math.exp(mu) + 1 / spread - 1)
        plain = FlowMatchEulerDiscreteScheduler(**options)
        plain.set_timesteps(4, mu=calculate_shift(1024, 256, 4096, 0.5, 1.15))
        assert torch.equal(sampler.timesteps, plain.timesteps)
    torch.testing.assert_close(sampler.timesteps / 1000, sigmas, atol=1e-6, rtol=0)
    latents = expected = sampler.start(randn(2, 1, 2, 2))
    for timestep, sigma, after in zip(sampler.timesteps, sigmas, [*sigmas[1:], 0.0], strict=True):
        latents = sampler.step(towards(sampler.inputs(latents, timestep), timestep), timestep, latents)
        expected = expected + (after - sigma) * towards(expected, 1000 * sigma)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


def test_a_stochastic_sampler_draws_new_noise_for_each_row_from_its_own_generator() -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    name = "FlowMatchEulerDiscreteScheduler:stochastic"

    def sample(seeds: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sampler = FlowNoise.sampler(FlowNoise.new_scheduler(own, name), 3, CPU, generators, num_positions=4)
        latents = torch.stack([torch.randn((1, 2, 2), generator=generator) for generator in generators])
        for timestep in sampler.timesteps:
            latents = sampler.step(towards(latents, timestep), timestep, latents)
        return latents

    together, alone = sample([3, 4, 3]), sample([4])
    assert torch.equal(together[0], together[2]) and torch.equal(together[1], alone[0])
    generator = torch.Generator().manual_seed(4)
    sampler = FlowNoise.sampler(FlowNoise.new_scheduler(own, None), 3, CPU, [], num_positions=4)
    latents = torch.randn((1, 1, 2, 2), generator=generator)
    for sigma, after in zip(sampler.timesteps / 1000, [*(sampler.timesteps[1:] / 1000), 0.0], strict=True):
        clean = latents - sigma * towards(latents, 1000 * sigma)
        latents = (1 - after) * clean + after * torch.randn(latents.shape, generator=generator)
    torch.testing.assert_close(alone, latents, atol=1e-5, rtol=0)


def test_a_scheduler_for_other_noise_is_refused_with_those_that_work() -> None:
    own = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(
        ValueError, match=r"rendering.scheduler DDIMScheduler cannot render pairs.*Use one of FlowMatch"
    ):
        FlowNoise.new_scheduler(own, "DDIMScheduler")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("snr_gamma", 5.0), ("prediction_type", "epsilon"), ("noise_offset", 0.1), ("timestep_bias_strategy", "later")],
)
def test_settings_of_the_other_noise_process_are_refused_in_one_line(
    tiny_sd: Path, tiny_sd3: Path, setting: str, value: Any
) -> None:
    config = TrainingConfig(pretrained_model_name_or_path=str(tiny_sd3), **{setting: value})
    with pytest.raises(ValueError, match=f"^training.{setting} has no meaning for a base .* Leave it out"):
        FlowNoise.load(config)
    config = TrainingConfig(pretrained_model_name_or_path=str(tiny_sd), weighting_scheme="mode")
    with pytest.raises(ValueError, match="^training.weighting_scheme is for bases that are trained by flow matching"):
        DiscreteNoise.load(config)
