"""Draws the random numbers of a training, as functions of seed, step and process: a resumed run is the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ip2p.config import TrainingConfig
from ip2p.models.texts import Texts
from ip2p.records import hash_to_seed

if TYPE_CHECKING:
    from ip2p.training.windows import WindowOrder

Drawing = Literal["by_sample", "by_batch"]
"""How a training draws: each sample's numbers on their own, or, as earlier versions did, those of all processes."""


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
        """Returns the draws of some samples."""
        return self.map(lambda values: values[first : first + num])

    def map(self, change: Callable[[Tensor], Tensor]) -> StepDraws:
        """Applies a function to every tensor."""
        return StepDraws(*(change(getattr(self, field.name)) for field in fields(self)))


def draw_each(latent_shape: torch.Size, timestep_chances: Tensor, places: Sequence[int], *key: object) -> StepDraws:
    """Draws for latents of (C, H, W) at places of a batch, each from a generator of its own.

    What a place gets depends on neither the other places nor the number of them.
    """
    num, generator = len(places), torch.Generator()
    uniform = torch.empty(num, 5)
    posterior, noise = (torch.empty(num, *latent_shape) for _ in range(2))
    offset = torch.empty(num, latent_shape[0], 1, 1)
    for place, uniforms, *normals in zip(places, uniform, offset, posterior, noise, strict=True):
        generator.manual_seed(hash_to_seed("sample", *key, place))
        uniforms.uniform_(generator=generator)
        for values in normals:
            values.normal_(generator=generator)
    level, dropout, mirrored = uniform[:, :3].T.contiguous()
    timesteps = timesteps_at(level.double(), timestep_chances)
    return StepDraws(posterior, noise, timesteps, dropout, mirrored < 0.5, offset, crop=uniform[:, 3:])


def draw_step(shape: torch.Size, timestep_chances: Tensor, *key: object) -> StepDraws:
    """Draws for a batch of latents of `shape` from one generator, under a key such as (seed, step, process)."""
    generator = torch.Generator().manual_seed(hash_to_seed("training", *key))
    return StepDraws(
        posterior=torch.randn(shape, generator=generator),
        noise=torch.randn(shape, generator=generator),
        timesteps=torch.multinomial(timestep_chances, shape[0], replacement=True, generator=generator),
        dropout=torch.rand(shape[0], generator=generator),
        mirrored=torch.rand(shape[0], generator=generator) < 0.5,
        offset=torch.randn((*shape[:2], 1, 1), generator=generator),
        crop=torch.rand((shape[0], 2), generator=generator),
    )


def draw_strata(num: int, timestep_chances: Tensor, *key: object) -> Tensor:
    """Draws (N,) timesteps of which each comes from another N-th of the chances, in a shuffled order.

    The places within the N-ths are one and the same, so a mean over them varies less than over independent draws, while
    each timestep has its own chance as ever.
    """
    generator = torch.Generator().manual_seed(hash_to_seed("strata", *key))
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    return timesteps_at((torch.randperm(num, generator=generator) + offset) / num, timestep_chances)


def timesteps_at(levels: Tensor, timestep_chances: Tensor) -> Tensor:
    """Returns the timesteps below which such shares of the chances, in [0, 1), lie."""
    below = timestep_chances.double().cumsum(0)
    timesteps = torch.searchsorted(below / below[-1], levels, right=True)
    return timesteps.clamp(max=len(below) - 1)


@lru_cache(maxsize=2)
def draw_order(num_samples: int, *key: object) -> Tensor:
    """Draws the order of the samples in an epoch, under a key such as (seed, epoch)."""
    generator = torch.Generator().manual_seed(hash_to_seed("order", *key))
    return torch.randperm(num_samples, generator=generator)


