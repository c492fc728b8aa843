"""Prompt-to-prompt on Stable Diffusion 3 written out: one pair at a time, every joint map made with a softmax."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ip2p.config import RenderingConfig
from ip2p.p2p.alignment import map_tokens
from ip2p.records import Candidate


class ExplicitJointPair:
    """Rows are [original, edited], after those of the half without text where there is guidance."""

    def __init__(self, pipeline: Any, candidate: Candidate, config: RenderingConfig) -> None:
        self.pipeline, self.config, self.spec, triplet = pipeline, config, candidate.spec, candidate.triplet
        self.prompts = triplet.original_prompt, triplet.edited_prompt
        self.is_guided = self.spec.guidance_scale > 1
        reader = pipeline.tokenizer if pipeline.tokenizer_3 is None else pipeline.tokenizer_3
        self.first_word = 0 if pipeline.tokenizer_3 is None else pipeline.tokenizer.model_max_length
        length = pipeline.tokenizer.model_max_length if pipeline.tokenizer_3 is None else 256
        self.words = map_tokens(reader, *self.prompts, "refine", length)
        self.step, self.num_steps, self.together = 0, config.num_inference_steps, False
        self.seen: dict[str, Tensor | int] = {"gone": 0, "new": 0}
        self.watched: set[Any] = set()

    def within(self, fraction: float) -> bool:
        return fraction > self.step / max(1, self.num_steps - 1)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **options: Any
    ) -> Any:
        rows, num_images, _ = hidden_states.shape

        def heads(states: Tensor, normalise: Any = None) -> Tensor:
            split = states.reshape(rows, states.shape[1], attn.heads, -1).permute(0, 2, 1, 3)
            return split if normalise is None else normalise(split)

        query, key = heads(attn.to_q(hidden_states), attn.norm_q), heads(attn.to_k(hidden_states), attn.norm_k)
        if self.within(self.spec.p2p) and not self.together:
            for side in (query, key):
                side[1::2] = side[0::2]
        value = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            texts = encoder_hidden_states
            query = torch.cat([query, heads(attn.add_q_proj(texts), attn.norm_added_q)], 2)
            key = torch.cat([key, heads(attn.add_k_proj(texts), attn.norm_added_k)], 2)
            value = torch.cat([value, heads(attn.add_v_proj(texts))], 2)
        maps = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        if attn in self.watched and not self.together:
            for row, name in ((-2, "gone"), (-1, "new")):
                weights = getattr(self.words, name)
                start = num_images + self.first_word
                to_words = maps[row, :, :num_images, start : start + len(weights)].float()
                self.seen[name] = self.seen[name] + (to_words * weights).sum(-1).mean(0)
        out = (maps @ value).permute(0, 2, 1, 3).reshape(rows, maps.shape[2], -1)
        image = attn.to_out[0](out[:, :num_images])
        if encoder_hidden_states is None:
            return image
        return image, out[:, num_images:] if attn.context_pre_only else attn.to_add_out(out[:, num_images:])

    def may_differ(self, side: int) -> Tensor:
        places = torch.zeros(2 * side, 2 * side, dtype=torch.bool)
        for sums in self.seen.values():
            assert isinstance(sums, Tensor)
            small = torch.nn.functional.max_pool2d(sums.view(1, side, side), 3, 1, 1)[0]
            large = small.repeat_interleave(2, 0).repeat_interleave(2, 1)
            places |= (large > self.config.blend_threshold * large.max()) & (large.max() > 0)
        return places

    def sample(self) -> tuple[Tensor, Tensor]:
        """Both sides' latents."""
        pipeline, network, spec = self.pipeline, self.pipeline.transformer, self.spec
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(self.num_steps)
        side = network.config.sample_size
        noise = torch.randn((4, side, side), generator=torch.Generator().manual_seed(spec.seed))
        latents = torch.stack([noise, noise])
        self.watched = {network.transformer_blocks[0].attn}
        before = dict(network.attn_processors)
        network.set_attn_processor(self)
        try:
            for self.step, timestep in enumerate(scheduler.timesteps):
                self.together = self.within(spec.shared_steps)
                prompts = [self.prompts[0], self.prompts[0] if self.together else self.prompts[1]]
                states, no_states, pooled, no_pooled = pipeline.encode_prompt(prompts, None, None)
                if self.is_guided:
                    states, pooled = torch.cat([no_states, states]), torch.cat([no_pooled, pooled])
                rows = latents.repeat(len(states) // 2, 1, 1, 1).to(network.dtype)
                predicted = network(rows, states, pooled, timestep.expand(len(rows)), return_dict=False)[0].float()
                if self.is_guided:
                    without, predicted = predicted.chunk(2)
                    predicted = without + spec.guidance_scale * (predicted - without)
                latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
                is_late = spec.local_blend > (self.num_steps - 1 - self.step) / max(1, self.num_steps - 1)
                if is_late and not self.together:
                    latents[1] = torch.where(self.may_differ(side // 2), latents[1], latents[0])
        finally:
            network.set_attn_processor(before)
        return latents[0], latents[1]
