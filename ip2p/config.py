"""One frozen dataclass per stage; every knob of the software is a field here and nowhere else.

Checks live in `__post_init__` and say the rule, what was got and the way out. `fingerprint` is what the store compares.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ip2p.records import content_hash

Precision = Literal["float32", "float16", "bfloat16"]
ImageFormat = Literal["png", "webp", "jpeg"]

DEFAULT_EDIT_TYPE_RULES: tuple[tuple[str, str], ...] = (
    (r"^(add|put|place|insert|include)\b", "add"),
    (r"^(remove|delete|erase|take away|get rid)\b", "remove"),
    (r"^(replace|swap|exchange|substitute)\b", "replace"),
    (r"\bbackground\b", "background"),
    (r"\b(winter|spring|summer|autumn|fall|snow\w*|rain\w*|fog\w*|storm\w*)\b", "weather"),
    (r"\b(night|day|dawn|dusk|sunset|sunrise|noon|morning|evening)\b", "time of day"),
    (r"\b(painting|drawing|sketch|style|watercolou?r|cartoon|photograph|sculpture)\b", "style"),
    (r"\b(colou?r|paint|red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ae]y|gold\w*)\b", "colour"),
    (r"\b(bigger|smaller|larger|tiny|huge|size|shrink|enlarge)\b", "size"),
    (r"\b(into|become|turn)\b", "object"),
)


def _check(rule: bool, message: str) -> None:
    if not rule:
        raise ValueError(message)


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value is None or value > 0, f"{name} must be positive, got {value}. Set it to 1 or more.")


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    _check(low <= high, f"{name} is a range (low, high), got {bounds}. Give the lower bound first.")


def _check_unit(name: str, *values: float) -> None:
    for value in values:
        _check(0 <= value <= 1, f"{name} must lie in [0, 1], got {value}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsConfig:
    """Captions to edit triplets, with a causal language model in the original's delimiter format."""

    captions: str = ""
    """Text file with one caption a line."""
    num_captions: int | None = None
    """Use the first so many captions; all by default."""
    num_triplets_per_caption: int = 1
    """Triplets to write for each caption."""
    model: str = ""
    """Folder or hub id of the language model."""
    revision: str | None = None
    """Branch, tag or commit of the language model on the hub."""
    shard_size: int = 100
    """Captions per shard, the unit of work."""
    batch_size: int = 50
    """Captions per generation batch; the result does not depend on it."""
    temperature: float = 0.7
    """Sampling temperature; 0 takes the likeliest token."""
    device: str = "auto"
    """Where to generate: cpu, cuda, cuda:1, mps; `auto` takes the best there is."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    max_prompt_tokens: int | None = None
    """Longest prompt in the text encoder's tokens; what the renderer's tokenizer allows by default."""
    edit_type_rules: tuple[tuple[str, str], ...] = DEFAULT_EDIT_TYPE_RULES
    """(regular expression, edit type): the first that is found in the instruction names its type; else 'other'."""
    seed: int = 0
    """Seed of the sampling; each caption has its own generator."""

    def __post_init__(self) -> None:
        _check_positive(self, "num_captions", "num_triplets_per_caption", "shard_size", "batch_size", "max_new_tokens")
        _check_positive(self, "max_prompt_tokens")
        _check(
            self.temperature >= 0,
            f"temperature must not be negative, got {self.temperature}. Use 0 for greedy decoding.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EditTypeRendering:
    """What the candidates of one edit type are rendered with, where it is not what all others are."""

    num_candidates: int | None = None
    """Candidates to render per triplet."""
    guidance_scale: tuple[float, float] | None = None
    """Range of the classifier-free guidance."""
    p2p: tuple[float, float] | None = None
    """Range of the fraction of steps with shared self-attention."""
    shared_steps: tuple[float, float] | None = None
    """Range of the fraction of first steps in which both sides follow the original's caption."""

    def __post_init__(self) -> None:
        _check_draws(self)


