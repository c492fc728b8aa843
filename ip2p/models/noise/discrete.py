"""The noise of DDPM (Ho et al., 2020): a table of levels, shared by training and by every scheduler of diffusers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import diffusers
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Generator, Tensor

from ip2p.config import TrainingConfig
from ip2p.models.components import load_config, load_part
from ip2p.models.noise import NoiseProcess, RowNoise, Sampler

logger = logging.getLogger(__name__)

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
UNPAIRED_SCHEDULERS = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
"""These draw noise from generators of their own, which two sides of a pair cannot share."""


@dataclass(frozen=True, slots=True)
class DiscreteNoise(NoiseProcess):
    """The base model's own noise schedule and prediction type."""

    alphas_cumprod: Tensor
    """(T,) share of signal in the variance; ends at 0 under zero terminal SNR."""
    prediction_type: str
    snr_gamma: float | None

    @classmethod
    def of(cls, scheduler: DDPMScheduler, snr_gamma: float | None, prediction_type: str | None = None) -> Self:
        """Reads the process off a scheduler; its betas are rescaled already if its config says so."""
        prediction_type = prediction_type or scheduler.config.prediction_type
        if prediction_type not in PREDICTION_TYPES:
            names = ", ".join(PREDICTION_TYPES)
            raise ValueError(f"prediction_type must be one of {names}, got {prediction_type}. Use another base.")
        return cls(scheduler.alphas_cumprod.float(), prediction_type, snr_gamma)

    @classmethod
    def load(cls, config: TrainingConfig) -> Self:
        if config.weighting_scheme is not None:
            raise ValueError(
                "training.weighting_scheme is for bases that are trained by flow matching. Leave it out; snr_gamma and "
                "timestep_bias_strategy do the same for this one."
            )
        return cls.of(load_part(DDPMScheduler, config, "scheduler"), config.snr_gamma, config.prediction_type)

    @staticmethod
    def load_scheduler(config: TrainingConfig) -> SchedulerMixin:
        scheduler = load_config(DDPMScheduler, config, "scheduler")
        changes = {"prediction_type": config.prediction_type} if config.prediction_type else {}
        return getattr(diffusers, scheduler["_class_name"]).from_config(scheduler, **changes)

    @staticmethod
    def new_scheduler(own: SchedulerMixin, name: str | None) -> SchedulerMixin:
        if name is None:
            return type(own).from_config(own.config)
        scheduler_class: type[SchedulerMixin] = getattr(diffusers, name, object)
        if not _can_render_pairs(scheduler_class):
            names = ", ".join(usable_schedulers(own))
            raise ValueError(f"rendering.scheduler {name} cannot render pairs with this model. Use one of {names}.")
        for option in ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing"):
            value = own.config.get(option)
            if value not in (None, False, "epsilon", "leading") and not _understands(scheduler_class, option):
                _warn_once(f"{name} has no {option}, which this model was trained for ({value})")
        return scheduler_class.from_config(own.config)

    @classmethod
    def sampler(
        cls,
        scheduler: SchedulerMixin,
        num_steps: int,
        device: torch.device,
        generators: Sequence[Generator],
        num_positions: int,
    ) -> Sampler:
        return DiscreteSampler(scheduler, num_steps, device, generators)

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.alphas_cumprod.to(device), self.prediction_type, self.snr_gamma)

    def timestep_chances(self, config: TrainingConfig) -> Tensor:
        """Returns even chances, but for the timesteps that `timestep_bias_strategy` favours."""
        num = self.num_timesteps
        portion = int(config.timestep_bias_portion * num)
        first, end = {
            "none": (0, 0),
            "earlier": (0, portion),
            "later": (num - portion, num),
            "range": (config.timestep_bias_begin, config.timestep_bias_end),
        }[config.timestep_bias_strategy]
        weights = torch.ones(num)
        weights[first:end] *= config.timestep_bias_multiplier
        return weights / weights.sum()

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, spread = self._levels(timesteps)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal, spread = self._levels(timesteps)
        return signal * noise - spread * latents

    def weights(self, timesteps: Tensor) -> Tensor | None:
        """Returns Min-SNR weights (Hang et al., 2023) in terms of the prediction type."""
        if self.snr_gamma is None:
            return None
        share = self.alphas_cumprod[timesteps]
        snr = share / (1 - share)
        clipped = snr.clamp(max=self.snr_gamma)
        if self.prediction_type == "sample":
            return clipped
        return clipped / (snr + 1) if self.prediction_type == "v_prediction" else clipped / snr.clamp(min=1e-8)

    def _levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        share = self.alphas_cumprod[timesteps][:, None, None, None]
        return share.sqrt(), (1 - share).sqrt()


class DiscreteSampler:
    """A scheduler of diffusers on its way through a batch."""

    def __init__(
        self, scheduler: SchedulerMixin, num_steps: int, device: torch.device, generators: Sequence[Generator]
    ) -> None:
        scheduler.set_timesteps(num_steps, device="cpu")
        self.scheduler, self.num_steps = scheduler, num_steps
        self.timesteps: Tensor = scheduler.timesteps
        dtype = torch.float32 if self.timesteps.is_floating_point() else torch.int64
        self.time_inputs = self.timesteps.to(dtype).to(device)
        self.noise = RowNoise(generators, device)
        takes_generators = "generator" in inspect.signature(scheduler.step).parameters
        self.options = {"generator": self.noise.generators} if takes_generators else {}

    def start(self, noise: Tensor) -> Tensor:
        return noise * float(self.scheduler.init_noise_sigma)

    def start_from(self, latents: Tensor, noise: Tensor, strength: float) -> tuple[Tensor, int]:
        num_left = max(1, min(int(self.num_steps * strength), self.num_steps))
        first = (self.num_steps - num_left) * self.scheduler.order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        noised: Tensor = self.scheduler.add_noise(latents, noise, self.timesteps[first : first + 1])
        return noised, first

    def inputs(self, latents: Tensor, timestep: Tensor) -> Tensor:
        scaled: Tensor = self.scheduler.scale_model_input(latents, timestep)
        return scaled

    def step(self, prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        with self.noise:
            stepped: Tensor = self.scheduler.step(prediction, timestep, latents, **self.options, return_dict=False)[0]
        return stepped


def usable_schedulers(own: SchedulerMixin) -> list[str]:
    """Lists the schedulers that can render pairs: the model's own, and those that diffusers lets it change to."""
    kinds = {type(own), *(getattr(diffusers, kind.name) for kind in KarrasDiffusionSchedulers)}
    return sorted(kind.__name__ for kind in kinds if _can_render_pairs(kind))


def _can_render_pairs(scheduler_class: type[SchedulerMixin]) -> bool:
    if not inspect.isclass(scheduler_class) or not issubclass(scheduler_class, SchedulerMixin):
        return False
    return scheduler_class.__name__ not in UNPAIRED_SCHEDULERS and _understands(scheduler_class, "beta_schedule")


def _understands(scheduler_class: type[SchedulerMixin], option: str) -> bool:
    return option in inspect.signature(scheduler_class).parameters


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
