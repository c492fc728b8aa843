"""The interface of a noise process: how latents become noise in training, and noise becomes latents in sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from diffusers import SchedulerMixin
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from ip2p.config import TrainingConfig


class Sampler(Protocol):
    """Leads a batch from noise to latents, step by step."""

    timesteps: Tensor
    """The steps' timesteps, the noisiest first, on the host: a scheduler looks at their values."""
    time_inputs: Tensor
    """The same on the device, as the denoiser is told them."""

    def start(self, noise: Tensor) -> Tensor:
        """Scales standard normal noise to what the first step takes."""
        ...

    def start_from(self, latents: Tensor, noise: Tensor, strength: float) -> tuple[Tensor, int]:
        """Noises latents to where a share of the steps is left, at least one; returns them and that step's number.

        It counts steps as diffusers' pipelines from picture to picture do.
        """
        ...

    def inputs(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Scales latents to what the denoiser takes at a timestep."""
        ...

    def step(self, prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """Returns the latents of the next timestep."""
        ...


def draw_noise(generators: Sequence[Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """Draws standard normal (N, *shape) on the host, each row from its generator; rows with the same one are equal.

    The copy does not wait for what the device has to do before.
    """
    distinct = list(dict.fromkeys(generators))
    drawn = torch.empty(len(distinct), *shape, pin_memory=device.type == "cuda")
    for row, generator in zip(drawn, distinct, strict=True):
        row.normal_(generator=generator)
    drawn = drawn.to(device, non_blocking=True)
    if len(distinct) == len(generators):
        return drawn
    rows = dict(zip(distinct, drawn, strict=True))
    return torch.stack([rows[generator] for generator in generators])


class RowNoise(TorchFunctionMode):
    """Gives a scheduler of diffusers what it draws in a step as `draw_noise` draws it.

    Left alone, it draws each row by itself and waits for the device at every step.
    """

    def __init__(self, generators: Sequence[Generator], device: torch.device) -> None:
        super().__init__()
        self.generators, self._device = list(generators), device
        self._rows: list[Tensor] = []
        """Rows of the draw under way that the scheduler has yet to ask for."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is not torch.randn or options.get("generator") not in self.generators:
            return func(*args, **options)
        if not self._rows:
            drawn = draw_noise(self.generators, args[0][1:], self._device)
            self._rows = list(drawn.to(options["dtype"])[:, None])
        return self._rows.pop(0)


class NoiseProcess(ABC):
    """What the denoiser is trained to predict, at which noise levels, and how it is sampled. It takes no models."""

    @property
    @abstractmethod
    def num_timesteps(self) -> int:
        """How many noise levels there are."""

    @classmethod
    @abstractmethod
    def load(cls, config: TrainingConfig) -> Self:
        """Reads the base's process, changed as the training says."""

    @staticmethod
    @abstractmethod
    def load_scheduler(config: TrainingConfig) -> SchedulerMixin:
        """Loads the base's own scheduler for the exported pipeline, changed as the training says."""

    @staticmethod
    @abstractmethod
    def new_scheduler(own: SchedulerMixin, name: str | None) -> SchedulerMixin:
        """Returns a fresh scheduler, since they hold state: one of `own`'s class, or of the class that `name` names.

        ValueError, which lists the usable ones, for one that cannot render pairs.
        """

    @classmethod
    @abstractmethod
    def sampler(
        cls,
        scheduler: SchedulerMixin,
        num_steps: int,
        device: torch.device,
        generators: Sequence[Generator],
        num_positions: int,
    ) -> Sampler:
        """Starts a fresh scheduler; each row of the batch draws from its own generator.

        `num_positions` are the denoiser's in an image: some processes spread their steps by it.
        """

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """Returns the same process on another device."""

    @abstractmethod
    def timestep_chances(self, config: TrainingConfig) -> Tensor:
        """Returns the (T,) chances with which a training draws the timesteps."""

    def time_inputs(self, timesteps: Tensor) -> Tensor:
        """Returns what the denoiser is told of timesteps, as the sampler's are told."""
        return timesteps

    @abstractmethod
    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns latents at their timesteps' noise levels."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns what the denoiser should predict."""

    @abstractmethod
    def weights(self, timesteps: Tensor) -> Tensor | None:
        """Returns the (N,) weights of the losses; None if all count alike."""

    def errors(
        self, prediction: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, regions: Tensor | None = None
    ) -> Tensor:
        """Returns the (N,) mean squared errors; `regions` are (N, 1, h, w) weights of the positions."""
        squares = (prediction.float() - self.target(latents, noise, timesteps)).square()
        return (squares if regions is None else squares * regions).mean(dim=(1, 2, 3))

    def loss(
        self, prediction: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, regions: Tensor | None = None
    ) -> Tensor:
        """Returns the weighted mean of the errors."""
        errors = self.errors(prediction, latents, noise, timesteps, regions)
        weights = self.weights(timesteps)
        return (errors if weights is None else errors * weights).mean()
