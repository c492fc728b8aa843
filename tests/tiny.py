"""Builds real model classes with random weights, small enough for tests, in the shapes domain's architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ip2p.config import (
    DatasetConfig,
    EvaluationConfig,
    FilteringConfig,
    PipelineConfig,
    PromptsConfig,
    RenderingConfig,
    ScoringConfig,
    Thresholds,
    TrainingConfig,
)
from ip2p.models.stable_diffusion import widen_conv_in
from ip2p.records import RenderSpec
from ip2p.shapes.train.clip import TEXT_WIDTH, new_clip, text_encoder_of, write_clip
from ip2p.shapes.train.text import write_tokenizer

CAPTIONS = (
    "a small red circle on a white background",
    "a large blue square on a black background",
    "a picture of a small green triangle on a white background",
    "an empty black background",
)


def tiny_unet(in_channels: int = 4) -> UNet2DConditionModel:
    """Returns a UNet of 0.1 M parameters with self- and cross-attention at 16 x 16 and 8 x 8 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
    ).eval()


def tiny_vae() -> AutoencoderKL:
    """Returns an autoencoder of 64 x 64 pixels and 16 x 16 x 4 latents."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=0.5,
    ).eval()


def tiny_scheduler() -> DDIMScheduler:
    """Returns a v-prediction scheduler with zero terminal signal-to-noise ratio, like that of the domain's model."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )


def write_tiny_stable_diffusion(folder: Path) -> Path:
    """Writes a folder that `StableDiffusionPipeline.from_pretrained` loads."""
    torch.manual_seed(0)
    tokenizer = write_tokenizer(_created(folder / "tokenizer"))
    text_encoder = text_encoder_of(new_clip(len(tokenizer)), tokenizer)
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=tiny_unet(),
        scheduler=tiny_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    write_tokenizer(folder / "tokenizer")
    return folder


def write_tiny_xl(folder: Path) -> Path:
    """Writes a folder that `StableDiffusionXLPipeline.from_pretrained` loads: it has two text encoders."""
    torch.manual_seed(3)
    tokenizer = write_tokenizer(_created(folder / "tokenizer"))
    texts = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=24,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        norm_num_groups=8,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(texts),
        text_encoder_2=CLIPTextModelWithProjection(texts),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / name)
    return folder


def write_tiny_clip(folder: Path) -> Path:
    """Writes a folder that open_clip loads with `local-dir:`."""
    torch.manual_seed(1)
    tokenizer = write_tokenizer(_created(folder))
    write_clip(folder, new_clip(len(tokenizer)).eval(), tokenizer)
    return folder


def write_tiny_language_model(folder: Path) -> Path:
    """Writes a byte-level causal language model that `AutoModelForCausalLM` loads."""
    torch.manual_seed(2)
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>"]
    learned = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=learned, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=letters.index("<s>"),
        eos_token_id=letters.index("</s>"),
        pad_token_id=letters.index("</s>"),
    )
    LlamaForCausalLM(config).save_pretrained(_created(folder), safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_vlm(folder: Path) -> Path:
    """Writes a LLaVA of random weights with the domain's words."""
    language = write_tiny_language_model(folder / "language")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(language)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        image_size=32, patch_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder / "vlm")
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
    )
    LlavaProcessor(  # type: ignore[no-untyped-call]
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder / "vlm")
    return folder / "vlm"


def write_tiny_editor(folder: Path, sd: Path) -> Path:
    """Writes an editor with random weights in all its channels, made of a text-to-image model."""
    parts = StableDiffusionPipeline.from_pretrained(sd, safety_checker=None).components
    torch.manual_seed(0)
    parts["unet"] = widen_conv_in(parts["unet"], 8)
    torch.nn.init.normal_(parts["unet"].conv_in.weight, std=0.2)
    parts.pop("image_encoder", None)
    StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def write_tiny_config(out: Path, *, sd: Path, clip: Path, lm: Path) -> PipelineConfig:
    """Returns a complete config in which every stage takes seconds; thresholds accept everything."""
    out.mkdir(parents=True, exist_ok=True)
    captions = out.parent / f"{out.name}-captions.txt"
    captions.write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    everything = Thresholds(original=-1.0, edited=-1.0, direction=-1.0, image=-1.0)
    return PipelineConfig(
        out=out,
        prompts=PromptsConfig(captions=str(captions), model=str(lm), shard_size=2, batch_size=2, max_new_tokens=16),
        rendering=RenderingConfig(
            model=str(sd),
            device="cpu",
            num_inference_steps=2,
            guidance_scale=(2.0, 4.0),
            num_candidates=2,
            batch_size=4,
        ),
        scoring=ScoringConfig(clip_model=str(clip), clip_pretrained=None, device="cpu", batch_size=8),
        filtering=FilteringConfig(thresholds=everything),
        dataset=DatasetConfig(test_fraction=0.25, rows_per_shard=4),
        training=TrainingConfig(
            pretrained_model_name_or_path=str(sd),
            resolution=64,
            train_batch_size=2,
            max_train_steps=2,
            lr_warmup_steps=0,
            checkpointing_steps=1,
            log_every=1,
        ),
        evaluation=EvaluationConfig(
            num_edits=7,
            num_sweep_edits=2,
            image_guidance_scales=(1.0, 1.5),
            sdedit_strengths=(0.5,),
            num_grid_edits=1,
            grid_guidance_scales=(2.0,),
            grid_image_guidance_scales=(1.0, 1.5),
            num_inference_steps=2,
            batch_size=4,
            device="cpu",
        ),
    )


def specs(*, p2p: Sequence[float], shared_steps: Sequence[float] = ()) -> list[RenderSpec]:
    """Returns a spec for each pair of a batch."""
    shares = [*shared_steps, *([0.0] * (len(p2p) - len(shared_steps)))]
    return [
        RenderSpec(triplet_id="t", candidate=n, seed=n, guidance_scale=2.0, p2p=p, shared_steps=share)
        for n, (p, share) in enumerate(zip(p2p, shares, strict=True))
    ]


def _created(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
