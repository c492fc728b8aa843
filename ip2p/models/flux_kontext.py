"""FLUX.1 Kontext: the picture to edit lies behind the noised one in the sequence, so that no layer is widened."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    ModelMixin,
)
from PIL import Image
from torch import Tensor

from ip2p.models.architecture import Architecture
from ip2p.models.flux import Flux, call, packed, places_of, unpacked
from ip2p.models.texts import Texts


class FluxKontext(Flux):
    """FLUX.1 Kontext, an editor as it stands.

    No picture is zeros in the picture's places. The base has never seen that, so image guidance takes a training with
    conditioning dropout.
    """

    title = "FLUX.1 Kontext"
    text_to_image = FluxKontextPipeline
    editor = FluxKontextPipeline
    relatives = (FluxKontextInpaintPipeline,)
    widened = None
    example = 'image=image, prompt="make it snowy", guidance_scale=2.5'

    def predict(
        self,
        denoiser: ModelMixin,
        latents: Tensor,
        timesteps: Tensor,
        texts: Texts,
        *,
        condition: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        height, width = latents.shape[2:]
        inputs, places = packed(latents), places_of(height, width, latents.device)
        num_positions = inputs.shape[1]
        if condition is not None:
            inputs = torch.cat([inputs, packed(condition)], dim=1)
            rows, columns = condition.shape[2:]
            places = torch.cat([places, places_of(rows, columns, latents.device, picture=1)])
        prediction = call(denoiser, inputs, places, timesteps, texts, guidance)
        return unpacked(prediction[:, :num_positions], height, width)

    def call_options(self, picture: Image.Image, instruction: str) -> dict[str, Any]:
        """Keeps the picture's size, which the pipeline would change to one of its own."""
        width, height = picture.size
        size = {"width": width, "height": height, "max_area": width * height, "_auto_resize": False}
        return {"prompt": instruction, "image": picture} | size


ARCHITECTURE: Architecture = FluxKontext()
