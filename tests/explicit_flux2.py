"""Prompt-to-prompt on FLUX.2 klein written out: one pair at a time, every map made with a softmax, in both blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from ip2p.config import RenderingConfig
from ip2p.p2p.alignment import map_tokens
from ip2p.records import Candidate
from tests.explicit_flux import FluxPair, JointMaps, turned


class ParallelMaps:
    """The processor of a single block, whose one layer projects for attention and feed-forward part."""

    def __init__(self, maps: JointMaps) -> None:
        self.maps = maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        weight, width = attn.to_qkv_mlp_proj.weight, attn.inner_dim
        parts = [F.linear(hidden_states, weight[number * width : (number + 1) * width]) for number in range(3)]
        query, key, value = (part.reshape(*part.shape[:2], attn.heads, -1).permute(0, 2, 1, 3) for part in parts)
        assert image_rotary_emb is not None
        query = turned(self.maps.share(attn.norm_q(query)), *image_rotary_emb)
        key = turned(self.maps.share(attn.norm_k(key)), *image_rotary_emb)
        maps = torch.softmax((query @ key.transpose(-1, -2)).float() / query.shape[-1] ** 0.5, dim=-1)
        self.maps.look(attn, maps)
        out = (maps.to(value.dtype) @ value).permute(0, 2, 1, 3).reshape(hidden_states.shape)
        gate, linear = F.linear(hidden_states, weight[3 * width :]).chunk(2, dim=-1)
        half: Tensor = attn.to_out(torch.cat([out, F.silu(gate) * linear], dim=-1))
        return half


class KleinPair(FluxPair):
    """The rows of a step are [original, edited], after those of the half without text where there is guidance."""

    channels = 16

    def __init__(self, pipeline: Any, candidate: Candidate, config: RenderingConfig, watched: Sequence[Any]) -> None:
        self.is_distilled, self.is_guided = False, candidate.spec.guidance_scale > 1
        self.pipeline, self.candidate, self.config, self.spec = pipeline, candidate, config, candidate.spec
        self.watched, self.num_texts = watched, config.max_sequence_length or 512
        triplet = candidate.triplet
        captions = triplet.original_prompt, triplet.edited_prompt
        before = self.position_of_text()
        words = map_tokens(pipeline.tokenizer, *captions, config.cross_alignment, self.num_texts - before)
        self.words = replace(words, gone=F.pad(words.gone, (before, 0)), new=F.pad(words.new, (before, 0)))
        self.step, self.num_steps, self.together = 0, config.num_inference_steps, False
        self.places = {"gone": {}, "new": {}}

    def position_of_text(self) -> int:
        """Which of the tokens of a chat is the first of its message."""
        text = self.pipeline.tokenizer.apply_chat_template([{"role": "user", "content": "small"}], tokenize=False)
        (small,) = self.pipeline.tokenizer("small").input_ids
        return int(self.pipeline.tokenizer(text).input_ids.index(small))

    def size(self) -> tuple[int, int]:
        height, width = super().size()
        return height // 2, width // 2

    def shift(self, num_latents: int) -> float:
        return float(compute_empirical_mu(num_latents, self.num_steps))

    def processors(self) -> Any:
        names = self.pipeline.transformer.attn_processors
        return {name: ParallelMaps(self) if name.startswith("single_") else self for name in names}

    def velocity(self, latents: Tensor, timestep: Tensor, prompts: list[str]) -> Tensor:
        pipeline = self.pipeline
        texts = [*([""] * 2 if self.is_guided else []), *prompts]
        rows = torch.cat([latents] * (len(texts) // 2)).to(pipeline.transformer.dtype)
        hidden, text_ids = pipeline.encode_prompt(texts, max_sequence_length=self.num_texts)
        ids = pipeline._prepare_latent_ids(rows)
        predicted = pipeline.transformer(
            hidden_states=pipeline._pack_latents(rows),
            timestep=timestep.expand(len(rows)) / 1000,
            encoder_hidden_states=hidden,
            txt_ids=text_ids,
            img_ids=ids,
        ).sample.float()
        velocity: Tensor = pipeline._unpack_latents_with_ids(predicted, ids)
        if self.is_guided:
            without, velocity = velocity.chunk(2)
            velocity = without + self.spec.guidance_scale * (velocity - without)
        return velocity
