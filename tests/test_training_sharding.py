"""Weights split over processes train, stop and go on as whole ones do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_multi_gpu_env
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ip2p.config import TrainingJob
from ip2p.store.journal import RecordFile
from ip2p.training.__main__ import main
from ip2p.training.data import open_rows
from ip2p.training.launching import LAUNCH_CONFIGS
from ip2p.training.run import new_accelerator, new_trainer, open_pairs
from ip2p.training.trainer import Trainer
from tests import fsdp_on_cpu, processes
from tests.test_training import pair, write_pairs
from tests.test_training_run import same_weights

pytestmark = pytest.mark.slow
FILE = "diffusion_pytorch_model.safetensors"
WHOLE = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
SPLIT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pairs, so that batches of four run over the ends of epochs, and some to hold out."""
    folder = write_pairs(tmp_path_factory.mktemp("pairs"), [pair(number) for number in range(7)])
    return write_pairs(folder, [pair(number) for number in range(20, 23)], "test-00000-of-00001.parquet")


def words(model: Path, data: Path, output: Path, *flags: str) -> list[str]:
    """Six steps with a checkpoint after each third; later flags overrule."""
    found = [f"--pretrained_model_name_or_path={model}", f"--train_data_dir={data}", f"--output_dir={output}"]
    found += ["--original_image_column=original_image", "--resolution=64", "--lr_warmup_steps=0", "--log_every=1"]
    found += ["--conditioning_dropout_prob=0.1", "--use_ema", "--random_flip", "--train_batch_size=2"]
    return [*found, "--max_train_steps=6", "--checkpointing_steps=3", "--mixed_precision=no", *flags]


def launch_words(config: list[str], launch: str = "fsdp") -> list[str]:
    """Two processes of a shipped launch config, on this machine's CPU."""
    file = str(LAUNCH_CONFIGS / f"{launch}.yaml")
    return ["--config_file", file, "--num_processes=2", "--main_process_port=0", "-m", "tests.fsdp_on_cpu", *config]


