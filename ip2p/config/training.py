"""Knobs of the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ip2p.config.fields import check, check_positive, check_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """A parquet dataset to an instruction-following editor. Names are those of diffusers' scripts."""

    pretrained_model_name_or_path: str = ""
    """Folder or hub id of the text-to-image model to start from."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Weight variant on the hub, such as fp16."""
    non_ema_revision: str | None = None
    """Revision of the UNet alone, where a hub repository keeps unaveraged weights in a branch."""
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder, such as one of Stable Diffusion XL mended for float16."""
    vae_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the autoencoder while it encodes; it is exported in float32."""
    original_image_column: str = "original_image"
    """Column of the image before the edit."""
    edited_image_column: str = "edited_image"
    """Column of the image after the edit."""
    edit_prompt_column: str = "edit_prompt"
    """Column of the instruction."""
    max_train_samples: int | None = None
    """Use the first so many rows."""
    streaming: bool = False
    """Read a hub dataset row by row without downloading it first."""
    cache: bool = True
    """Encode every pair once and keep the latents on disk; else encode at every step, with `dataloader_num_workers`."""
    dataloader_num_workers: int = 0
    """Processes that decode images where there is no cache."""
    resolution: int = 256
    """Images are resized to this many pixels on the short side and cropped square."""
    center_crop: bool = True
    """Crop at the centre; else anywhere, which matters to images that are not square and rules a cache out."""
    random_flip: bool = False
    """Mirror half of the samples, both images; not for instructions that say left or right."""
    train_batch_size: int = 16
    """Samples per step and process."""
    gradient_accumulation_steps: int = 1
    """Micro-steps per optimizer step."""
    max_train_steps: int | None = 15000
    """Optimizer steps; as `num_train_epochs` says where it is not set."""
    num_train_epochs: int = 100
    """Passes over the data, where `max_train_steps` is not set."""
    use_lora: bool = False
    """Train low-rank adapters of the attention (peft) and the whole first convolution, and nothing else."""
    rank: int = 4
    """Rank of the adapters."""
    optim: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the inner weight matrices and AdamW for the rest: fewer steps, each a little longer."""
    use_8bit_adam: bool = False
    """AdamW with states of 8 bits, from bitsandbytes; plain AdamW, and a word about it, where that is not there."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    learning_rate_conv_in: float | None = None
    """Peak learning rate of the widened first convolution, whose new half starts at zero; the same by default."""
    lr_scheduler: str = "constant"
    """A diffusers schedule: constant, constant_with_warmup, linear, cosine, …"""
    lr_warmup_steps: int = 500
    """Optimizer steps of warm-up."""
    lr_num_cycles: int = 1
    """Restarts of cosine_with_restarts."""
    lr_power: float = 1.0
    """Power of the polynomial schedule."""
    scale_lr: bool = False
    """Multiply the learning rate by the pairs of an optimizer step."""
    adam_beta1: float = 0.9
    """First moment's decay."""
    adam_beta2: float = 0.999
    """Second moment's decay."""
    adam_weight_decay: float = 1e-2
    """Decoupled weight decay."""
    adam_epsilon: float = 1e-8
    """Adam's denominator."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    conditioning_dropout_prob: float | None = 0.05
    """Chance of each of: no text, no image, neither (paper, section 3.2.1); none where it is not set."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the UNet is taught to predict; what its base does by default."""
    noise_offset: float = 0.0
    """Share of a noise that is constant over each channel (0.05 to 0.1 lets a model learn dark and bright images)."""
    scale_condition_latents: bool = False
    """Multiply the image condition's latents by the autoencoder's factor, as CosXL Edit does; the original does not.

    An export of Stable Diffusion XL tells its pipeline so (`is_cosxl_edit`).
    """
    crops_coords_top_left_h: int | None = None
    """Stable Diffusion XL is told each pair's own crop, or this one for all: its row, …"""
    crops_coords_top_left_w: int | None = None
    """… and its column; the image's size then counts as the resolution."""
    snr_gamma: float | None = None
    """Min-SNR loss weighting (5.0 is usual); plain by default."""
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = "none"
    """Timesteps to draw more often: the first `portion`, the last `portion`, or those from `begin` to `end`."""
    timestep_bias_multiplier: float = 1.0
    """How much more often."""
    timestep_bias_portion: float = 0.25
    """Share of the timesteps that `earlier` and `later` favour; `later` is where the noise is strong."""
    timestep_bias_begin: int = 0
    """First favoured timestep under `range`."""
    timestep_bias_end: int = 1000
    """End of the favoured timesteps under `range`, exclusive."""
    use_ema: bool = True
    """Average the weights and export the average."""
    ema_decay: float = 0.9999
    """Decay of the average, reached after a warm-up."""
    offload_ema: bool = False
    """Keep the average in the CPU's memory."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] | None = "no"
    """Autocast precision; weights stay float32. `auto` is bf16 where the device multiplies it itself, else no.

    Where it is not set, what `accelerate launch` says.
    """
    allow_tf32: bool = False
    """Let a GPU multiply float32 in TF32."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    enable_xformers_memory_efficient_attention: bool = False
    """Use xformers' attention; torch's own, and a word about it, where that cannot run."""
    compile: bool = False
    """Compile the UNet's repeated blocks with torch.compile."""
    checkpointing_steps: int = 500
    """Steps between checkpoints."""
    checkpoints_total_limit: int | None = 2
    """Keep at most so many checkpoints."""
    log_every: int = 10
    """Steps between entries of the loss log and of the trackers."""
    report_to: str = "tensorboard"
    """Trackers, with commas between them: tensorboard, wandb, comet_ml, trackio; all that are installed, or none."""
    validation_steps: int | None = None
    """Optimizer steps between validations."""
    validation_epochs: int | None = None
    """Epochs between validations."""
    val_image_url_or_path: str | None = None
    """Image to edit at every validation."""
    validation_prompt: str | None = None
    """What to do to it."""
    validation_file: str | None = None
    """JSON lines of `image` and `edit_prompt`, edited at every validation."""
    num_validation_images: int = 4
    """Edits of each, from seeds of their own."""
    num_validation_pairs: int = 64
    """Pairs of the test split, if the data have one, whose loss is measured at every validation."""
    launch_args: str = ""
    """Arguments of `accelerate launch`; a process per GPU by default.

    "--config_file fsdp --num_processes 4" splits the weights over four GPUs; multi_gpu and deepspeed are there too, or
    give a file.
    """
    seed: int = 0
    """Seed of sample order, noise, timesteps and dropout."""

    def __post_init__(self) -> None:
        check_positive(self, "max_train_samples", "resolution", "train_batch_size", "gradient_accumulation_steps")
        check_positive(self, "max_train_steps", "learning_rate", "checkpointing_steps", "checkpoints_total_limit")
        check_positive(self, "num_train_epochs", "rank", "lr_num_cycles", "num_validation_images")
        check_positive(self, "validation_steps", "validation_epochs")
        check_positive(self, "log_every", "learning_rate_conv_in", "timestep_bias_multiplier")
        check_unit("timestep_bias_portion", self.timestep_bias_portion)
        begin, end = self.timestep_bias_begin, self.timestep_bias_end
        check(
            0 <= begin < end,
            f"timestep_bias_begin must lie in [0, timestep_bias_end), got {begin} and {end}. Give the earlier first.",
        )
        p = self.conditioning_dropout_prob or 0.0
        check(0 <= p <= 1 / 3, f"conditioning_dropout_prob is spent three times, so it must lie in [0, 1/3], got {p}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob(TrainingConfig):
    """Trains an editor on pairs. Every flag of diffusers' InstructPix2Pix scripts is here under its own name."""

    dataset_name: str | None = None
    """Hub id of the pairs, a folder of parquet files or an fsspec pattern such as s3://bucket/data/train-*.parquet."""
    dataset_config_name: str | None = None
    """Which of a hub dataset's configurations."""
    train_data_dir: str | None = None
    """Folder of the pairs: parquet files, or images with a metadata.jsonl."""
    cache_dir: str | None = None
    """Where downloaded datasets go; the hub's usual place by default."""
    output_dir: str = "instruct-pix2pix-model"
    """Where checkpoints, logs and the latent cache go."""
    export_dir: str | None = None
    """Where the trained pipeline goes; into `output_dir` itself by default."""
    logging_dir: str = "logs"
    """Folder of the trackers' files, within `output_dir`."""
    resume_from_checkpoint: str | None = None
    """A checkpoint's folder or its name in `output_dir`, `latest`, or `auto`: the latest of these very settings."""
    push_to_hub: bool = False
    """Upload the trained pipeline. The token comes from the environment (HF_TOKEN) or from `hf auth login`."""
    hub_model_id: str | None = None
    """Repository to upload to; named like `output_dir` by default."""

    @property
    def data(self) -> str:
        """What to train on."""
        return self.dataset_name or self.train_data_dir or ""

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        check(bool(self.data), "no data to train on. Give --dataset_name or --train_data_dir.")


DIFFUSERS_DEFAULTS = {
    "original_image_column": "input_image",
    "center_crop": False,
    "max_train_steps": None,
    "conditioning_dropout_prob": None,
    "use_ema": False,
    "mixed_precision": None,
    "checkpoints_total_limit": None,
}
"""Where diffusers' scripts differ from ours when a flag is left out."""
