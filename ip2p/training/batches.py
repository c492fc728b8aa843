"""Which samples a step sees under which chance, and what the encoders say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from ip2p.config import TrainingConfig
from ip2p.training.draws import StepDraws, draw_samples, draw_step, weigh_timesteps


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
