"""One step of the training: float32 weights under autocast, a warmed average, chance that is a function of the step."""

from __future__ import annotations

import copy
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ip2p.config import TrainingConfig
from ip2p.models.noise import Objective, drop_conditions, drop_text
from ip2p.training import sharding
from ip2p.training.checkpoint import Trained
from ip2p.training.draws import Batch, Sampling, Source
from ip2p.training.lora import add_lora
from ip2p.training.optimizer import new_optimizer
from ip2p.training.sharding import is_fsdp, is_zero
from ip2p.training.zero import ZeroParts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trainer:
    """What a step needs and does not change."""

    config: TrainingConfig
    source: Source
    objective: Objective
    latent_scale: float
    accelerator: Accelerator
    network: nn.Module
    """The UNet as the accelerator wraps it."""
    trained: Trained
    sampling: Sampling

    def loss(self, micro_step: int) -> Tensor:
        """The loss of this process's batch number `micro_step`."""
        config, device, draws = self.config, self.accelerator.device, self.sampling.draws(micro_step)
        batch = self.source.load(self.sampling, micro_step, draws).to(device)
        posterior, noise, timesteps, dropout, offset = (
            value.to(device, non_blocking=True)
            for value in (draws.posterior, draws.noise, draws.timesteps, draws.dropout, draws.offset)
        )
        latents = (batch.mean + batch.deviation * posterior) * self.latent_scale
        noise = noise + config.noise_offset * offset if config.noise_offset else noise
        share = config.conditioning_dropout_prob or 0.0
        null_text = self.source.null_text.to(device, non_blocking=True)
        condition, text = drop_conditions(batch.condition, batch.text, null_text, dropout, share)
        prediction = self.predict(
            self.network,
            self.objective.noised(latents, noise, timesteps),
            timesteps,
            replace(batch, condition=condition, text=text, pooled=self._dropped(batch.pooled, dropout, share)),
        )
        return self.objective.loss(prediction, latents, noise, timesteps)

    def predict(self, network: nn.Module, noised: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        """What a UNet says of noised latents under a batch's conditions."""
        scale = self.latent_scale if self.config.scale_condition_latents else 1.0
        inputs = torch.cat([noised, batch.condition * scale], dim=1)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        added = None
        if batch.pooled is not None and batch.time_ids is not None:
            time_ids = batch.time_ids.long()  # whole numbers, which FSDP's precision rounds to none that are near
            added = {"text_embeds": batch.pooled, "time_ids": time_ids}
        found: Tensor = network(inputs, timesteps, batch.text, added_cond_kwargs=added, return_dict=False)[0]
        return found

    def _dropped(self, pooled: Tensor | None, dropout: Tensor, share: float) -> Tensor | None:
        none = self.source.null_pooled
        if pooled is None or none is None:
            return pooled
        return drop_text(pooled, none.to(pooled.device, non_blocking=True), dropout, share)

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns the mean loss of its micro-steps and the gradient's norm, on the device."""
        accumulation = self.config.gradient_accumulation_steps
        total = torch.zeros((), device=self.accelerator.device)
        for number in range(accumulation):
            with self._syncing(number == accumulation - 1), self._attention():
                loss = self.loss(step * accumulation + number) / accumulation
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.trained.optimizer.step()
        self.trained.optimizer.zero_grad(set_to_none=True)
        self.trained.schedule.step()
        if self.trained.average is not None:
            update_average(self.trained, self.trained.average, ema_decay_at(step + 1, self.config.ema_decay))
        return total, sharding.whole(torch.as_tensor(norm))

    def _attention(self) -> AbstractContextManager[None]:
        """Explicit maps on a CPU in bfloat16, where the backward pass of torch's fused kernel is slower than theirs."""
        explicit = self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "bf16"
        return sdpa_kernel(SDPBackend.MATH) if explicit else nullcontext()

    def _syncing(self, is_last: bool) -> AbstractContextManager[None]:
        if is_zero(self.accelerator):  # whose backward pass steps where it is told to synchronise
            self.accelerator.sync_gradients = is_last
            return nullcontext()
        return nullcontext() if is_last else self.accelerator.no_sync(self.network)


def ema_decay_at(step: int, decay: float) -> float:
    """The average's decay at a step, counted from 1: short-sighted at first."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(trained: Trained, average: nn.Module, decay: float) -> None:
    """Moves the average, or this process's part of it, towards the weights that are trained, wherever it lies."""
    both = zip(average.parameters(), trained.parts_of(trained.unet), strict=True)
    pairs = [(mean, weight.to(mean.device)) for mean, weight in both if weight.requires_grad or trained.parts]
    means, weights = zip(*pairs, strict=True)
    torch._foreach_lerp_(list(means), list(weights), 1 - decay)


def new_trained(
    unet: UNet2DConditionModel, config: TrainingConfig, accelerator: Accelerator, num_steps: int
) -> tuple[Trained, nn.Module]:
    """The UNet on its device with its average, optimizer and schedule, and the UNet as the accelerator wraps it."""
    if config.use_lora:
        unet = add_lora(unet, config.rank, config.seed)
    skeleton = sharding.skeleton_of(unet) if is_fsdp(accelerator) or is_zero(accelerator) else None
    if skeleton is None:
        unet.to(accelerator.device, memory_format=torch.channels_last)
    elif is_zero(accelerator):
        unet.to(accelerator.device)  # under FSDP each process takes its part alone onto its device
    place = torch.device("cpu") if config.offload_ema else accelerator.device
    average = copy.deepcopy(unet).to(place) if config.use_ema and skeleton is None else None
    _speed_up(unet.train(), config, accelerator.device)
    matmul = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    settings = replace(config, learning_rate=learning_rate_of(config, accelerator.num_processes))
    optimizer = new_optimizer(unet, settings, fused=accelerator.device.type in ("cpu", "cuda"), matmul=matmul)
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=num_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )
    groups = [list(group["params"]) for group in optimizer.param_groups]
    network, prepared = accelerator.prepare(unet, optimizer)
    parts = _parts(skeleton, unet, prepared, groups, accelerator)
    if config.use_ema and parts is not None:
        average = sharding.new_average(parts).to(place)
    if average is not None:
        average.eval().requires_grad_(False)
    return Trained(unet, average, prepared, schedule, accelerator.scaler, config.use_lora, parts), network


def _parts(
    skeleton: UNet2DConditionModel | None,
    unet: UNet2DConditionModel,
    prepared: Any,
    groups: list[list[nn.Parameter]],
    accelerator: Accelerator,
) -> sharding.Parts | None:
    if skeleton is None:
        return None
    if is_zero(accelerator):
        return ZeroParts(skeleton, unet, prepared.optimizer, groups)
    return sharding.FsdpParts(skeleton, unet, prepared)


def learning_rate_of(config: TrainingConfig, num_processes: int) -> float:
    """The peak, multiplied by the pairs of an optimizer step where that is asked for."""
    return config.learning_rate * (pairs_per_step(config, num_processes) if config.scale_lr else 1)


def pairs_per_step(config: TrainingConfig, num_processes: int) -> int:
    """Of an optimizer step, all processes together."""
    return config.train_batch_size * config.gradient_accumulation_steps * num_processes


def _speed_up(unet: UNet2DConditionModel, config: TrainingConfig, device: torch.device) -> None:
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.allow_tf32 and device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    if config.enable_xformers_memory_efficient_attention:
        if device.type == "cuda":
            unet.enable_xformers_memory_efficient_attention()
        else:
            logger.warning("xformers' attention runs on CUDA devices only; torch's own is used on %s", device)
    if config.compile:
        unet.compile_repeated_blocks()
