"""The flags of diffusers' two scripts, as those scripts have them, and what becomes of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ip2p.config import TrainingConfig, TrainingJob
from ip2p.training.flags import job_of, parse

DATA = ["--train_data_dir", "pairs"]
NONE = (
    *("revision", "variant", "non_ema_revision", "pretrained_vae_model_name_or_path", "cache_dir", "max_train_samples"),
    *("dataset_name", "dataset_config_name", "val_image_url_or_path", "validation_prompt", "max_train_steps"),
    *("conditioning_dropout_prob", "mixed_precision", "checkpoints_total_limit", "resume_from_checkpoint"),
    "hub_model_id",
)
FALSE = (
    *("center_crop", "random_flip", "gradient_checkpointing", "scale_lr", "use_8bit_adam", "allow_tf32", "use_ema"),
    *("push_to_hub", "enable_xformers_memory_efficient_attention"),
)
DEFAULTS = {
    **dict.fromkeys(NONE),
    **dict.fromkeys(FALSE, False),
    "original_image_column": "input_image",
    "edited_image_column": "edited_image",
    "edit_prompt_column": "edit_prompt",
    "num_validation_images": 4,
    "output_dir": "instruct-pix2pix-model",
    "resolution": 256,
    "train_batch_size": 16,
    "num_train_epochs": 100,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "dataloader_num_workers": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "logging_dir": "logs",
    "report_to": "tensorboard",
    "checkpointing_steps": 500,
    "vae_precision": "fp32",
    "rank": 4,
}
VALUES = {
    "pretrained_model_name_or_path": "base",
    "revision": "main",
    "variant": "fp16",
    "dataset_name": "owner/pairs",
    "dataset_config_name": "small",
    "train_data_dir": "folder",
    "original_image_column": "a",
    "edited_image_column": "b",
    "edit_prompt_column": "c",
    "val_image_url": "one.png",
    "validation_prompt": "make it red",
    "num_validation_images": "2",
    "validation_epochs": "3",
    "max_train_samples": "10",
    "output_dir": "out",
    "cache_dir": "there",
    "seed": "7",
    "resolution": "128",
    "center_crop": None,
    "random_flip": None,
    "train_batch_size": "8",
    "num_train_epochs": "2",
    "max_train_steps": "5",
    "gradient_accumulation_steps": "4",
    "gradient_checkpointing": None,
    "learning_rate": "5e-05",
    "scale_lr": None,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": "0",
    "conditioning_dropout_prob": "0.05",
    "use_8bit_adam": None,
    "allow_tf32": None,
    "use_ema": None,
    "non_ema_revision": "non-ema",
    "dataloader_num_workers": "2",
    "adam_beta1": "0.8",
    "adam_beta2": "0.99",
    "adam_weight_decay": "0.0",
    "adam_epsilon": "1e-06",
    "max_grad_norm": "2.0",
    "push_to_hub": None,
    "hub_token": "hf_secret",
    "hub_model_id": "owner/model",
    "logging_dir": "seen",
    "mixed_precision": "bf16",
    "report_to": "wandb",
    "local_rank": "0",
    "checkpointing_steps": "50",
    "checkpoints_total_limit": "3",
    "resume_from_checkpoint": "latest",
    "enable_xformers_memory_efficient_attention": None,
}
"""Every flag of the Stable Diffusion script, with a value that is not its default."""
XL_VALUES = {
    "pretrained_vae_model_name_or_path": "vae",
    "vae_precision": "fp16",
    "val_image_url_or_path": "one.png",
    "validation_steps": "30",
    "crops_coords_top_left_h": "8",
    "crops_coords_top_left_w": "16",
}
"""What the XL script has beside them; it lacks `val_image_url` and `validation_epochs`."""
SD_ALONE = ("val_image_url", "validation_epochs")
XL_FLAGS = {name: value for name, value in VALUES.items() if name not in SD_ALONE} | XL_VALUES
OTHER_NAMES = {"val_image_url": "val_image_url_or_path"}
NOT_KEPT = ("hub_token", "local_rank")


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)


def test_what_is_left_out_is_what_the_scripts_take() -> None:
    job = parse(["--pretrained_model_name_or_path", "base", *DATA])
    assert {name: getattr(job, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("flags", [VALUES, XL_FLAGS], ids=["sd", "xl"])
@pytest.mark.parametrize("joined", [False, True])
def test_every_flag_of_both_scripts_is_taken_in_its_spelling(flags: dict[str, str | None], joined: bool) -> None:
    words = []
    for name, value in flags.items():
        given = [f"--{name}", *([] if value is None else [value])]
        words += ["=".join(given)] if joined else given
    job = parse(words)
    for name, value in flags.items():
        if name not in NOT_KEPT:
            found = getattr(job, OTHER_NAMES.get(name, name))
            assert (found is True) if value is None else (str(found) == value), name


def test_those_are_51_flags_and_55() -> None:
    assert (len(VALUES), len(XL_FLAGS)) == (51, 55)


def test_hyphens_are_as_good_as_underscores() -> None:
    job = parse(["--pretrained-model-name-or-path", "base", "--train-data-dir", "pairs", "--use-lora", "--no-cache"])
    assert job.use_lora and not job.cache and job.data == "pairs"


def test_a_token_goes_where_the_hub_looks_and_into_no_config() -> None:
    job = parse(["--pretrained_model_name_or_path", "base", *DATA, "--hub_token", "hf_secret"])
    assert os.environ.pop("HF_TOKEN") == "hf_secret"
    assert "hf_secret" not in repr(job)


def test_what_ours_has_beside_them_is_there_too() -> None:
    flags = "--use_lora --rank 8 --snr_gamma 5 --noise_offset 0.1 --prediction_type v_prediction --offload_ema"
    more = "--lr_num_cycles 2 --lr_power 0.5 --optim muon --scale_condition_latents --compile --streaming"
    job = parse(["--pretrained_model_name_or_path", "base", *DATA, *flags.split(), *more.split()])
    assert (job.rank, job.snr_gamma, job.noise_offset, job.prediction_type) == (8, 5.0, 0.1, "v_prediction")
    assert (job.lr_num_cycles, job.lr_power, job.optim) == (2, 0.5, "muon")
    assert job.use_lora and job.offload_ema and job.scale_condition_latents and job.compile and job.streaming


def test_a_training_without_data_says_so() -> None:
    with pytest.raises(ValueError, match="Give --dataset_name or --train_data_dir"):
        parse(["--pretrained_model_name_or_path", "base"])


def test_an_unknown_flag_ends_with_a_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--pretrained_model_name_or_path", "base", *DATA, "--learning_rat", "1"])
    assert "learning" in capsys.readouterr().err


def test_a_runs_training_keeps_its_settings_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = TrainingConfig(pretrained_model_name_or_path="base", rank=9)
    job = job_of(config, "pairs", output=tmp_path / "training", export=tmp_path / "model")
    assert isinstance(job, TrainingJob)
    assert (job.rank, job.use_ema, job.resume_from_checkpoint) == (9, True, "auto")
