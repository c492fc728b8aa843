"""Settings of the training, as a stage of a run and as a job with flags of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ip2p.config.fields import (
    OMIT_IF_EMPTY,
    RESULT_FREE,
    WEIGHTS_FREE,
    check,
    check_not_negative,
    check_positive,
    check_share,
    check_unit,
)

WeightingScheme = Literal["sigma_sqrt", "logit_normal", "mode", "cosmap", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Trains an instruction-following editor on a parquet dataset. Names are those of diffusers' scripts."""

    pretrained_model_name_or_path: str = field(default="", metadata=WEIGHTS_FREE)
    """Folder or hub id of the text-to-image model to start from."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Weight variant on the hub, such as fp16."""
    non_ema_revision: str | None = None
    """Revision of the UNet alone, for hub repositories that keep non-EMA weights in a branch."""
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder, such as an SDXL autoencoder patched for float16. Default: the base model's."""
    vae_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the autoencoder during encoding. It is exported in float32."""
    original_image_column: str = "original_image"
    """Column of the image before the edit."""
    edited_image_column: str = "edited_image"
    """Column of the image after the edit."""
    edit_prompt_column: str = "edit_prompt"
    """Column of the instruction."""
    balance_column: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Column, such as edit_type, whose values are shown equally often. Default: every row once per epoch."""
    balance_weights: tuple[str, ...] = field(default=(), metadata=OMIT_IF_EMPTY)
    """How often values of `balance_column` are shown against the others, such as add=2 remove=0.5. Default: 1 each."""
    more_data: tuple[str, ...] = field(default=(), metadata={**OMIT_IF_EMPTY, **WEIGHTS_FREE})
    """Further data to train on, each a folder, a file, a pattern or a hub id.

    Their columns have the same names, or those of a known dataset. Each is cached by itself.
    """
    data_weights: tuple[float, ...] = field(default=(), metadata=OMIT_IF_EMPTY)
    """Shares of the samples that the data and each of `more_data` give. Default: as many as they have pairs."""
    max_train_samples: int | None = None
    """Number of rows of each source to train on, from the first. Default: all."""
    streaming: bool = field(default=False, metadata=WEIGHTS_FREE)
    """Stream a hub dataset row by row instead of downloading it first."""
    cache: bool = True
    """Encode every pair once and keep the latents on disk, if that pays. Without it, they are encoded at every step."""
    cache_epochs: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Epochs above which a cache pays. Default: as many as there are views of a pair, 2 with `random_flip`, else 1.

    Shorter trainings encode at every step, which then encodes less. 0 always has a cache.
    """
    latent_cache: str | None = field(default=None, metadata={**OMIT_IF_EMPTY, **RESULT_FREE})
    """Folder or URL, such as s3://bucket/latents, where latent caches lie; missing parts are encoded and put there.

    The training's own folder has copies. Default: that folder alone.
    """
    cache_window: int | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Parts of the latent cache, of 1024 pairs each, among which samples are shuffled; a node holds copies of these
    and of the next as many. Default: all parts."""
    max_text_cache_gib: float = field(default=32.0, metadata=OMIT_IF_EMPTY)
    """GiB of encoded instructions that a cache may keep. Past it, they are encoded at every step."""
    dataloader_num_workers: int = field(default=0, metadata=WEIGHTS_FREE)
    """Worker processes that decode images if there is no cache."""
    resolution: int = 256
    """Size of the training images: the short side is resized to it, then the image is cropped square."""
    center_crop: bool = True
    """Crop at the centre. Otherwise crop at random, which rules out the cache for images that are not square."""
    aspect_ratio_buckets: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Crop each pair to the nearest of diffusers' aspect ratios instead of square; a batch holds pairs of one size.

    A pair is cropped at the centre. `resolution` is then the root of the area.
    """
    bucket_resolutions: tuple[int, ...] = field(default=(), metadata=OMIT_IF_EMPTY)
    """Resolutions of the buckets; a pair takes the largest for which it need not be enlarged. Default: `resolution`."""
    random_flip: bool = False
    """Mirror both images of half of the samples. Not for instructions that mention left or right."""
    train_batch_size: int = 16
    """Samples per step and process."""
    gradient_accumulation_steps: int = 1
    """Forward and backward passes per optimizer step."""
    max_train_steps: int | None = 15000
    """Optimizer steps. If unset, `num_train_epochs` decides."""
    num_train_epochs: int = 100
    """Passes over the data if `max_train_steps` is unset."""
    use_lora: bool = False
    """Train only LoRA adapters of the attention (peft) and the layer that takes the image."""
    rank: int = 4
    """Rank of the LoRA adapters."""
    lora_alpha: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Adapters are scaled by this over their rank. Default: the rank. An exported file has the scale in its weights."""
    lora_dropout: float = field(default=0.0, metadata=OMIT_IF_EMPTY)
    """Share of an adapter's inputs that are dropped in training."""
    lora_layers: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Ends of the names of the layers that get adapters, separated by commas. Default: those of the attention."""
    quantization: Literal["torchao_int8", "bnb_int8", "bnb_nf4"] | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Keep the frozen weights under the adapters in 8 or 4 bits (torchao; bitsandbytes on a GPU). Default: float32."""
    optim: Literal["adamw", "muon", "prodigy", "schedule_free"] = "adamw"
    """AdamW, or Muon for the inner weight matrices and AdamW for the rest: fewer but slightly slower steps.

    `prodigy` finds the learning rate itself, of which `learning_rate` is a multiple: set it to 1. `schedule_free` is
    AdamW with an average of its own in the place of EMA and of a decaying learning rate.
    """
    use_8bit_adam: bool = False
    """8-bit AdamW (bitsandbytes). Falls back to AdamW with a warning if that is not installed."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    learning_rate_conv_in: float | None = None
    """Peak learning rate of the widened first convolution, whose new half starts at zero. Default: `learning_rate`."""
    lr_scheduler: str = "constant"
    """Learning rate schedule of diffusers: constant, constant_with_warmup, linear, cosine, …"""
    lr_warmup_steps: int = 500
    """Optimizer steps of warm-up."""
    lr_num_cycles: int = 1
    """Restarts of cosine_with_restarts."""
    lr_power: float = 1.0
    """Power of the polynomial schedule."""
    scale_lr: bool = False
    """Multiply the learning rate by the number of samples per optimizer step."""
    adam_beta1: float = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: float = 0.999
    """Decay of Adam's second moment."""
    adam_weight_decay: float = 1e-2
    """Decoupled weight decay."""
    adam_epsilon: float = 1e-8
    """Epsilon in Adam's denominator."""
    max_grad_norm: float = 1.0
    """Norm to clip gradients to."""
    conditioning_dropout_prob: float | None = 0.05
    """Probability of dropping each of: the text, the image, both (paper, section 3.2.1). Unset: drop nothing."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """Prediction target of the UNet. Default: that of the base model."""
    noise_offset: float = 0.0
    """Weight of per-channel constant noise. 0.05 to 0.1 lets a model learn dark and bright images."""
    scale_condition_latents: bool = False
    """Multiply the condition's latents by the autoencoder's scaling factor. CosXL Edit does, the original does not.

    An exported Stable Diffusion XL pipeline records it (`is_cosxl_edit`).
    """
    crops_coords_top_left_h: int | None = None
    """Crop row to tell Stable Diffusion XL for all pairs, with the resolution as the size. Default: each pair's own."""
    crops_coords_top_left_w: int | None = None
    """Crop column to tell Stable Diffusion XL for all pairs. Default: each pair's own."""
    snr_gamma: float | None = None
    """Gamma of Min-SNR loss weighting; 5.0 is usual. Default: no weighting."""
    region_weight: float | Literal["log2"] | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Weight of changed positions in the loss, against 1 for the rest; a sample's weights are scaled to a mean of 1.

    `log2` is 1 + log2(area / changed area), so that small changes count more. Default: all positions count alike.
    """
    mask_column: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Column, such as mask_image, of pictures that are white, or transparent, where `region_weight` holds.

    Default: where the two images of a pair differ.
    """
    region_threshold: float = field(default=0.1, metadata=OMIT_IF_EMPTY)
    """Difference of a colour, from 0 to 1, above which a pixel has changed, if there is no mask."""
    weighting_scheme: WeightingScheme | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Flow matching: noise levels are drawn by `logit_normal` (the default) or `mode`, or drawn evenly and their
    losses weighted by `sigma_sqrt` or `cosmap`, or neither (`none`). Esser et al., 2024, section 3.1."""
    logit_mean: float = field(default=0.0, metadata=OMIT_IF_EMPTY)
    """Mean of `logit_normal`; above 0 draws less noise."""
    logit_std: float = field(default=1.0, metadata=OMIT_IF_EMPTY)
    """Standard deviation of `logit_normal`."""
    mode_scale: float = field(default=1.29, metadata=OMIT_IF_EMPTY)
    """Scale of `mode`."""
    max_sequence_length: int | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Tokens that the T5 text encoder of a base that has one reads. Default: those of its own pipeline."""
    guidance_scale: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Scale that is told to a base that takes it as an input, such as FLUX.1 dev. Default: 1, no guidance."""
    stratified_timesteps: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Spread the noise levels of an optimizer step evenly over their density: a steadier loss."""
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = "none"
    """Timesteps to draw more often: the first `portion`, the last `portion`, or those from `begin` to `end`."""
    timestep_bias_multiplier: float = 1.0
    """Factor by which those timesteps are drawn more often."""
    timestep_bias_portion: float = 0.25
    """Fraction of the timesteps that `earlier` and `later` favour. `later` ones are the noisy ones."""
    timestep_bias_begin: int = 0
    """First favoured timestep under `range`."""
    timestep_bias_end: int = 1000
    """End of the favoured timesteps under `range`, exclusive."""
    use_ema: bool = True
    """Average the weights (EMA) and export the average."""
    ema_decay: float = 0.9999
    """Decay of the average, reached after a warm-up."""
    offload_ema: bool = field(default=False, metadata=WEIGHTS_FREE)
    """Keep the average in CPU memory."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] | None = "no"
    """Autocast precision; weights stay float32. `auto` is bf16 on hardware that multiplies it natively, else no.

    If unset, `accelerate launch` decides.
    """
    allow_tf32: bool = False
    """Multiply float32 in TF32 on GPUs that can."""
    gradient_checkpointing: bool = False
    """Save memory at the cost of time."""
    enable_xformers_memory_efficient_attention: bool = False
    """Use xformers' attention. Falls back to torch's with a warning if it cannot run."""
    compile: bool = False
    """Compile the UNet's repeated blocks with torch.compile."""
    checkpointing_steps: int = field(default=500, metadata=WEIGHTS_FREE)
    """Optimizer steps between checkpoints."""
    checkpoints_total_limit: int | None = field(default=2, metadata=RESULT_FREE)
    """Number of checkpoints to keep. Unset: all."""
    log_every: int = field(default=10, metadata=RESULT_FREE)
    """Steps between entries of the loss log and of the trackers."""
    report_to: str = field(default="tensorboard", metadata=WEIGHTS_FREE)
    """Trackers, separated by commas: tensorboard, wandb, comet_ml, trackio; or `all` installed ones, or `none`."""
    validation_steps: int | None = field(default=None, metadata=WEIGHTS_FREE)
    """Optimizer steps between validations. Default: no validation."""
    validation_epochs: int | None = field(default=None, metadata=WEIGHTS_FREE)
    """Epochs between validations. Default: no validation."""
    val_image_url_or_path: str | None = field(default=None, metadata=WEIGHTS_FREE)
    """Image to edit at every validation."""
    validation_prompt: str | None = field(default=None, metadata=WEIGHTS_FREE)
    """Instruction for that image."""
    validation_file: str | None = field(default=None, metadata=WEIGHTS_FREE)
    """JSON lines of `image` and `edit_prompt` to edit at every validation."""
    num_validation_images: int = field(default=4, metadata=WEIGHTS_FREE)
    """Edits per image, each from another seed."""
    num_validation_pairs: int = field(default=64, metadata=WEIGHTS_FREE)
    """Pairs of the test split, if there is one, whose loss is measured at every validation."""
    launch_args: str = field(default="", metadata=WEIGHTS_FREE)
    """Arguments of `accelerate launch`. Default: one process per GPU.

    "--config_file fsdp --num_processes 4" shards the weights over four GPUs; multi_gpu and deepspeed are shipped
    too, or name a file.
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
        check_positive(self, "logit_std")
        check_not_negative(self, "max_sequence_length", "guidance_scale")
        check_positive(self, "lora_alpha")
        self._check_regions()
        self._check_buckets()
        self._check_cache()
        self._check_optimizer()
        self._check_mixture()
        check(
            0 <= self.lora_dropout < 1,
            f"lora_dropout must lie in [0, 1), got {self.lora_dropout}. Give a fraction.",
        )
        begin, end = self.timestep_bias_begin, self.timestep_bias_end
        check(
            0 <= begin < end,
            f"timestep_bias_begin must lie in [0, timestep_bias_end), got {begin} and {end}. Give the earlier first.",
        )
        p = self.conditioning_dropout_prob or 0.0
        check(
            0 <= p <= 1 / 3,
            f"conditioning_dropout_prob counts three times, so it must lie in [0, 1/3], got {p}. The paper's is 0.05.",
        )

    def _check_regions(self) -> None:
        if self.region_weight != "log2":
            check_positive(self, "region_weight")
        check_share("region_threshold", self.region_threshold)
        check(
            self.mask_column is None or self.region_weight is not None,
            f"mask_column says where region_weight holds, got {self.mask_column} alone. Set region_weight too.",
        )

    @property
    def weights_by_value(self) -> dict[str, float]:
        """Returns `balance_weights` by value. ValueError for one that is not of the form VALUE=WEIGHT."""
        weights = {}
        for word in self.balance_weights:
            value, equals, weight = word.rpartition("=")
            try:
                weights[value] = float(weight)
            except ValueError:
                equals = ""
            check(
                bool(equals) and 0 <= weights[value] < math.inf,
                f"balance_weights are VALUE=WEIGHT with a weight of 0 or more, got {word}. Give such as add=2.",
            )
        return weights

    def _check_mixture(self) -> None:
        weights, needed = self.data_weights, 1 + len(self.more_data)
        check(
            not weights or len(weights) == needed,
            f"data_weights must be {needed}, of the data and of each of more_data, got {len(weights)}. Give one each.",
        )
        check(
            not weights or (min(weights) >= 0 and sum(weights) > 0),
            f"data_weights must be 0 or more and not all 0, got {weights}. Give shares.",
        )
        check(
            not self.weights_by_value or self.balance_column is not None,
            f"balance_weights are those of a column's values, got {self.balance_weights}. Set balance_column too.",
        )

    def _check_optimizer(self) -> None:
        check(
            self.optim in ("adamw", "muon") or not self.use_8bit_adam,
            f"use_8bit_adam is AdamW, got optim {self.optim}. Leave one of them out.",
        )
        check(
            self.optim != "prodigy" or self.learning_rate_conv_in is None,
            f"prodigy finds one rate for all layers, got learning_rate_conv_in {self.learning_rate_conv_in}. "
            "Leave it out.",
        )
        check(
            self.optim != "schedule_free" or self.lr_scheduler in ("constant", "constant_with_warmup"),
            f"schedule_free replaces a schedule, got lr_scheduler {self.lr_scheduler}. "
            "Set it to constant or constant_with_warmup.",
        )

    def _check_cache(self) -> None:
        check_positive(self, "cache_window")
        for name in ("latent_cache", "cache_window"):
            check(
                self.cache or getattr(self, name) is None,
                f"{name} is a setting of the cache, got {getattr(self, name)} without one. Leave the cache on.",
            )
        orders = ("balance_column", "more_data", "data_weights", "aspect_ratio_buckets")
        for name in filter(lambda name: getattr(self, name), orders):
            check(
                self.cache_window is None,
                f"cache_window cannot be combined with {name}, which draws from all parts. Leave one of them out; "
                "latent_cache alone copies all parts.",
            )

    def _check_buckets(self) -> None:
        check(
            self.cache or not self.aspect_ratio_buckets,
            "aspect_ratio_buckets needs the sizes of all pairs before the first step. Leave the cache on.",
        )
        check(
            self.aspect_ratio_buckets or not self.bucket_resolutions,
            f"bucket_resolutions are those of aspect_ratio_buckets, got {self.bucket_resolutions} without it. "
            "Set aspect_ratio_buckets too.",
        )
        check(
            all(each > 0 for each in self.bucket_resolutions),
            f"bucket_resolutions must be positive, got {self.bucket_resolutions}. Give sides in pixels.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob(TrainingConfig):
    """Trains an editor on pairs. Every flag of diffusers' InstructPix2Pix scripts is here under the same name."""

    dataset_name: str | None = None
    """Hub id of the pairs, a folder of parquet files or an fsspec pattern such as s3://bucket/data/train-*.parquet."""
    dataset_config_name: str | None = None
    """Configuration of the hub dataset."""
    train_data_dir: str | None = None
    """Folder of the pairs: parquet files, or images with a metadata.jsonl."""
    cache_dir: str | None = None
    """Folder for downloaded datasets. Default: the hub's cache."""
    output_dir: str = "instruct-pix2pix-model"
    """Folder for checkpoints, logs and the latent cache."""
    export_dir: str | None = None
    """Folder for the trained pipeline. Default: `output_dir` itself."""
    logging_dir: str = "logs"
    """Folder of the trackers' files, within `output_dir`."""
    resume_from_checkpoint: str | None = None
    """Folder of a checkpoint or its name in `output_dir`, `latest`, or `auto`: the latest with these settings."""
    push_to_hub: bool = False
    """Upload the trained pipeline. The token comes from HF_TOKEN or `hf auth login`."""
    hub_model_id: str | None = None
    """Repository to upload to. Default: named like `output_dir`."""

    @property
    def data(self) -> str:
        """Names the data to train on."""
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
"""Defaults of diffusers' scripts that differ from ours."""
