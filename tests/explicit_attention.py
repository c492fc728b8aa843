"""Prompt-to-prompt written out: one pair at a time, every attention map made with a softmax and edited in place."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.models.attention_processor import Attention
from scipy import ndimage
from torch import Tensor

from ip2p.config import RenderingConfig
from ip2p.models.noise.discrete import DiscreteNoise
from ip2p.p2p.alignment import map_tokens
from ip2p.records import Candidate


class ExplicitAttention:
    """A processor that makes every map with a softmax and lets `edit` change it."""

    def edit(self, maps: Tensor, is_cross: bool) -> Tensor:
        """Takes and gives the (rows, heads, N, M) maps of a layer."""
        raise NotImplementedError

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows, length, _ = hidden_states.shape

        def heads(some: Tensor) -> Tensor:
            return some.reshape(rows, some.shape[1], attn.heads, -1).permute(0, 2, 1, 3)

        query, key, value = heads(attn.to_q(hidden_states)), heads(attn.to_k(context)), heads(attn.to_v(context))
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if attention_mask is not None:
            logits = logits + attention_mask.view(rows, 1, 1, -1)
        maps = torch.softmax(logits, dim=-1)
        maps = self.edit(maps, encoder_hidden_states is not None)
        out: Tensor = attn.to_out[0]((maps @ value).permute(0, 2, 1, 3).reshape(rows, length, -1))
        return out


class ExplicitPair(ExplicitAttention):
    """The rows of a step are [original, edited], after those of the half without text where there is guidance."""

    num_tokens: int | None = None

    def __init__(
        self, pipeline: Any, candidate: Candidate, config: RenderingConfig, *, always_guided: bool = False
    ) -> None:
        """`always_guided` computes the half without text at a guidance of 1 too, as the original software does."""
        self.is_guided = always_guided or candidate.spec.guidance_scale > 1
        self.pipeline, self.candidate, self.config, self.spec = pipeline, candidate, config, candidate.spec
        triplet = candidate.triplet
        self.words = map_tokens(
            pipeline.tokenizer, triplet.original_prompt, triplet.edited_prompt, config.cross_alignment, self.num_tokens
        )
        self.step, self.num_steps, self.together = 0, 0, False
        self.places: dict[str, dict[int, Tensor]] = {"gone": {}, "new": {}}

    def within(self, fraction: float) -> bool:
        return fraction > self.step / max(1, self.num_steps - 1)

    def edit(self, maps: Tensor, is_cross: bool) -> Tensor:
        spec, config = self.spec, self.config
        if self.together:
            return maps
        if not is_cross:
            cap = config.p2p_max_positions
            if self.within(spec.p2p) and (cap is None or maps.shape[2] <= cap):
                maps[1::2] = maps[0::2]
            return maps
        if self.within(spec.cross_p2p):
            moved = maps[-2] @ self.words.matrix.to(maps.dtype)
            maps[-1] = moved + maps[-1] * self.words.own.to(maps.dtype)
        for row, name in ((-2, "gone"), (-1, "new")) if spec.local_blend else ():
            seen = (maps[row].float().mean(0) * getattr(self.words, name)).sum(-1)
            self.places[name][maps.shape[2]] = self.places[name].get(maps.shape[2], 0) + seen
        if self.within(spec.reweight_steps):
            for place in self.words.new.nonzero().flatten():
                maps[-1, :, :, place] *= spec.reweight
        return maps

    def may_differ(self, height: int, width: int) -> Tensor:
        found = torch.zeros(height, width, dtype=torch.bool)
        for sums in self.places.values():
            positions = max(number for number in sums if number <= self.config.blend_max_positions)
            small = sums[positions].view(int(positions**0.5), -1)
            widened = torch.stack(
                [
                    small[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max()
                    for y in range(small.shape[0])
                    for x in range(small.shape[1])
                ]
            ).view(small.shape)
            large = widened.repeat_interleave(height // small.shape[0], 0).repeat_interleave(width // small.shape[1], 1)
            found |= large > self.config.blend_threshold * large.max()
        return found

    def differs(self, original: Tensor, edited: Tensor) -> Tensor:
        """Places next to one around which the sides differ on average."""
        difference = (edited - original).abs().mean(0).double().numpy()
        smooth, share = (
            ndimage.uniform_filter(of, 3, mode="constant") for of in (difference, np.ones_like(difference))
        )
        far = smooth / share > self.config.blend_threshold * (smooth / share).max()
        return torch.from_numpy(ndimage.binary_dilation(far, np.ones((3, 3))))

    def conditions(self, prompts: list[str]) -> dict[str, Any]:
        pipeline = self.pipeline
        is_xl = isinstance(pipeline, StableDiffusionXLPipeline)
        guided = self.is_guided
        if not is_xl:
            texts = [*([""] * 2 if guided else []), *prompts]
            ids = pipeline.tokenizer(
                texts, padding="max_length", max_length=pipeline.tokenizer.model_max_length, return_tensors="pt"
            ).input_ids
            return {"encoder_hidden_states": pipeline.text_encoder(ids.to(pipeline.device))[0]}
        found = pipeline.encode_prompt(prompts, do_classifier_free_guidance=guided)
        states, no_states, pooled, no_pooled = found
        if guided:
            states, pooled = torch.cat([no_states, states]), torch.cat([no_pooled, pooled])
        pixels = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        sizes = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]], device=states.device).repeat(len(states), 1)
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}

    @property
    def network(self) -> Any:
        """The denoiser."""
        return self.pipeline.unet

    def predict(self, rows: Tensor, timestep: Tensor, conditions: dict[str, Any]) -> Tensor:
        """Calls the denoiser."""
        prediction: Tensor = self.network(rows, timestep, **conditions).sample
        return prediction

    def sample(self) -> tuple[Tensor, Tensor]:
        """Both sides' latents."""
        pipeline, network, spec, triplet = self.pipeline, self.network, self.spec, self.candidate.triplet
        scheduler = DiscreteNoise.new_scheduler(pipeline.scheduler, self.config.scheduler)
        scheduler.set_timesteps(self.config.num_inference_steps)
        self.num_steps = len(scheduler.timesteps)
        chance = [torch.Generator().manual_seed(spec.seed) for _ in range(2)]
        size = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
        noise = torch.stack([torch.randn(size, generator=each) for each in chance]).to(pipeline.device)
        latents = noise * scheduler.init_noise_sigma
        options = {"generator": chance} if "generator" in inspect.signature(scheduler.step).parameters else {}
        before = dict(network.attn_processors)
        network.set_attn_processor(self)
        try:
            for self.step, timestep in enumerate(scheduler.timesteps):
                self.together = self.within(spec.shared_steps)
                edited = triplet.original_prompt if self.together else triplet.edited_prompt
                conditions = self.conditions([triplet.original_prompt, edited])
                rows = scheduler.scale_model_input(latents, timestep)
                rows = rows.repeat(len(conditions["encoder_hidden_states"]) // 2, 1, 1, 1).to(network.dtype)
                predicted = self.predict(rows, timestep, conditions).float()
                if self.is_guided:
                    without, predicted = predicted.chunk(2)
                    predicted = without + max(1.0, spec.guidance_scale) * (predicted - without)
                latents = scheduler.step(predicted, timestep, latents, **options).prev_sample
                is_late = spec.local_blend > (self.num_steps - 1 - self.step) / max(1, self.num_steps - 1)
                if is_late and not self.together:
                    by_difference = self.config.blend_by_difference
                    places = self.differs(*latents) if by_difference else self.may_differ(*size[1:])
                    latents[1] = torch.where(places, latents[1], latents[0])
        finally:
            network.set_attn_processor(before)
        return latents[0], latents[1]
