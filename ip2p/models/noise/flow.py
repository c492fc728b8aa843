"""Flow matching (Lipman et al., 2023; Esser et al., 2024): latents and noise mixed along a straight line.

A level's sigma is the share of noise in the mixture, and the denoiser predicts noise minus latents. Levels are counted
as diffusers' scheduler counts them, but from the cleanest: level 0 has the least noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Generator, Tensor

from ip2p.config import TrainingConfig
from ip2p.models.components import load_config, load_part
from ip2p.models.noise import NoiseProcess, RowNoise, Sampler

SCHEDULERS: dict[str, dict[str, bool]] = {
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchEulerDiscreteScheduler:stochastic": {"stochastic_sampling": True},
}
"""The schedulers that render pairs, by the name that a config gives them, with what it changes in the model's own."""
OF_DISCRETE_NOISE = ("snr_gamma", "prediction_type", "noise_offset", "scale_condition_latents")
"""Settings that have no meaning here."""
FINE = 1 << 20
"""Places between which the density `mode` is inverted."""


@dataclass(frozen=True, slots=True)
class FlowNoise(NoiseProcess):
    """The base model's own noise levels, and the weights of their losses."""

    sigmas: Tensor
    """(T,) shares of noise, ascending."""
    weighting_scheme: str
    num_train_timesteps: int = 1000

    @classmethod
    def of(cls, scheduler: FlowMatchEulerDiscreteScheduler, weighting_scheme: str | None) -> Self:
        """Reads the levels off a fresh scheduler, a static shift included."""
        steps = int(scheduler.config.num_train_timesteps)
        return cls(scheduler.sigmas.float().flip(0), weighting_scheme or "logit_normal", steps)

    @classmethod
    def load(cls, config: TrainingConfig) -> Self:
        given = [name for name in OF_DISCRETE_NOISE if getattr(config, name)]
        if config.timestep_bias_strategy != "none":
            given.append("timestep_bias_strategy")
        if given:
            raise ValueError(
                f"training.{given[0]} has no meaning for a base that is trained by flow matching. Leave it out; "
                "weighting_scheme says which noise levels are drawn and weighted."
            )
        return cls.of(load_part(FlowMatchEulerDiscreteScheduler, config, "scheduler"), config.weighting_scheme)

    @staticmethod
    def load_scheduler(config: TrainingConfig) -> SchedulerMixin:
        return FlowMatchEulerDiscreteScheduler.from_config(
            load_config(FlowMatchEulerDiscreteScheduler, config, "scheduler")
        )

    @staticmethod
    def new_scheduler(own: SchedulerMixin, name: str | None) -> SchedulerMixin:
        if name is not None and name not in SCHEDULERS:
            names = ", ".join(SCHEDULERS)
            raise ValueError(f"rendering.scheduler {name} cannot render pairs with this model. Use one of {names}.")
        return FlowMatchEulerDiscreteScheduler.from_config(own.config, **SCHEDULERS[name] if name else {})

    @classmethod
    def sampler(
        cls,
        scheduler: SchedulerMixin,
        num_steps: int,
        device: torch.device,
        generators: Sequence[Generator],
        num_positions: int,
    ) -> Sampler:
        mu = cls.shift(scheduler, num_positions, num_steps) if scheduler.config.use_dynamic_shifting else None
        return FlowSampler(scheduler, num_steps, device, generators, mu, cls.start_sigmas(num_steps))

    @staticmethod
    def start_sigmas(num_steps: int) -> list[float] | None:
        """Returns the steps' sigmas before they are shifted; None for those that the scheduler spreads itself."""
        return None

    @staticmethod
    def shift(scheduler: SchedulerMixin, num_positions: int, num_steps: int) -> float:
        """Returns mu, which shifts the steps of a scheduler that does so by the positions of an image.

        It grows in proportion to them, as the scheduler's config says.
        """
        config = scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(config.base_shift + slope * (num_positions - config.base_image_seq_len))

    @property
    def num_timesteps(self) -> int:
        return len(self.sigmas)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.sigmas.to(device), self.weighting_scheme, self.num_train_timesteps)

    def time_inputs(self, timesteps: Tensor) -> Tensor:
        """Returns the levels' sigmas times the number of training steps, as the scheduler's timesteps are."""
        return self.sigmas[timesteps] * self.num_train_timesteps

    def timestep_chances(self, config: TrainingConfig) -> Tensor:
        """Returns the chances of drawing each level as diffusers draws it: a density over [0, 1), cut into T parts."""
        edges = torch.linspace(0, 1, self.num_timesteps + 1, dtype=torch.float64)
        scheme = config.weighting_scheme or "logit_normal"
        if scheme == "logit_normal":
            below = _below_logit_normal(edges, config.logit_mean, config.logit_std)
        elif scheme == "mode":
            below = _below_mode(edges, config.mode_scale)
        else:
            below = edges
        return below.diff().flip(0).clamp(min=0).float()  # diffusers counts from the noisiest

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigmas = self.sigmas[timesteps][:, None, None, None]
        return (1 - sigmas) * latents + sigmas * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def weights(self, timesteps: Tensor) -> Tensor | None:
        """Returns the weights of Esser et al. (2024, section 3.1) as diffusers computes them."""
        if self.weighting_scheme not in ("sigma_sqrt", "cosmap"):
            return None
        weights: Tensor = compute_loss_weighting_for_sd3(self.weighting_scheme, self.sigmas[timesteps])
        return weights


def _below_logit_normal(edges: Tensor, mean: float, deviation: float) -> Tensor:
    """Returns the probability that a logit-normal variable lies below each edge."""
    below: Tensor = torch.special.ndtr((torch.logit(edges) - mean) / deviation)
    return below


def _below_mode(edges: Tensor, scale: float) -> Tensor:
    """Returns the same for the density with heavy tails of Esser et al. (2024, equation 20)."""
    draws = torch.linspace(0, 1, FINE, dtype=torch.float64)
    values = 1 - draws - scale * (torch.cos(math.pi * draws / 2) ** 2 - 1 + draws)
    place = torch.searchsorted(values.flip(0).contiguous(), edges)
    return place.double() / FINE


class FlowSampler:
    """diffusers' scheduler on its way through a batch."""

    def __init__(
        self,
        scheduler: SchedulerMixin,
        num_steps: int,
        device: torch.device,
        generators: Sequence[Generator],
        mu: float | None,
        sigmas: list[float] | None,
    ) -> None:
        scheduler.set_timesteps(num_steps, device="cpu", sigmas=sigmas, mu=mu)
        self.scheduler, self.noise = scheduler, RowNoise(generators, device)
        self.timesteps: Tensor = scheduler.timesteps
        self.time_inputs = self.timesteps.to(device)

    def start(self, noise: Tensor) -> Tensor:
        return noise

    def start_from(self, latents: Tensor, noise: Tensor, strength: float) -> tuple[Tensor, int]:
        num = len(self.timesteps)
        first = min(int(max(num - min(num * strength, num), 0)), num - 1)
        self.scheduler.set_begin_index(first)
        noised: Tensor = self.scheduler.scale_noise(latents, self.timesteps[first : first + 1], noise)
        return noised, first

    def inputs(self, latents: Tensor, timestep: Tensor) -> Tensor:
        return latents

    def step(self, prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        options = {"generator": self.noise.generators, "return_dict": False}
        with self.noise:
            stepped: Tensor = self.scheduler.step(prediction, timestep, latents, **options)[0]
        return stepped
