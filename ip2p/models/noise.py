"""What the editor is trained to predict: noise levels, targets, weights, dropped conditions. It takes no models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, slots=True)
class Objective:
    """The base model's own noise schedule and prediction type."""

    alphas_cumprod: Tensor
    """(T,) share of signal in the variance; ends at 0 under zero terminal SNR."""
    prediction_type: str
    snr_gamma: float | None

    def to(self, device: torch.device) -> Objective:
        """The same on another device."""
        return Objective(self.alphas_cumprod.to(device), self.prediction_type, self.snr_gamma)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents at their timesteps' noise levels."""
        signal, spread = self._levels(timesteps)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet should say."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal, spread = self._levels(timesteps)
        return signal * noise - spread * latents

    def loss(self, prediction: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squared error over the batch, weighted where `snr_gamma` is set."""
        squares = (prediction.float() - self.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))
        if self.snr_gamma is not None:
            squares = squares * self.weights(timesteps)
        return squares.mean()

    def weights(self, timesteps: Tensor) -> Tensor:
        """Min-SNR weights (Hang et al., 2023) in terms of the prediction type."""
        share = self.alphas_cumprod[timesteps]
        snr = share / (1 - share)
        clipped = snr.clamp(max=self.snr_gamma)
        if self.prediction_type == "sample":
            return clipped
        return clipped / (snr + 1) if self.prediction_type == "v_prediction" else clipped / snr.clamp(min=1e-8)

    def _levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        share = self.alphas_cumprod[timesteps][:, None, None, None]
        return share.sqrt(), (1 - share).sqrt()


def objective_of(scheduler: DDPMScheduler, snr_gamma: float | None, prediction_type: str | None = None) -> Objective:
    """Reads the objective off a scheduler; its betas are rescaled already where its config says so."""
    prediction_type = prediction_type or scheduler.config.prediction_type
    if prediction_type not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise ValueError(f"prediction_type must be one of {known}, got {prediction_type}. Use another base.")
    return Objective(scheduler.alphas_cumprod.float(), prediction_type, snr_gamma)


def drop_conditions(
    condition: Tensor, text: Tensor, null_text: Tensor, uniform: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """Below p no text, from p to 2p neither, from 2p to 3p no image (paper, section 3.2.1). Null image is zero."""
    no_image = (uniform >= p) & (uniform < 3 * p)
    return condition.masked_fill(no_image[:, None, None, None], 0.0), drop_text(text, null_text, uniform, p)


def drop_text(text: Tensor, null_text: Tensor, uniform: Tensor, p: float) -> Tensor:
    """The text's part of it, for embeddings of any shape (N, …)."""
    no_text = (uniform < 2 * p).view(-1, *(1 for _ in text.shape[1:]))
    return torch.where(no_text, null_text.to(text.dtype), text)
