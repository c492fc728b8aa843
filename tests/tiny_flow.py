"""Builds real flow transformers with random weights, small enough for tests, beside the shapes domain's autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from ip2p.shapes.train.text import domain_words, write_tokenizer
from tests.tiny import tiny_vae

T5_WIDTH = 48


def write_t5_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Writes a tokenizer like T5's: pieces marked at the start of words, an end but no start."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in domain_words(400)), *"abcdefghijklmnopqrstuvwxyz"]
    learned = Tokenizer(models.Unigram([(piece, -float(len(pieces)) / len(piece)) for piece in pieces], unk_id=2))
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=learned, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_t5(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Returns a T5 encoder of two layers."""
    encoder: Any = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=T5_WIDTH, d_kv=12, d_ff=64, num_layers=2, num_heads=2)
    )
    return encoder.eval()


def tiny_clip_text(tokenizer: Any, width: int, projection: int) -> Any:
    """Returns a CLIP text encoder of two layers."""
    encoder: Any = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=projection,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return encoder.eval()


def flow_vae() -> Any:
    """Returns the tiny autoencoder with a shift, as those of flow models have."""
    vae = tiny_vae()
    vae.register_to_config(shift_factor=0.06, use_quant_conv=True)
    return vae


def write_tiny_sd3(folder: Path, *, has_t5: bool = True, is_3_5: bool = True) -> Path:
    """Writes a folder that `StableDiffusion3Pipeline.from_pretrained` loads, of version 3.5 (second attention) or 3."""
    torch.manual_seed(5)
    tokenizer = write_tokenizer(_created(folder / "tokenizer"))
    t5_tokenizer = write_t5_tokenizer(folder / "tokenizer_3") if has_t5 else None
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=24,
        pooled_projection_dim=20 + 28,
        pos_embed_max_size=12,
        dual_attention_layers=(0, 1) if is_3_5 else (),
        qk_norm="rms_norm" if is_3_5 else None,
    )
    stir(transformer)
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=tiny_clip_text(tokenizer, 16, 20),
        tokenizer=tokenizer,
        text_encoder_2=tiny_clip_text(tokenizer, 24, 28),
        tokenizer_2=tokenizer,
        text_encoder_3=tiny_t5(t5_tokenizer) if t5_tokenizer is not None else None,
        tokenizer_3=t5_tokenizer,
    ).save_pretrained(folder, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / name)
    return folder


def write_tiny_flux(folder: Path, *, guidance_embeds: bool = True) -> Path:
    """Writes a folder that `FluxPipeline.from_pretrained` loads, like dev, or schnell without guidance."""
    return _write_flux(folder, FluxPipeline, guidance_embeds=guidance_embeds)


def write_tiny_kontext(folder: Path) -> Path:
    """Writes a folder that `FluxKontextPipeline.from_pretrained` loads."""
    return _write_flux(folder, FluxKontextPipeline, guidance_embeds=True)


def _write_flux(folder: Path, kind: type[DiffusionPipeline], *, guidance_embeds: bool) -> Path:
    torch.manual_seed(7)
    tokenizer = write_tokenizer(_created(folder / "tokenizer"))
    t5_tokenizer = write_t5_tokenizer(folder / "tokenizer_2")
    clip, vae = tiny_clip_text(tokenizer, 16, 16), flow_vae()
    stir(vae)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 4),
    )
    stir(transformer)
    kind(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
        vae=vae,
        text_encoder=CLIPTextModel(clip.config).eval(),  # type: ignore[no-untyped-call]
        tokenizer=tokenizer,
        text_encoder_2=tiny_t5(t5_tokenizer),
        tokenizer_2=t5_tokenizer,
    ).save_pretrained(folder, safe_serialization=True)
    write_tokenizer(folder / "tokenizer")
    return folder


@torch.no_grad()
def stir(network: torch.nn.Module) -> None:
    """Gives a fresh network large enough weights for attention and text to matter."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and "pos_embed.pos" not in name:
            parameter.normal_(0, (0.6 if "proj_out" in name else 1.2) / parameter[0].numel() ** 0.5)


def _created(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_tiny_pixart(folder: Path) -> Path:
    """Writes a folder that `PixArtSigmaPipeline.from_pretrained` loads; its transformer predicts variances too."""
    torch.manual_seed(9)
    tokenizer = write_t5_tokenizer(_created(folder / "tokenizer"))
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=T5_WIDTH,
        norm_num_groups=1,
        use_additional_conditions=False,
    )
    stir(transformer)
    PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(tokenizer),
        vae=tiny_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}{{ '\\n' }}{{ message['content'] }}<|im_end|>"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>{{ '\\n\\n' }}</think>{{ '\\n\\n' }}{% endif %}"
    "{% endif %}"
)
"""A template with Qwen3's marks."""


def qwen_tokenizer() -> Any:
    """Returns a tokenizer like Qwen3's: bytes merged to words that keep the space before them, and a chat template."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    words = [*domain_words(400), "user", "assistant"]
    learned.train_from_iterator([text for word in words for text in (word, f"a {word}")] * 3, trainer)
    model = json.loads(learned.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, model_max_length=1024)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<think>", "</think>"], special_tokens=True)
    tokenizer.chat_template = CHAT
    return tokenizer


def tiny_qwen(tokenizer: Any) -> Any:
    """Returns a narrow Qwen3 with one layer above those whose states are read."""
    encoder: Any = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=28,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=1024,
        )
    )
    stir(encoder)
    return encoder.eval()


def flux2_vae() -> Any:
    """Returns an autoencoder of 64 x 64 pixels with 16 x 16 x 4 latents, and statistics as if it were trained."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
    )
    stir(vae)
    chance = torch.Generator().manual_seed(3)
    vae.bn.running_mean.normal_(0, 0.5, generator=chance)
    vae.bn.running_var.uniform_(0.5, 2.0, generator=chance)
    return vae.eval()


def write_tiny_klein(folder: Path, *, is_distilled: bool = False) -> Path:
    """Writes a folder that `Flux2KleinPipeline.from_pretrained` loads."""
    torch.manual_seed(11)
    tokenizer = qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    stir(transformer)
    Flux2KleinPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=tiny_qwen(tokenizer),
        tokenizer=tokenizer,
        is_distilled=is_distilled,
    ).save_pretrained(folder, safe_serialization=True)
    return folder
