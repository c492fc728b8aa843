"""Prompt-to-prompt on FLUX.1 written out: one pair at a time, every map of text and image made with a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from ip2p.config import RenderingConfig
from ip2p.p2p.alignment import map_tokens
from ip2p.records import Candidate
from tests.explicit_attention import ExplicitPair


class JointMaps:
    """A processor that makes every map with a softmax, after `share` has changed queries and keys of [text | image]."""

    num_texts = 0

    def share(self, states: Tensor) -> Tensor:
        """Takes and gives (rows, heads, N, D) queries or keys."""
        return states

    def look(self, attn: Any, maps: Tensor) -> None:
        """Sees the (rows, heads, N, N) maps of a layer."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        def project(states: Tensor, layer: Any, norm: Any = None) -> Tensor:
            heads: Tensor = layer(states).reshape(*states.shape[:2], attn.heads, -1).permute(0, 2, 1, 3)
            return heads if norm is None else torch.as_tensor(norm(heads))

        query = project(hidden_states, attn.to_q, attn.norm_q)
        key, value = project(hidden_states, attn.to_k, attn.norm_k), project(hidden_states, attn.to_v)
        if encoder_hidden_states is not None:
            texts = encoder_hidden_states
            query = torch.cat([project(texts, attn.add_q_proj, attn.norm_added_q), query], 2)
            key = torch.cat([project(texts, attn.add_k_proj, attn.norm_added_k), key], 2)
            value = torch.cat([project(texts, attn.add_v_proj), value], 2)
        assert image_rotary_emb is not None
        query, key = (turned(self.share(states), *image_rotary_emb) for states in (query, key))
        maps = torch.softmax((query @ key.transpose(-1, -2)).float() / query.shape[-1] ** 0.5, dim=-1)
        self.look(attn, maps)
        out = (maps.to(value.dtype) @ value).permute(0, 2, 1, 3).reshape(len(value), value.shape[2], -1)
        if encoder_hidden_states is None:
            return out
        return attn.to_out[0](out[:, self.num_texts :]), attn.to_add_out(out[:, : self.num_texts])


def turned(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns pairs of neighbouring features, as complex numbers."""
    numbers = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)).contiguous())  # type: ignore[no-untyped-call]
    angles = torch.complex(cosine[:, ::2].float(), sine[:, ::2].float())
    return torch.view_as_real(numbers * angles).flatten(-2).to(states.dtype)


class FluxPair(JointMaps, ExplicitPair):  # type: ignore[misc]
    """The rows of a step are [original, edited], after those of the half without text where there is guidance."""

    def __init__(self, pipeline: Any, candidate: Candidate, config: RenderingConfig, watched: Sequence[Any]) -> None:
        self.is_distilled = bool(pipeline.transformer.config.guidance_embeds)
        self.is_guided = candidate.spec.guidance_scale > 1 and not self.is_distilled
        self.pipeline, self.candidate, self.config, self.spec = pipeline, candidate, config, candidate.spec
        self.watched, self.num_texts = watched, config.max_sequence_length or 512
        triplet = candidate.triplet
        captions = triplet.original_prompt, triplet.edited_prompt
        self.words = map_tokens(pipeline.tokenizer_2, *captions, config.cross_alignment, self.num_texts)
        self.step, self.num_steps, self.together = 0, config.num_inference_steps, False
        self.places = {"gone": {}, "new": {}}

    def share(self, states: Tensor) -> Tensor:
        """Gives the edited rows the image queries or keys of their originals."""
        num_images, cap = states.shape[2] - self.num_texts, self.config.p2p_max_positions
        if not self.together and self.within(self.spec.p2p) and (cap is None or num_images <= cap):
            states = states.clone()
            states[1::2, :, self.num_texts :] = states[0::2, :, self.num_texts :]
        return states

    def look(self, attn: Any, maps: Tensor) -> None:
        if self.together or attn not in self.watched:
            return
        for row, name in ((-2, "gone"), (-1, "new")):
            seen = maps[row, :, self.num_texts :, : self.num_texts].mean(0) @ getattr(self.words, name)
            self.places[name][len(seen)] = self.places[name].get(len(seen), 0) + seen

    channels = 4

    def size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        factor = self.pipeline.vae_scale_factor
        return int(self.config.height or 0) // factor, int(self.config.width or 0) // factor

    def shift(self, num_latents: int) -> float:
        """How far the steps are shifted."""
        return float(calculate_shift(num_latents // 4))

    def processors(self) -> Any:
        """What makes the maps of the layers."""
        return self

    def velocity(self, latents: Tensor, timestep: Tensor, prompts: list[str]) -> Tensor:
        pipeline = self.pipeline
        texts = [*([""] * 2 if self.is_guided else []), *prompts]
        rows = torch.cat([latents] * (len(texts) // 2)).to(pipeline.transformer.dtype)
        num, channels, height, width = rows.shape
        hidden, pooled, text_ids = pipeline.encode_prompt(texts, max_sequence_length=self.num_texts)
        scale = torch.full((num,), max(1.0, self.spec.guidance_scale)) if self.is_distilled else None
        predicted: Tensor = pipeline.transformer(
            hidden_states=pipeline._pack_latents(rows, num, channels, height, width),
            timestep=timestep.expand(num) / 1000,
            guidance=scale,
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            txt_ids=text_ids,
            img_ids=pipeline._prepare_latent_image_ids(num, height // 2, width // 2, "cpu", torch.float32),
        ).sample.float()
        pixels = (side * pipeline.vae_scale_factor for side in (height, width))
        predicted = pipeline._unpack_latents(predicted, *pixels, pipeline.vae_scale_factor)
        if self.is_guided:
            without, predicted = predicted.chunk(2)
            predicted = without + self.spec.guidance_scale * (predicted - without)
        return predicted

    def sample(self) -> tuple[Tensor, Tensor]:
        """Both sides' latents."""
        pipeline, spec, triplet = self.pipeline, self.spec, self.candidate.triplet
        size = self.size()
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        sigmas = np.linspace(1, 1 / self.num_steps, self.num_steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=self.shift(size[0] * size[1]))
        noise = torch.randn((self.channels, *size), generator=torch.Generator().manual_seed(spec.seed))
        latents = torch.stack([noise, noise])
        before = dict(pipeline.transformer.attn_processors)
        pipeline.transformer.set_attn_processor(self.processors())
        try:
            for self.step, timestep in enumerate(scheduler.timesteps):
                self.together = self.within(spec.shared_steps)
                edited = triplet.original_prompt if self.together else triplet.edited_prompt
                predicted = self.velocity(latents, timestep, [triplet.original_prompt, edited])
                latents = scheduler.step(predicted, timestep, latents).prev_sample
                is_late = spec.local_blend > (self.num_steps - 1 - self.step) / max(1, self.num_steps - 1)
                if is_late and not self.together:
                    by_difference = self.config.blend_by_difference
                    places = self.differs(*latents) if by_difference else self.may_differ(*size)
                    latents[1] = torch.where(places, latents[1], latents[0])
        finally:
            pipeline.transformer.set_attn_processor(before)
        return latents[0], latents[1]
