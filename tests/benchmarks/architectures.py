"""Writes model folders of real architectures with random weights: `python -m tests.benchmarks.architectures sd15 OUT`.

`sd15` is Stable Diffusion 1.5, `sdxl` Stable Diffusion XL, `sd3` Stable Diffusion 3.5 medium without T5, in whose place
its pipeline and the trainer put zeros. Shapes are those of the released models, so that a step costs what theirs costs;
nothing is downloaded, and pictures made with such weights are noise. The tokenizer is that of the shapes domain beneath
an embedding of CLIP's 49,408 tokens. `--depth` cuts the transformer blocks, `--width` all channels, and both make
another architecture than the one that is named: tell so with every figure. `--editor` writes an InstructPix2Pix,
`--size` sets the pixels that are rendered unless another size is asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ip2p.models.architecture import architecture_of
from ip2p.shapes.train.text import write_tokenizer

HEAD, GROUPS = 64, 32
"""Channels of an attention head in a text encoder, and groups of a normalisation, which channels are multiples of."""
CLIP_TOKENS, CLIP_LENGTH = 49_408, 77
DISCRETE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
DUAL_LAYERS, T5_WIDTH = 13, 4096
"""The first blocks of Stable Diffusion 3.5 medium, which have a second attention, and the features of its texts."""


@dataclass(frozen=True)
class Shape:
    """What is asked of an architecture; as it was released by default."""

    width: float = 1.0
    """Share of the channels."""
    depth: int | None = None
    """Transformer layers of a block, or blocks, at most."""
    size: int | None = None
    """Pixels on a side of its own pictures."""
    is_editor: bool = False
    """Whether it takes a picture beside the noise."""


WHOLE = Shape()


def channels(full: int, width: float) -> int:
    """So many channels, or the share of them that normalisation can group."""
    return max(GROUPS, round(full * width / GROUPS) * GROUPS)


def new_autoencoder(width: float, latent_channels: int = 4, **options: Any) -> AutoencoderKL:
    """The autoencoder that all three share but for its latents."""
    blocks = tuple(channels(full, width) for full in (128, 256, 512, 512))
    return AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=latent_channels,
        **options,
    )


def new_scheduler(kind: Callable[..., Any], **options: Any) -> Any:
    """A scheduler, which computes its tables as it is made: on the CPU also where models are made without values."""
    with torch.device("cpu"):
        return kind(**options)


def text_config(tokenizer: CLIPTokenizer, width: float, heads: int, layers: int, activation: str) -> CLIPTextConfig:
    """A CLIP text encoder: ViT-L/14's has 12 heads and layers, OpenCLIP's ViT-bigG/14's 20 and 32."""
    hidden = HEAD * max(1, round(heads * width))
    return CLIPTextConfig(
        vocab_size=CLIP_TOKENS,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        max_position_embeddings=CLIP_LENGTH,
        hidden_act=activation,
        projection_dim=hidden,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def two_clips(tokenizer: CLIPTokenizer, width: float) -> tuple[Any, Any]:
    """The configs of the text encoders of Stable Diffusion XL and 3."""
    return text_config(tokenizer, width, 12, 12, "quick_gelu"), text_config(tokenizer, width, 20, 32, "gelu")


def stable_diffusion_15(tokenizer: CLIPTokenizer, shape: Shape) -> Any:
    """860 million parameters in the UNet. ValueError for a depth."""
    if shape.depth is not None:
        raise ValueError(
            f"the blocks of sd15 have one transformer layer each, got a depth of {shape.depth}. Leave it out."
        )
    texts = text_config(tokenizer, shape.width, 12, 12, "quick_gelu")
    unet = UNet2DConditionModel(
        sample_size=(shape.size or 512) // 8,
        in_channels=8 if shape.is_editor else 4,
        block_out_channels=tuple(channels(full, shape.width) for full in (320, 640, 1280, 1280)),
        attention_head_dim=8,
        cross_attention_dim=texts.hidden_size,
    )
    kind = StableDiffusionInstructPix2PixPipeline if shape.is_editor else StableDiffusionPipeline
    return kind(
        vae=new_autoencoder(shape.width, sample_size=512, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(texts),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(PNDMScheduler, **DISCRETE, set_alpha_to_one=False, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(tokenizer: CLIPTokenizer, shape: Shape) -> Any:
    """2.57 billion parameters in the UNet at full depth, 10."""
    first, second = two_clips(tokenizer, shape.width)
    blocks = tuple(channels(full, shape.width) for full in (320, 640, 1280))
    unet = UNet2DConditionModel(
        sample_size=(shape.size or 1024) // 8,
        in_channels=8 if shape.is_editor else 4,
        block_out_channels=blocks,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=tuple(max(1, size // HEAD) for size in blocks),
        transformer_layers_per_block=tuple(min(layers, shape.depth or layers) for layers in (1, 2, 10)),
        use_linear_projection=True,
        cross_attention_dim=first.hidden_size + second.hidden_size,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + second.projection_dim,
    )
    kind = StableDiffusionXLInstructPix2PixPipeline if shape.is_editor else StableDiffusionXLPipeline
    return kind(
        vae=new_autoencoder(shape.width, sample_size=1024, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=new_scheduler(EulerDiscreteScheduler, **DISCRETE, timestep_spacing="leading"),
        add_watermarker=False,
    )


def stable_diffusion_3(tokenizer: CLIPTokenizer, shape: Shape) -> Any:
    """2.24 billion parameters in the transformer at full depth, 24. ValueError for an editor: there is none."""
    if shape.is_editor:
        raise ValueError("diffusers has no InstructPix2Pix of sd3, got --editor. Train one, or leave it out.")
    first, second = two_clips(tokenizer, shape.width)
    layers, heads = min(shape.depth or 24, 24), max(1, round(24 * shape.width))
    transformer = SD3Transformer2DModel(
        sample_size=(shape.size or 1024) // 8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=HEAD,
        num_attention_heads=heads,
        joint_attention_dim=channels(T5_WIDTH, shape.width),
        caption_projection_dim=heads * HEAD,
        pooled_projection_dim=first.projection_dim + second.projection_dim,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(min(layers, DUAL_LAYERS))),
        qk_norm="rms_norm",
    )
    options = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False}
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=new_scheduler(FlowMatchEulerDiscreteScheduler, shift=3.0),
        vae=new_autoencoder(shape.width, 16, sample_size=1024, **options),
        text_encoder=CLIPTextModelWithProjection(first),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


BASES: dict[str, Callable[[CLIPTokenizer, Shape], Any]] = {
    "sd15": stable_diffusion_15,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
}


@contextmanager
def built_in(dtype: torch.dtype) -> Iterator[None]:
    """Weights are made in this precision, so that a large model never lies in memory in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def write_model(name: str, folder: Path, shape: Shape = WHOLE, seed: int = 0) -> DiffusionPipeline:
    """Writes the folder, in float16, which every loader widens to what it computes in; returns the pipeline."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder / "tokenizer", CLIP_LENGTH)
    with built_in(torch.float16):
        pipeline = BASES[name](tokenizer, shape)
    pipeline.save_pretrained(folder)
    for place in folder.glob("tokenizer*"):
        write_tokenizer(place, CLIP_LENGTH)
    return pipeline


def main() -> None:
    """Writes a folder and says what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(BASES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depth", type=int, help="transformer layers of a block (sdxl) or blocks (sd3) at most")
    parser.add_argument("--width", type=float, default=1.0, help="share of the channels, in tenths")
    parser.add_argument("--size", type=int, help="pixels on a side of its own pictures; 512 for sd15, else 1024")
    parser.add_argument("--editor", action="store_true", help="an InstructPix2Pix, which also takes a picture")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape = Shape(options.width, options.depth, options.size, options.editor)
    pipeline = write_model(options.name, options.folder, shape, options.seed)
    num = architecture_of(pipeline).denoiser(pipeline).num_parameters()
    size = sum(path.stat().st_size for path in options.folder.rglob("*.safetensors"))
    parameters = f"{num / 1e6:.1f} million parameters in the denoiser"
    print(f"{options.folder}: {options.name}, {parameters}, {size / 2**30:.2f} GiB on disk")


if __name__ == "__main__":
    main()
