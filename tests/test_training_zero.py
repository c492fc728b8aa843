"""Under DeepSpeed's ZeRO, a training is what it is without; run for real where DeepSpeed is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from diffusers import StableDiffusionInstructPix2PixPipeline

from ip2p.store.journal import RecordFile
from tests.test_training_run import same_weights
from tests.test_training_sharding import (
    FILE,
    assert_close,
    assert_same_training,
    data,
    launch_split,
    run_split,
    whole,
    words,
)

__all__ = ["data", "whole"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_sd: Path) -> Path:
    """A training of two processes, each with half of the masters."""
    output = tmp_path_factory.mktemp("zero")
    launch_split(words(tiny_sd, data, output), "deepspeed")
    return output


def test_split_masters_train_as_whole_ones_at_the_same_batch(split: Path, whole: Path) -> None:
    assert_same_training(split, whole)
    assert same_weights(split / "unet" / FILE, split / "checkpoint-6/unet_ema" / FILE)
    assert StableDiffusionInstructPix2PixPipeline.from_pretrained(split).unet.config.in_channels == 8


def test_accumulated_micro_steps_are_one_step(tmp_path: Path, whole: Path, data: Path, tiny_sd: Path) -> None:
    flags = ["--train_batch_size=1", "--gradient_accumulation_steps=2", "--max_train_steps=3", "--use_ema"]
    launch_split(words(tiny_sd, data, tmp_path / "two", *flags), "deepspeed")
    run_split(words(tiny_sd, data, tmp_path / "one", *flags), tmp_path)
    losses = [[entry["loss"] for entry in RecordFile(tmp_path / name / "loss.jsonl").read()] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name in ("unet", "unet_ema"):
        assert_close(tmp_path / "one/checkpoint-3" / name / FILE, tmp_path / "two/checkpoint-3" / name / FILE)


def test_checkpoints_go_on_under_zero_whoever_wrote_them(
    tmp_path: Path, split: Path, whole: Path, data: Path, tiny_sd: Path
) -> None:
    for name, source in (("own", split), ("other", whole)):
        config = words(tiny_sd, data, tmp_path / name, f"--resume_from_checkpoint={source}/checkpoint-3")
        launch_split(config, "deepspeed")
        assert [entry["step"] for entry in RecordFile(tmp_path / name / "loss.jsonl").read()] == [4, 5, 6]
        assert_close(whole / "checkpoint-6/unet" / FILE, tmp_path / name / "checkpoint-6/unet" / FILE)
        assert_close(whole / "unet" / FILE, tmp_path / name / "unet" / FILE)
    assert same_weights(split / "unet" / FILE, tmp_path / "own" / "unet" / FILE)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--use_lora", "adapters have small states"),
        ("--optim=muon", "muon needs whole matrices"),
    ],
)
def test_settings_that_zero_was_not_tried_with_are_refused(
    tmp_path: Path, data: Path, tiny_sd: Path, flag: str, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        launch_split(words(tiny_sd, data, tmp_path, flag), "deepspeed")


def test_bf16_keeps_float32_weights(tmp_path: Path, split: Path, data: Path, tiny_sd: Path) -> None:
    launch_split(words(tiny_sd, data, tmp_path, "--mixed_precision=bf16", "--max_train_steps=2"), "deepspeed")
    losses = [[entry["loss"] for entry in RecordFile(path / "loss.jsonl").read()][:2] for path in (tmp_path, split)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
