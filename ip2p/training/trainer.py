"""Takes one step of the training: float32 weights under autocast, a warmed-up average, draws by step number."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Self

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ip2p.config import TrainingConfig
from ip2p.models.architecture import Architecture
from ip2p.models.latents import LatentSpace
from ip2p.models.noise import NoiseProcess
from ip2p.models.texts import Texts
from ip2p.records import hash_to_seed
from ip2p.training.ahead import Ahead
from ip2p.training.attention import choose_attention
from ip2p.training.draws import Batch, EncodedPairs, SampleStream, StepDraws, drop_conditions
from ip2p.training.lora import add_lora
from ip2p.training.optimizer import new_optimizer
from ip2p.training.regions import position_weights
from ip2p.training.sharding import FsdpParts, Parts, ZeroParts, is_fsdp, is_zero, skeleton_of, whole
from ip2p.training.trained import Trained

logger = logging.getLogger(__name__)

UNGUIDED = 1.0
"""The guidance scale that a distilled base is told unless the config gives one: as of a model without guidance."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """What a step needs and does not change."""

    config: TrainingConfig
    base: Architecture
    pairs: EncodedPairs
    noise: NoiseProcess
    latents: LatentSpace
    accelerator: Accelerator
    network: nn.Module
    """The denoiser as the accelerator wraps it."""
    trained: Trained
    stream: SampleStream
    none: Texts
    """The text that stands for no instruction, on the device."""
    ahead: Ahead[tuple[StepDraws, Batch]] | None = None
    """Has the inputs of the next micro-steps; without it each step makes its own."""

    @contextmanager
    def reading_ahead(self, num_steps: int) -> Iterator[Self]:
        """Has a thread make the inputs of steps up to the last, if the pairs let it."""
        if not self.pairs.on_host:
            yield self
            return
        end = num_steps * self.config.gradient_accumulation_steps
        with Ahead(self.inputs, end, self.accelerator.device) as ahead:
            yield replace(self, ahead=ahead)

    def inputs(self, micro_step: int) -> tuple[StepDraws, Batch]:
        """Returns the draws and the pairs of a micro-step, what lies on the host as the device can take it at once."""
        draws = self.stream.draws(micro_step)
        batch = self.pairs.load(self.stream, micro_step, draws)

        def staged(values: Tensor) -> Tensor:
            if self.accelerator.device.type == "cuda" and values.device.type == "cpu":
                return values.pin_memory()
            return values

        on_cpu = self.accelerator.device.type == "cpu"
        return draws.map(staged), batch.to(torch.device("cpu")) if on_cpu else batch.map(staged)

    def loss(self, micro_step: int) -> Tensor:
        """Returns the loss of this process's batch number `micro_step`."""
        config, device = self.config, self.accelerator.device
        draws, loaded = self.inputs(micro_step) if self.ahead is None else self.ahead.take(micro_step)
        if config.use_lora and config.lora_dropout:
            torch.manual_seed(hash_to_seed("lora dropout", config.seed, micro_step, self.stream.process_index))
        batch = loaded.to(device)
        posterior, noise, timesteps, dropout, offset = (
            value.to(device, non_blocking=True)
            for value in (draws.posterior, draws.noise, draws.timesteps, draws.dropout, draws.offset)
        )
        latents = self.latents.scaled(batch.mean + batch.deviation * posterior)
        noise = noise + config.noise_offset * offset if config.noise_offset else noise
        share = config.conditioning_dropout_prob or 0.0
        condition, texts = drop_conditions(self.condition_of(batch), batch.texts, self.none, dropout, share)
        noised = self.noise.noised(latents, noise, timesteps)
        prediction = self.predict(self.network, noised, timesteps, texts, condition, batch.sizes)
        regions = None
        if batch.changed is not None and config.region_weight is not None:
            regions = position_weights(batch.changed, config.region_weight)
        return self.noise.loss(prediction, latents, noise, timesteps, regions)

    def condition_of(self, batch: Batch) -> Tensor:
        """Returns the image condition, normalised if the base or the config asks for it."""
        is_scaled = self.base.scales_condition or self.config.scale_condition_latents
        return self.latents.scaled(batch.condition) if is_scaled else batch.condition

    def predict(
        self, network: nn.Module, noised: Tensor, timesteps: Tensor, texts: Texts, condition: Tensor, sizes: Tensor
    ) -> Tensor:
        """Calls a denoiser on noised latents under a batch's conditions."""
        noised, condition = (values.contiguous(memory_format=torch.channels_last) for values in (noised, condition))
        time_input, guidance = self.noise.time_inputs(timesteps), None
        if self.base.is_distilled(self.trained.denoiser):
            scale = UNGUIDED if self.config.guidance_scale is None else self.config.guidance_scale
            guidance = torch.full_like(time_input, scale, dtype=torch.float32)
        return self.base.predict(
            network, noised, time_input, texts, condition=condition, sizes=sizes, guidance=guidance
        )

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Takes an optimizer step; returns the mean loss of its micro-steps and the gradient's norm, on the device."""
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
        return total, whole(torch.as_tensor(norm))

    def _attention(self) -> AbstractContextManager[None]:
        """Chooses explicit maps on a CPU in bfloat16, as torch's fused kernel is slower there in the backward pass."""
        explicit = self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "bf16"
        return sdpa_kernel(SDPBackend.MATH) if explicit else nullcontext()

    def _syncing(self, is_last: bool) -> AbstractContextManager[None]:
        if is_zero(self.accelerator):  # whose backward pass takes the step when it may synchronise
            self.accelerator.sync_gradients = is_last
            return nullcontext()
        return nullcontext() if is_last else self.accelerator.no_sync(self.network)


