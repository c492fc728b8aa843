"""A training by itself: what to train on and where the results go, beside all knobs of the training."""

from __future__ import annotations

from dataclasses import dataclass

from ip2p.config.checks import check
from ip2p.config.training import TrainingConfig


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