def draw_samples(num_samples: int, seed: int, first: int, count: int) -> list[int]:
    """Draws samples number `first` to `first + count` of an endless stream that shows each sample once per epoch."""
    return [int(draw_order(num_samples, seed, n // num_samples)[n % num_samples]) for n in range(first, first + count)]


class BalancedOrder:
    """An endless stream of samples in rounds: each round shows one of each group, in an order of its own.

    A group shows each of its samples before it repeats one, so rows of rare groups come more often than others.
    """

    def __init__(self, groups: Sequence[object], seed: int) -> None:
        """Takes the group of each sample."""
        self.seed = seed
        values, group = np.unique(np.array([str(value) for value in groups]), return_inverse=True)
        self.members = [np.flatnonzero(group == number) for number in range(len(values))]
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def samples(self, first: int, count: int) -> list[int]:
        """Draws samples number `first` to `first + count` of the stream."""
        return [self._sample(*divmod(number, len(self.members))) for number in range(first, first + count)]

    def _sample(self, turn: int, place: int) -> int:
        group = int(draw_order(len(self.members), "turn", self.seed, turn)[place])
        members = self.members[group]
        cycle, position = divmod(turn, len(members))
        if self._orders.get(group, (-1,))[0] != cycle:
            self._orders[group] = cycle, draw_order(len(members), "group", self.seed, group, cycle)
        return int(members[self._orders[group][1][position]])


def drop_conditions(condition: Tensor, texts: Texts, none: Texts, uniform: Tensor, p: float) -> tuple[Tensor, Texts]:
    """Drops the text below p, both from p to 2p, the image from 2p to 3p (paper, section 3.2.1). No image is zero."""
    no_image = (uniform >= p) & (uniform < 3 * p)
    return condition.masked_fill(no_image[:, None, None, None], 0.0), texts.replaced(uniform < 2 * p, none)


@dataclass(frozen=True, slots=True)
class Batch:
    """The encoders' outputs for some samples."""

    mean: Tensor
    """(N, C, H, W) of the edited image's posterior."""
    deviation: Tensor
    condition: Tensor
    """(N, C, H, W), the original image's mode, unscaled."""
    texts: Texts
    """The N instructions."""
    sizes: Tensor
    """(N, 6) integers: original size, top left of the crop, target size."""
    changed: Tensor | None = None
    """(N, 1, H, W) shares of each position's pixels that change, if the loss is weighted by them."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Applies a function to every tensor."""
        mean, deviation, condition, sizes = map(change, (self.mean, self.deviation, self.condition, self.sizes))
        changed = None if self.changed is None else change(self.changed)
        return Batch(mean, deviation, condition, self.texts.map(change), sizes, changed)

    def to(self, device: torch.device) -> Batch:
        """Moves it to another device, where all but the sizes are brought to float32."""

        def move(values: Tensor) -> Tensor:
            moved = values.to(device, non_blocking=True)
            return moved.float() if moved.is_floating_point() else moved

        return self.map(move)


class Order(Protocol):
    """Batches of samples of one size each, in given proportions."""

    def shape(self, micro_step: int) -> torch.Size:
        """Returns (C, H, W) of a batch's latents."""
        ...

    def samples(self, micro_step: int, first: int, count: int) -> list[int]:
        """Draws samples number `first` to `first + count` of a batch."""
        ...


@dataclass(frozen=True, slots=True)
class SampleStream:
    """The order of the samples and the draws of every step, for one process of several."""

    config: TrainingConfig
    num_samples: int
    latent_shape: torch.Size
    timestep_chances: Tensor
    process_index: int = 0
    num_processes: int = 1
    balanced: BalancedOrder | None = None
    mixed: Order | None = None
    drawing: Drawing = "by_sample"
    windows: WindowOrder | None = None
    end: int | None = None
    """Micro-steps of the whole training, if that is known."""

    def first_sample(self, micro_step: int) -> int:
        """Returns the number in the stream of this process's first sample of a micro-step."""
        return (micro_step * self.num_processes + self.process_index) * self.config.train_batch_size

    def samples(self, micro_step: int) -> list[int]:
        """Returns the numbers of this process's samples; the stream shows each once per epoch, to one process.

        A balanced stream shows each group equally often instead, a mixed one in given shares, and one in windows shows
        the parts of the cache one after another.
        """
        size = self.config.train_batch_size
        if self.mixed is not None:
            return self.mixed.samples(micro_step, self.process_index * size, size)
        first = self.first_sample(micro_step)
        if self.windows is not None:
            return self.windows.samples(first, size)
        if self.balanced is not None:
            return self.balanced.samples(first, size)
        return draw_samples(self.num_samples, self.config.seed, first, size)

    def draws(self, micro_step: int) -> StepDraws:
        """Draws a micro-step's random numbers: this process's part of what one process would draw for all."""
        seed, size, chances = self.config.seed, self.config.train_batch_size, self.timestep_chances
        latent_shape = self.latent_shape if self.mixed is None else self.mixed.shape(micro_step)
        first, num_all = size * self.process_index, size * self.num_processes
        if self.drawing == "by_sample":
            draws = draw_each(latent_shape, chances, range(first, first + size), seed, micro_step)
        else:
            draws = draw_step(torch.Size((num_all, *latent_shape)), chances, seed, micro_step, 0).part(first, size)
        if self.config.stratified_timesteps:
            step, number = divmod(micro_step, self.config.gradient_accumulation_steps)
            strata = draw_strata(num_all * self.config.gradient_accumulation_steps, chances, seed, step)
            first += number * num_all
            draws = replace(draws, timesteps=strata[first : first + size])
        return draws

    def keys(self, micro_step: int) -> Iterator[list[SampleKey]]:
        """Yields the keys of each batch, from a micro-step on, endlessly."""
        while True:
            draws = self.draws(micro_step)
            keys = zip(self.samples(micro_step), draws.mirrored.tolist(), draws.crop.tolist(), strict=True)
            yield [SampleKey(number, mirrored, (top, left)) for number, mirrored, (top, left) in keys]
            micro_step += 1


@dataclass(frozen=True, slots=True)
class SampleKey:
    """A sample and its augmentation."""

    number: int
    mirrored: bool
    crop: tuple[float, float]


class EncodedPairs(Protocol):
    """Encoded pairs, from a cache or encoded at each step."""

    @property
    def on_host(self) -> bool:
        """Whether `load` needs the host alone, so that a thread may call it ahead of the step."""
        ...

    @property
    def none(self) -> Texts:
        """The encoded text that stands for no instruction."""
        ...

    @property
    def latent_shape(self) -> torch.Size:
        """(C, H, W)."""
        ...

    @property
    def row_numbers(self) -> Sequence[int]:
        """The row of the data that each pair comes from."""
        ...

    @property
    def source_numbers(self) -> NDArray[np.int64]:
        """The source of the data, if there are several, that each pair comes from."""
        ...

    def __len__(self) -> int: ...

    def load(self, stream: SampleStream, micro_step: int, draws: StepDraws) -> Batch:
        """Returns the batch of a micro-step, given its draws."""
        ...
