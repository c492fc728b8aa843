"""Knobs of the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ip2p.config.checks import check, check_positive, check_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """A parquet dataset to an instruction-following editor. Names are those of diffusers' scripts."""

    pretrained_model_name_or_path: str = ""
    """Folder or hub id of the text-to-image model to start from."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Weight variant on the hub, such as fp16."""
    original_image_column: str = "original_image"
    """Column of the image before the edit."""
    edited_image_column: str = "edited_image"
    """Column of the image after the edit."""
    edit_prompt_column: str = "edit_prompt"
    """Column of the instruction."""
    max_train_samples: int | None = None
    """Use the first so many rows."""
    resolution: int = 256
    """Images are resized to this many pixels on the short side and cropped square."""
    random_flip: bool = False
    """Mirror half of the samples, both images; not for instructions that say left or right."""
    train_batch_size: int = 16
    """Samples per step and process."""
    gradient_accumulation_steps: int = 1
    """Micro-steps per optimizer step."""
    max_train_steps: int = 15000
    """Optimizer steps."""
    optim: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the inner weight matrices and AdamW for the rest: fewer steps, each a little longer."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    learning_rate_conv_in: float | None = None
    """Peak learning rate of the widened first convolution, whose new half starts at zero; the same by default."""
    lr_scheduler: str = "constant"
    """A diffusers schedule: constant, constant_with_warmup, linear, cosine, …"""
    lr_warmup_steps: int = 500
    """Optimizer steps of warm-up."""
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
    conditioning_dropout_prob: float = 0.05
    """Chance of each of: no text, no image, neither (paper, section 3.2.1)."""
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
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "no"
    """Autocast precision; weights stay float32. `auto` is bf16 where the device multiplies it itself, else no."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    checkpointing_steps: int = 500
    """Steps between checkpoints."""
    checkpoints_total_limit: int | None = 2
    """Keep at most so many checkpoints."""
    log_every: int = 10
    """Steps between entries of the loss log."""
    seed: int = 0
    """Seed of sample order, noise, timesteps and dropout."""

    def __post_init__(self) -> None:
        check_positive(self, "max_train_samples", "resolution", "train_batch_size", "gradient_accumulation_steps")
        check_positive(self, "max_train_steps", "learning_rate", "checkpointing_steps", "checkpoints_total_limit")
        check_positive(self, "log_every", "learning_rate_conv_in", "timestep_bias_multiplier")
        check_unit("timestep_bias_portion", self.timestep_bias_portion)
        begin, end = self.timestep_bias_begin, self.timestep_bias_end
        check(
            0 <= begin < end,
            f"timestep_bias_begin must lie in [0, timestep_bias_end), got {begin} and {end}. Give the earlier first.",
        )
        p = self.conditioning_dropout_prob
        check(0 <= p <= 1 / 3, f"conditioning_dropout_prob is spent three times, so it must lie in [0, 1/3], got {p}.")
