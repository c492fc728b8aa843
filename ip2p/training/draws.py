"""All chance of a training: pure functions of seed, step and process, so that a resumed run is the same run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from ip2p.config import TrainingConfig
from ip2p.records import hash_to_seed


@dataclass(frozen=True, slots=True)
class StepDraws:
    """The random numbers of one batch, on the CPU."""

    posterior: Tensor
    """(N, C, H, W) standard normal: where in the autoencoder's posterior."""
    noise: Tensor
    """(N, C, H, W) standard normal."""
    timesteps: Tensor
    """(N,) integers."""
    dropout: Tensor
    """(N,) uniform in [0, 1)."""
    mirrored: Tensor
    """(N,) bool, even odds."""
    offset: Tensor
    """(N, C, 1, 1) standard normal: the noise that is constant over a channel."""
    crop: Tensor
    """(N, 2) uniform in [0, 1): where a random crop lies, from top and from left."""

    def part(self, first: int, num: int) -> StepDraws:
        """Those of some samples."""
        return StepDraws(*(getattr(self, each.name)[first : first + num] for each in fields(self)))


def draw_step(shape: torch.Size, timestep_weights: Tensor, *key: object) -> StepDraws:
    """Draws for a batch of latents of `shape` under a key such as (seed, step, process)."""
    generator = torch.Generator().manual_seed(hash_to_seed("training", *key))
    return StepDraws(
        posterior=torch.randn(shape, generator=generator),
        noise=torch.randn(shape, generator=generator),
        timesteps=torch.multinomial(timestep_weights, shape[0], replacement=True, generator=generator),
        dropout=torch.rand(shape[0], generator=generator),
        mirrored=torch.rand(shape[0], generator=generator) < 0.5,
        offset=torch.randn((*shape[:2], 1, 1), generator=generator),
        crop=torch.rand((shape[0], 2), generator=generator),
    )


@lru_cache(maxsize=2)
def weigh_timesteps(config: TrainingConfig, num_train_timesteps: int) -> Tensor:
    """(T,) chances of the timesteps: even ones, but for those that `timestep_bias_strategy` favours."""
    portion = int(config.timestep_bias_portion * num_train_timesteps)
    first, end = {
        "none": (0, 0),
        "earlier": (0, portion),
        "later": (num_train_timesteps - portion, num_train_timesteps),
        "range": (config.timestep_bias_begin, config.timestep_bias_end),
    }[config.timestep_bias_strategy]
    weights = torch.ones(num_train_timesteps)
    weights[first:end] *= config.timestep_bias_multiplier
    return weights / weights.sum()


@lru_cache(maxsize=2)
def draw_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The order of the samples in an epoch."""
    generator = torch.Generator().manual_seed(hash_to_seed("order", seed, epoch))
    return torch.randperm(num_samples, generator=generator)


def draw_samples(num_samples: int, seed: int, first: int, count: int) -> list[int]:
    """Samples number `first` to `first + count` of an endless stream that shows each sample once per epoch."""
    return [int(draw_order(num_samples, seed, n // num_samples)[n % num_samples]) for n in range(first, first + count)]
