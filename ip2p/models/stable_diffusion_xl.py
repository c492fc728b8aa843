"""Stable Diffusion XL: a UNet that reads two CLIP text encoders, a pooled state and the picture's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    ModelMixin,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ip2p.config import TrainingConfig
from ip2p.models.architecture import Architecture
from ip2p.models.components import freeze, load_model, load_part, model_index
from ip2p.models.latents import widen_if_it_overflows
from ip2p.models.stable_diffusion import ClipTexts, StableDiffusion
from ip2p.models.texts import Texts, tokenize


@dataclass(frozen=True, slots=True)
class TwoClips(ClipTexts):
    """Two CLIP text encoders, read at their last layer but one; the second gives the pooled state too."""

    zeros_for_none: bool
    """Whether no text is zeros rather than the encoders' states of the empty text."""

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Texts:
        outputs = []
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            ids = tokenize(tokenizer, texts).input_ids
            outputs.append(encoder(ids.to(encoder.device), output_hidden_states=True))
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        encoded = Texts(hidden, outputs[-1].text_embeds)
        is_empty = [text == "" for text in texts]
        if not (self.zeros_for_none and any(is_empty)):
            return encoded
        return encoded.replaced(torch.tensor(is_empty, device=hidden.device), encoded.map(torch.zeros_like))


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL."""

    title = "Stable Diffusion XL"
    text_to_image = StableDiffusionXLPipeline
    editor = StableDiffusionXLInstructPix2PixPipeline
    relatives = (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline)
    added_embeddings = (None, "text_time")

    def _added(self, texts: Texts, sizes: Tensor | None) -> dict[str, Tensor] | None:
        if texts.pooled is None or sizes is None:
            return None
        return {"text_embeds": texts.pooled, "time_ids": sizes.expand(len(texts.pooled), -1)}

    def text_encoders(self, pipeline: DiffusionPipeline, max_sequence_length: int | None = None) -> TwoClips:
        tokenizers = pipeline.tokenizer, pipeline.tokenizer_2
        encoders = pipeline.text_encoder, pipeline.text_encoder_2
        return TwoClips(tokenizers, encoders, bool(pipeline.config.force_zeros_for_empty_prompt))

    def load_text_encoders(self, config: TrainingConfig, device: torch.device) -> TwoClips:
        kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        encoders = [load_model(kind, config, part, dtype=torch.float32) for part, kind in kinds.items()]
        tokenizers = [load_part(CLIPTokenizer, config, part) for part in ("tokenizer", "tokenizer_2")]
        zeros_for_none = bool(model_index(config).get("force_zeros_for_empty_prompt", True))
        return TwoClips(tokenizers, [freeze(encoder, device) for encoder in encoders], zeros_for_none)

    def build_editor(self, denoiser: ModelMixin, config: TrainingConfig, device: torch.device) -> DiffusionPipeline:
        texts = self.load_text_encoders(config, device)
        pipeline = self.editor(
            **self.parts_of_editor(denoiser, texts, config, device),
            force_zeros_for_empty_prompt=texts.zeros_for_none,
            add_watermarker=False,
            is_cosxl_edit=config.scale_condition_latents,
        )
        pipeline.register_to_config(is_cosxl_edit=config.scale_condition_latents)  # else it is lost when saved
        return pipeline

    def load_editor(self, source: str, **options: Any) -> DiffusionPipeline:
        pipeline = self.editor.from_pretrained(source, **options)
        widen_if_it_overflows(pipeline.vae)  # else pictures come out black
        return pipeline

    def condition_is_scaled(self, pipeline: DiffusionPipeline) -> bool:
        return bool(getattr(pipeline, "is_cosxl_edit", False))

    def call_options(self, picture: Image.Image, instruction: str) -> dict[str, Any]:
        return super().call_options(picture, instruction) | {"width": picture.width, "height": picture.height}


ARCHITECTURE: Architecture = StableDiffusionXL()