def launch_split(config: list[str], launch: str = "fsdp") -> None:
    """Trains as `accelerate launch` starts it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch_words(config, launch)]
    done = subprocess.run(command, env=os.environ | SPLIT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def split_environment() -> dict[str, str]:
    """What `accelerate launch` hands to the processes of the shipped config that splits weights."""
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(launch_words([])))
    launched: dict[str, str] = prepare_multi_gpu_env(arguments)
    return os.environ | launched | SPLIT


def run_split(config: list[str], folder: Path, **environment: str) -> None:
    processes.run_ranks(fsdp_on_cpu.train, config, folder / "log", split_environment() | environment)


def run_whole(config: list[str], folder: Path) -> None:
    processes.run(processes.training, config, folder / "log", os.environ | WHOLE)


def assert_close(first: Path, second: Path) -> None:
    left, right = load_file(first), load_file(second)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_sd: Path) -> Path:
    """A training of two processes, each with half of the weights."""
    output = tmp_path_factory.mktemp("split")
    launch_split(words(tiny_sd, data, output))
    return output


def assert_same_training(found: Path, expected: Path) -> None:
    """Losses, weights, average and the optimizer's state, to the tolerance of sums in another order."""
    losses = [[entry["loss"] for entry in RecordFile(path / "loss.jsonl").read()] for path in (found, expected)]
    assert len(losses[1]) == 6
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    checkpoints = [f"checkpoint-{step}/{name}/{FILE}" for step in (3, 6) for name in ("unet", "unet_ema")]
    for name in (f"unet/{FILE}", *checkpoints):
        assert_close(expected / name, found / name)
    states = [torch.load(path / "checkpoint-6/optimizer.bin", weights_only=True) for path in (found, expected)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for number, state in states[1]["state"].items():
        assert states[0]["state"][number].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(states[0]["state"][number][name], value, atol=2e-5, rtol=1e-2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_sd: Path) -> Path:
    """The same training in one process."""
    output = tmp_path_factory.mktemp("whole")
    run_whole(words(tiny_sd, data, output, "--train_batch_size=4"), output)
    return output


def test_split_weights_train_as_whole_ones_at_the_same_batch(split: Path, whole: Path) -> None:
    assert_same_training(split, whole)


def test_a_split_trainings_export_edits_in_diffusers_pipeline(split: Path) -> None:
    assert same_weights(split / "unet" / FILE, split / "checkpoint-6/unet_ema" / FILE)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(split)
    edited = pipeline("make it blue", image=Image.new("RGB", (64, 64), "red"), num_inference_steps=2).images[0]
    assert edited.size == (64, 64)
    assert [json.loads(line)["step"] for line in (split / "validation.jsonl").read_text().splitlines()] == [2, 4, 6]


def test_a_checkpoint_of_a_split_training_goes_on_whole_and_the_other_way_round(
    tmp_path: Path, split: Path, whole: Path, data: Path, tiny_sd: Path
) -> None:
    resumed = ["--train_batch_size=4", f"--resume_from_checkpoint={split}/checkpoint-3"]
    run_whole(words(tiny_sd, data, tmp_path / "1", *resumed), tmp_path)
    run_split(words(tiny_sd, data, tmp_path / "2", f"--resume_from_checkpoint={whole}/checkpoint-3"), tmp_path)
    for name in ("1", "2"):
        assert [entry["step"] for entry in RecordFile(tmp_path / name / "loss.jsonl").read()] == [4, 5, 6]
        assert_close(whole / "checkpoint-6/unet" / FILE, tmp_path / name / "checkpoint-6/unet" / FILE)
        assert_close(whole / "unet" / FILE, tmp_path / name / "unet" / FILE)


def test_a_split_training_that_is_killed_ends_in_the_same_weights(
    tmp_path: Path, split: Path, data: Path, tiny_sd: Path
) -> None:
    config = words(tiny_sd, data, tmp_path, "--resume_from_checkpoint=latest")
    with processes.ranks(fsdp_on_cpu.train, config, tmp_path / "log", split_environment()) as children:
        processes.wait_until(lambda: list(tmp_path.glob("checkpoint-*")), children[0])
        processes.kill(*children)
    assert not (tmp_path / "model_index.json").exists()
    run_split(config, tmp_path)
    for name in (f"unet/{FILE}", f"checkpoint-6/unet/{FILE}"):
        assert same_weights(split / name, tmp_path / name)


def test_each_process_holds_half_of_weights_states_and_average(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    run_split(words(tiny_sd, data, tmp_path / "out"), tmp_path, **{fsdp_on_cpu.SIZES: str(tmp_path)})
    sizes = [json.loads((tmp_path / f"sizes-{rank}.json").read_text()) for rank in (0, 1)]
    for what, share in (("weights", 1), ("states", 2), ("average", 1)):
        assert sizes[0][what] + sizes[1][what] == share * sizes[0]["all"]
        for found in sizes:
            assert 0.45 < found[what] / (share * found["all"]) < 0.55


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> Iterator[None]:
    """Under FSDP, with one process that holds all parts."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    wraps = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    wraps["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "BasicTransformerBlock,ResnetBlock2D"
    for name, value in (place | wraps | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(PartialState, "_prepare_backend", fsdp_on_cpu.backend)
    monkeypatch.setattr(PartialState, "set_device", fsdp_on_cpu.set_device)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def trainer_of(data: Path, model: Path, folder: Path, **changes: Any) -> Trainer:
    """A trainer whose steps can be taken one at a time."""
    fixed: dict[str, Any] = {"resolution": 64, "train_batch_size": 4, "lr_warmup_steps": 0, "mixed_precision": "no"}
    places = {"train_data_dir": str(data), "output_dir": str(folder), "pretrained_model_name_or_path": str(model)}
    job = TrainingJob(**(fixed | places | changes))
    accelerator = new_accelerator(job)
    return new_trainer(open_pairs(open_rows(job.data, job), job, accelerator, folder), job, accelerator)[0]


def test_blocks_are_gathered_one_at_a_time(tmp_path: Path, data: Path, tiny_sd: Path, alone: None) -> None:
    unet = trainer_of(data, tiny_sd, tmp_path).trained.denoiser
    units = {type(module).__name__ for module in unet.modules() if isinstance(module, FSDPModule)}
    assert units >= {"FSDPUNet2DConditionModel", "FSDPBasicTransformerBlock", "FSDPResnetBlock2D"}
    assert all(isinstance(parameter, DTensor) for parameter in unet.parameters())


def steps_of(trainer: Trainer) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, gradients' norms and weights after three steps."""
    found = [trainer.step(number) for number in range(3)]
    unet = trainer.trained.whole(trainer.trained.average or trainer.trained.denoiser, is_main=True)
    assert unet is not None
    return [float(loss) for loss, _ in found], [float(norm) for _, norm in found], unet.state_dict()


VARIANTS: list[dict[str, Any]] = [
    {"gradient_accumulation_steps": 2, "learning_rate_conv_in": 1e-3},
    {"use_lora": True, "use_ema": False},
    {"use_lora": True, "offload_ema": True},
    {"gradient_checkpointing": True, "use_ema": False},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_variants_step_as_they_do_without_fsdp(
    tmp_path: Path, data: Path, tiny_sd: Path, request: pytest.FixtureRequest, changes: dict[str, Any]
) -> None:
    losses, norms, weights = steps_of(trainer_of(data, tiny_sd, tmp_path, **changes))
    AcceleratorState._reset_state(reset_partial_state=True)
    request.getfixturevalue("alone")
    found = steps_of(trainer_of(data, tiny_sd, tmp_path, **changes))
    np.testing.assert_allclose(found[0], losses, rtol=1e-5)
    np.testing.assert_allclose(found[1], norms, rtol=1e-4)
    assert found[2].keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(found[2][name], value, atol=2e-5, rtol=0)


def test_bf16_computes_in_bf16_and_keeps_float32_masters(
    tmp_path: Path, data: Path, tiny_sd: Path, request: pytest.FixtureRequest
) -> None:
    exact = [float(loss) for loss in steps_of(trainer_of(data, tiny_sd, tmp_path))[0]]
    AcceleratorState._reset_state(reset_partial_state=True)
    request.getfixturevalue("alone")
    trainer = trainer_of(data, tiny_sd, tmp_path, mixed_precision="bf16")
    losses = steps_of(trainer)[0]
    np.testing.assert_allclose(losses, exact, rtol=0.02)
    assert losses != exact
    assert {parameter.dtype for parameter in trainer.trained.denoiser.parameters()} == {torch.float32}
    assert {v.dtype for state in trainer.trained.optimizer.state.values() for v in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--optim=muon", "muon needs whole matrices"),
        ("--use_8bit_adam", "AdamW of 8 bits cannot step split weights"),
    ],
)
def test_what_cannot_be_split_is_refused(
    tmp_path: Path, data: Path, tiny_sd: Path, alone: None, capsys: pytest.CaptureFixture[str], flag: str, message: str
) -> None:
    assert main(words(tiny_sd, data, tmp_path, flag)) == 2
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FSDP_VERSION", "1", "FSDP must be of version 2, got 1"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "Set it to false and give --gradient_checkpointing"),
        ("FSDP_OFFLOAD_PARAMS", "true", "Set fsdp_offload_params: false"),
    ],
)
def test_launch_settings_that_the_trainer_cannot_keep_are_refused(
    *,
    tmp_path: Path,
    data: Path,
    tiny_sd: Path,
    alone: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(name, value)
    assert main(words(tiny_sd, data, tmp_path)) == 2
    assert message in capsys.readouterr().out


def test_a_flow_transformer_trains_split_as_it_does_whole(tmp_path: Path, data: Path, tiny_sd3: Path) -> None:
    outputs = [tmp_path / name for name in ("split", "whole")]
    for output, train, size in zip(outputs, (run_split, run_whole), (2, 4), strict=True):
        output.mkdir()
        train(words(tiny_sd3, data, output, f"--train_batch_size={size}"), output)
    losses = [[entry["loss"] for entry in RecordFile(path / "loss.jsonl").read()] for path in outputs]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    for name in ("transformer", "checkpoint-3/unet", "checkpoint-6/unet_ema"):
        assert_close(*(path / name / FILE for path in outputs))
