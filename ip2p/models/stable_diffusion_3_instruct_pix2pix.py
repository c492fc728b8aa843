"""The pipeline of a Stable Diffusion 3 or 3.5 that edits pictures as instructions say, with two guidances.

`save_pretrained` writes this file beside the weights, so that diffusers loads them without ip2p:
`DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_output import StableDiffusion3PipelineOutput
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerBase, T5EncoderModel

FILE = "pipeline.py"
"""The name that diffusers looks for in a folder that is given as `custom_pipeline`."""


class StableDiffusion3InstructPix2PixPipeline(StableDiffusion3Pipeline):  # type: ignore[misc]
    """Edits pictures with a transformer that takes the picture's latents as more channels.

    The picture's latents are the mode of the autoencoder's posterior, normalised as the noised latents are (shift and
    scale); no picture is zeros, no text is the empty text.
    """

    _optional_components = ["text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"]

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer_2: CLIPTokenizer,
        text_encoder_3: T5EncoderModel | None = None,
        tokenizer_3: PreTrainedTokenizerBase | None = None,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        max_sequence_length: int = 256,
    ) -> None:
        """`max_sequence_length` are the tokens of the third text encoder that the model was trained with."""
        super().__init__(
            transformer,
            scheduler,
            vae,
            text_encoder,
            tokenizer,
            text_encoder_2,
            tokenizer_2,
            text_encoder_3,
            tokenizer_3,
            image_encoder,
            feature_extractor,
        )
        self.register_to_config(max_sequence_length=max_sequence_length)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Saves the parts, and this file beside them."""
        super().save_pretrained(save_directory, *args, **options)
        shutil.copyfile(Path(__file__), Path(save_directory) / FILE)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        guidance_scale: float = 7.0,
        image_guidance_scale: float = 1.5,
        negative_prompt: str | Sequence[str] = "",
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        max_sequence_length: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> Any:
        """Edits pictures: one instruction for all, or one for each. Sizes are the picture's, cut to whole patches.

        The two scales are those of InstructPix2Pix (Brooks et al., 2023, equation 3); 1 leaves a guidance out.
        """
        if image is None:
            raise ValueError("image is not set. Give the picture to edit.")
        device = self._execution_device
        pixels = self._pixels(image, height, width)
        prompts = [prompt] * len(pixels) if isinstance(prompt, str) else list(prompt)
        if len(pixels) == 1 and len(prompts) > 1:
            pixels = pixels.expand(len(prompts), -1, -1, -1)
        if len(prompts) != len(pixels):
            raise ValueError(f"got {len(prompts)} instructions for {len(pixels)} images. Give as many of each, or one.")
        texts = self._texts(prompts, negative_prompt, self.config.max_sequence_length, max_sequence_length)
        picture = self._latents_of(pixels)
        shape = (len(prompts), *picture.shape[1:])
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=texts[0].dtype)
        self._set_steps(num_inference_steps, shape)
        self._num_timesteps = len(self.scheduler.timesteps)
        conditions = torch.cat([picture, picture, torch.zeros_like(picture)])
        with self.progress_bar(total=self._num_timesteps) as bar:
            for number, timestep in enumerate(self.scheduler.timesteps):
                rows = torch.cat([torch.cat([latents] * 3), conditions], dim=1)
                predicted = self.transformer(
                    hidden_states=rows.to(texts[0].dtype),
                    timestep=timestep.expand(len(rows)),
                    encoder_hidden_states=texts[0],
                    pooled_projections=texts[1],
                    return_dict=False,
                )[0]
                full, of_picture, of_nothing = predicted.chunk(3)
                guided = of_nothing + image_guidance_scale * (of_picture - of_nothing)
                guided = guided + guidance_scale * (full - of_picture)
                latents = self.scheduler.step(guided, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, number, timestep, {"latents": latents}) or {}
                    latents = changed.pop("latents", latents)
                bar.update()
        images = latents if output_type == "latent" else self._images_of(latents, output_type)
        self.maybe_free_model_hooks()
        return StableDiffusion3PipelineOutput(images=images) if return_dict else (images,)

    def _pixels(self, image: Any, height: int | None, width: int | None) -> Tensor:
        first = image[0] if isinstance(image, list | tuple) else image
        own_height, own_width = self.image_processor.get_default_height_width(first, height, width)
        step = self.vae_scale_factor * self.patch_size
        size = own_height // step * step, own_width // step * step
        if not all(size):
            raise ValueError(
                f"the picture has {own_width} x {own_height} pixels, expected {step} or more on each side."
            )
        pixels: Tensor = self.image_processor.preprocess(image, *size)
        return pixels.to(self._execution_device, self.vae.dtype)

    def _latents_of(self, pixels: Tensor) -> Tensor:
        latents: Tensor = self.vae.encode(pixels).latent_dist.mode()
        shift = self.vae.config.shift_factor or 0.0
        scaled: Tensor = (latents - shift) * self.vae.config.scaling_factor
        return scaled.to(self.transformer.dtype)

    def _images_of(self, latents: Tensor, output_type: str) -> Any:
        unscaled = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        pixels = self.vae.decode(unscaled.to(self.vae.dtype), return_dict=False)[0]
        return self.image_processor.postprocess(pixels, output_type=output_type)

    def _texts(
        self, prompts: list[str], negative: str | Sequence[str], trained: int, asked: int | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the states and pooled states of the instructions, then twice those of the negative ones."""
        length = trained if asked is None else asked
        none = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
        options = {"prompt_2": None, "prompt_3": None, "max_sequence_length": length}
        full, absent = (
            self.encode_prompt(texts, **options, do_classifier_free_guidance=False)[::2] for texts in (prompts, none)
        )
        hidden, pooled = (
            torch.cat([with_text, no_text, no_text]) for with_text, no_text in zip(full, absent, strict=True)
        )
        return hidden.to(self.transformer.dtype), pooled.to(self.transformer.dtype)

    def _set_steps(self, num_steps: int, shape: Sequence[int]) -> None:
        config, mu = self.scheduler.config, None
        if config.get("use_dynamic_shifting"):
            positions = (shape[2] // self.patch_size) * (shape[3] // self.patch_size)
            mu = calculate_shift(
                positions, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
            )
        self.scheduler.set_timesteps(num_steps, device=self._execution_device, mu=mu)