def _check_draws(config: RenderingConfig | EditTypeRendering) -> None:
    _check_positive(config, "num_candidates")
    for name in ("guidance_scale", "p2p", "shared_steps"):
        if (bounds := getattr(config, name)) is not None:
            _check_range(name, bounds)
            if name != "guidance_scale":
                _check_unit(name, *bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderingConfig:
    """Edit triplets to candidate pairs, with prompt-to-prompt."""

    model: str = ""
    """Folder or hub id of the text-to-image model."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Weight variant on the hub, such as fp16."""
    dtype: Precision = "float32"
    """Precision of weights and activations."""
    device: str = "auto"
    """Where to render: cpu, cuda, cuda:1, mps; `auto` takes the best there is."""
    scheduler: str | None = None
    """A diffusers scheduler class by name; the model's own by default."""
    num_inference_steps: int = 50
    """Denoising steps."""
    guidance_scale: tuple[float, float] = (7.5, 15.0)
    """Range of the classifier-free guidance, drawn per candidate."""
    p2p: tuple[float, float] = (0.1, 0.9)
    """Range of the fraction of steps with shared self-attention, drawn per candidate."""
    shared_steps: tuple[float, float] = (0.0, 0.0)
    """Range of the fraction of first steps in which both sides follow the original's caption, drawn per candidate.

    What these steps settle, mostly layout, is then the same on both sides, and each costs half. The paper has none.
    """
    num_candidates: int = 4
    """Candidates to render per triplet."""
    per_edit_type: dict[str, EditTypeRendering] = field(default_factory=dict)
    """What single edit types are rendered with instead: some bear more sharing, some need more candidates."""
    batch_size: int = 8
    """Pairs per batch; the result does not depend on it."""
    height: int | None = None
    """Image height in pixels; the model's own by default."""
    width: int | None = None
    """Image width in pixels; the model's own by default."""
    image_format: ImageFormat = "png"
    """Codec of the stored images; CLIP scores what comes out of it."""
    image_quality: int = 95
    """Quality of a lossy codec."""
    keep_rejected_images: bool = False
    """Keep the images of rejected candidates too."""
    seed: int = 0
    """Seed of the run; every draw is a hash of it, the triplet and the candidate's number."""

    def __post_init__(self) -> None:
        _check_positive(self, "num_inference_steps", "batch_size", "height", "width")
        _check_draws(self)
        _check(1 <= self.image_quality <= 100, f"image_quality must lie in 1..100, got {self.image_quality}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringConfig:
    """The CLIP that scores candidates."""

    clip_model: str = "ViT-L-14"
    """An open_clip architecture, or a folder that holds open_clip_config.json and its weights."""
    clip_pretrained: str | None = "openai"
    """open_clip's name of the weights; unused for a folder."""
    device: str = "auto"
    """Where to score."""
    batch_size: int = 64
    """Images per batch."""

    def __post_init__(self) -> None:
        _check_positive(self, "batch_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Least similarities for a pair to be accepted (paper, appendix A.2)."""

    original: float = 0.2
    """Original image against original prompt."""
    edited: float = 0.2
    """Edited image against edited prompt."""
    direction: float = 0.2
    """Change of image against change of text."""
    image: float = 0.7
    """Original image against edited image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteringConfig:
    """Which candidates become pairs."""

    thresholds: Thresholds = Thresholds()
    """For every edit type that has none of its own."""
    per_edit_type: dict[str, Thresholds] = field(default_factory=dict)
    """Thresholds of single edit types."""
    max_pairs_per_triplet: int = 4
    """Keep at most so many, best direction first."""

    def __post_init__(self) -> None:
        _check_positive(self, "max_pairs_per_triplet")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """Accepted pairs to a parquet dataset that `datasets.load_dataset` reads."""

    test_fraction: float = 0.05
    """Share of the triplets, by hash, that goes to the test split."""
    rows_per_shard: int = 1000
    """Pairs per parquet file."""
    seed: int = 0
    """Seed of the order of the rows."""
    license: str = "other"
    """SPDX identifier for the dataset card."""

    def __post_init__(self) -> None:
        _check_positive(self, "rows_per_shard")
        _check_unit("test_fraction", self.test_fraction)


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
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast precision; weights stay float32."""
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
        _check_positive(self, "max_train_samples", "resolution", "train_batch_size", "gradient_accumulation_steps")
        _check_positive(self, "max_train_steps", "learning_rate", "checkpointing_steps", "checkpoints_total_limit")
        _check_positive(self, "log_every", "learning_rate_conv_in", "timestep_bias_multiplier")
        _check_unit("timestep_bias_portion", self.timestep_bias_portion)
        begin, end = self.timestep_bias_begin, self.timestep_bias_end
        _check(
            0 <= begin < end,
            f"timestep_bias_begin must lie in [0, timestep_bias_end), got {begin} and {end}. Give the earlier first.",
        )
        p = self.conditioning_dropout_prob
        _check(0 <= p <= 1 / 3, f"conditioning_dropout_prob is spent three times, so it must lie in [0, 1/3], got {p}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """How well the editor edits and how much it keeps."""

    domain: str | None = None
    """`module:Class` of a domain that draws held-out edits and judges them; else the test split and CLIP alone."""
    num_edits: int = 490
    """Held-out edits for the oracle's figures."""
    num_sweep_edits: int = 70
    """Edits for the sweep of the image guidance."""
    image_guidance_scales: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    """Values of the sweep (paper, figure 8)."""
    guidance_scale: float = 7.5
    """Text guidance."""
    image_guidance_scale: float = 1.5
    """Image guidance outside the sweep."""
    num_inference_steps: int = 20
    """Denoising steps."""
    batch_size: int = 32
    """Edits per batch; the result does not depend on it."""
    device: str = "auto"
    """Where to edit."""
    seed: int = 1
    """Seed of the held-out edits and of the noise."""

    def __post_init__(self) -> None:
        _check_positive(self, "num_edits", "num_sweep_edits", "num_inference_steps", "batch_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """How Prefect runs the shards."""

    kind: Literal["threads", "processes", "ray"] = "threads"
    """One process with threads, one process per GPU, or a Ray cluster."""
    max_workers: int = 1
    """Shards at a time."""
    address: str | None = None
    """Ray cluster to join; a local one by default."""
    retries: int = 1
    """Times a failed shard is tried again."""

    def __post_init__(self) -> None:
        _check_positive(self, "max_workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """The whole pipeline."""

    out: Path = Path("runs/default")
    """The run folder."""
    prompts: PromptsConfig = PromptsConfig()
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    scoring: ScoringConfig = ScoringConfig()
    filtering: FilteringConfig = field(default_factory=FilteringConfig)
    dataset: DatasetConfig = DatasetConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runner: RunnerConfig = RunnerConfig()


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))  # type: ignore[no-any-return]


RESULT_FREE = {"device", "batch_size", "out", "log_every", "checkpoints_total_limit"}
"""Fields that change how a stage runs but not what it makes."""


def fingerprint(*parts: Any) -> str:
    """Hash of what decides a result: configs without their `RESULT_FREE` fields, and the fingerprints they build on."""

    def plain(part: Any) -> Any:
        if not dataclasses.is_dataclass(part):
            return part
        return {key: value for key, value in to_dict(part).items() if key not in RESULT_FREE}

    return content_hash(*(json.dumps(plain(part), sort_keys=True, default=str) for part in parts))