def ema_decay_at(step: int, decay: float) -> float:
    """Returns the average's decay at a step, counted from 1: short-sighted at first."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(trained: Trained, average: nn.Module, decay: float) -> None:
    """Moves the average, or this process's part of it, towards the weights that are trained, wherever it lies."""
    both = zip(average.parameters(), trained.parts_of(trained.denoiser), strict=True)
    pairs = [(mean, weight.to(mean.device)) for mean, weight in both if weight.requires_grad or trained.parts]
    means, weights = zip(*pairs, strict=True)
    torch._foreach_lerp_(list(means), list(weights), 1 - decay)


def new_trained(
    denoiser: ModelMixin, base: Architecture, config: TrainingConfig, accelerator: Accelerator, num_steps: int
) -> tuple[Trained, nn.Module]:
    """Sets up the denoiser on its device, its average, optimizer and schedule; also returns the wrapped denoiser."""
    if config.use_lora:
        denoiser = add_lora(denoiser, base, config)
    is_whole = not (is_fsdp(accelerator) or is_zero(accelerator))
    skeleton = None if is_whole else skeleton_of(denoiser)
    if config.quantization is not None:
        if not config.quantization.startswith("bnb"):  # whose weights are on their device and cannot be moved
            denoiser.to(accelerator.device)
    elif is_whole:
        denoiser.to(accelerator.device, memory_format=torch.channels_last)
    elif is_zero(accelerator):
        denoiser.to(accelerator.device)  # under FSDP each process takes its part alone onto its device
    place = torch.device("cpu") if config.offload_ema else accelerator.device
    averages_itself = config.optim == "schedule_free"
    use_ema = config.use_ema and not averages_itself
    average = copy.deepcopy(denoiser).to(place) if use_ema and is_whole else None
    _speed_up(denoiser.train(), config, accelerator)
    matmul = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    scale = pairs_per_step(config, accelerator.num_processes) if config.scale_lr else 1
    settings = replace(config, learning_rate=config.learning_rate * scale)
    optimizer = new_optimizer(denoiser, base, settings, fused=accelerator.device.type in ("cpu", "cuda"), matmul=matmul)
    schedule = get_scheduler(
        "constant" if averages_itself else config.lr_scheduler,  # it warms up itself
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=num_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )
    groups = [list(group["params"]) for group in optimizer.param_groups]
    network, prepared = accelerator.prepare(denoiser, optimizer)
    parts: Parts | None = None
    if is_fsdp(accelerator):
        parts = FsdpParts(skeleton, denoiser, prepared)
    elif is_zero(accelerator):
        parts = ZeroParts(skeleton, denoiser, prepared.optimizer, groups)
    if use_ema and parts is not None:
        copies = (nn.Parameter(part.clone(), requires_grad=False) for part in parts.masters())
        average = nn.ParameterList(copies).to(place)
    if average is not None:
        average.eval().requires_grad_(False)
    states = prepared, schedule, accelerator.scaler
    return Trained(base, denoiser, average, *states, config.use_lora, parts, averages_itself), network


def pairs_per_step(config: TrainingConfig, num_processes: int) -> int:
    """Returns the pairs of an optimizer step, all processes together."""
    return config.train_batch_size * config.gradient_accumulation_steps * num_processes


def _speed_up(denoiser: ModelMixin, config: TrainingConfig, accelerator: Accelerator) -> None:
    device = accelerator.device
    choose_attention(denoiser, device, accelerator.mixed_precision)
    if config.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if config.allow_tf32 and device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    if config.enable_xformers_memory_efficient_attention:
        if device.type == "cuda":
            denoiser.enable_xformers_memory_efficient_attention()
        else:
            logger.warning("xformers' attention runs on CUDA devices only; torch's own is used on %s", device)
    if config.compile:
        denoiser.compile_repeated_blocks()
