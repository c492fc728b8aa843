"""All chance of a training: pure functions of seed, step and process, so that a resumed run is the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Protocol

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


@dataclass(frozen=True, slots=True)
class Batch:
    """The encoders' outputs for some samples."""

    mean: Tensor
    """(N, C, H, W) of the edited image's posterior."""
    deviation: Tensor
    condition: Tensor
    """(N, C, H, W), the original image's mode, unscaled."""
    text: Tensor
    """(N, L, D)."""
    pooled: Tensor | None = None
    """(N, P), of a Stable Diffusion XL; so is the next."""
    time_ids: Tensor | None = None
    """(N, 6): original size, top left of the crop, target size."""

    def to(self, device: torch.device) -> Batch:
        """The same in float32 on another device."""
        present = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return Batch(**{name: value.to(device, torch.float32, non_blocking=True) for name, value in present.items()})


@dataclass(frozen=True, slots=True)
class Sampling:
    """The order of the samples and the draws of every step, for one process of several."""

    config: TrainingConfig
    num_samples: int
    latent_shape: torch.Size
    num_train_timesteps: int
    process_index: int = 0
    num_processes: int = 1

    def samples(self, micro_step: int) -> list[int]:
        """The numbers of this process's samples; the stream shows each sample once per epoch, to one process."""
        size = self.config.train_batch_size
        first = (micro_step * self.num_processes + self.process_index) * size
        return draw_samples(self.num_samples, self.config.seed, first, size)

    def draws(self, micro_step: int) -> StepDraws:
        """All that chance decides of them: this process's part of what one process would draw for all of them."""
        size = self.config.train_batch_size
        shape = torch.Size((size * self.num_processes, *self.latent_shape))
        weights = weigh_timesteps(self.config, self.num_train_timesteps)
        draws = draw_step(shape, weights, self.config.seed, micro_step, 0)
        return draws.part(size * self.process_index, size)

    def keys(self, micro_step: int) -> Iterator[list[SampleKey]]:
        """What is to be decoded, from a micro-step on, without end."""
        while True:
            draws = self.draws(micro_step)
            chance = zip(draws.mirrored.tolist(), draws.crop.tolist(), strict=True)
            yield [
                SampleKey(number, mirrored, (top, left))
                for number, (mirrored, (top, left)) in zip(self.samples(micro_step), chance, strict=True)
            ]
            micro_step += 1


@dataclass(frozen=True, slots=True)
class SampleKey:
    """A sample and its augmentation."""

    number: int
    mirrored: bool
    crop: tuple[float, float]


class Source(Protocol):
    """Pairs as the encoders see them, from a cache or computed at once."""

    @property
    def null_text(self) -> Tensor:
        """(1, L, D): no instruction."""
        ...

    @property
    def null_pooled(self) -> Tensor | None:
        """(1, P), of a Stable Diffusion XL."""
        ...

    @property
    def latent_shape(self) -> torch.Size:
        """(C, H, W)."""
        ...

    def __len__(self) -> int: ...

    def load(self, sampling: Sampling, micro_step: int, draws: StepDraws) -> Batch:
        """The batch of a micro-step, whose draws these are."""
        ...
