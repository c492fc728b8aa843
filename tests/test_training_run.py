"""Whole trainings at tiny size: killed, resumed, exported, launched."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image
from safetensors.torch import load_file

from ip2p.config import PipelineConfig, TrainingConfig
from ip2p.store import RunFolder
from ip2p.store.journal import RecordFile
from ip2p.training import launch
from ip2p.training.__main__ import main
from ip2p.training.cache import LatentCache
from ip2p.training.checkpoint import (
    Progress,
    find_checkpoints,
    load_checkpoint,
    read_checkpoint,
    resume,
    write_checkpoint,
)
from ip2p.training.data import open_rows
from ip2p.training.filling import load_cache
from ip2p.training.flags import job_of
from ip2p.training.launching import run_child
from ip2p.training.loop import Interrupted, Stop
from ip2p.training.run import new_trainer
from ip2p.training.run import run as run_job
from ip2p.training.trainer import Trainer
from tests import processes
from tests.test_training import pair, tiny_training, write_pairs

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven pairs, so that batches of four run over the ends of epochs."""
    return write_pairs(tmp_path / "data", [pair(number) for number in range(7)])


def same_weights(first: Path, second: Path) -> bool:
    """Bit for bit."""
    left, right = load_file(first), load_file(second)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def run(config: TrainingConfig, data: str, output: Path, export: Path, stop: Stop) -> dict[str, Any]:
    """A training of a run, in this process."""
    return run_job(job_of(config, data, output=output, export=export), stop)


def start(config: TrainingConfig, data: Path, folder: Path) -> ForkServerProcess:
    """A training in a child process."""
    folder.mkdir(parents=True, exist_ok=True)
    job = job_of(config, str(data), output=folder / "training", export=folder / "model")
    (folder / "config.json").write_text(json.dumps(asdict(job)))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it
    return processes.fork(processes.training, ["--config", str(folder / "config.json")], folder / "log", environment)


@pytest.mark.slow
def test_a_training_stopped_at_any_step_ends_in_the_same_weights(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd, max_train_steps=9, checkpointing_steps=4, log_every=2, lr_scheduler="cosine")
    run(config, str(data), tmp_path / "whole", tmp_path / "whole-model", Stop())
    for steps in (3, 2):  # stopped by a wish after the third step, then after two more
        with pytest.raises(Interrupted):
            run(config, str(data), tmp_path / "cut", tmp_path / "cut-model", _StopAfter(steps))
    summary = run(config, str(data), tmp_path / "cut", tmp_path / "cut-model", Stop())
    assert summary["steps"] == 9
    for name in ("unet", "unet_ema"):
        file = f"checkpoint-9/{name}/diffusion_pytorch_model.safetensors"
        assert same_weights(tmp_path / "whole" / file, tmp_path / "cut" / file)
    logs = [
        [(e["step"], e["loss"]) for e in RecordFile(tmp_path / name / "loss.jsonl").read()] for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]
    assert [step for step, _ in logs[0]] == [2, 4, 6, 8, 9]


class _Countdown:
    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


class _StopAfter(Stop):
    """Wants to stop when it was asked so many times."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.requested = _Countdown(steps)  # type: ignore[assignment]


def test_a_column_is_balanced_over_the_pairs_that_can_be_used(tmp_path: Path, tiny_sd: Path) -> None:
    rows = [pair(number, edit_prompt=f"{number}", kind="add" if number < 6 else "size") for number in range(8)]
    rows[1]["edited_image"] = {"bytes": b"broken", "path": None}
    data = write_pairs(tmp_path / "data", rows)
    config = tiny_training(tiny_sd, max_train_steps=2, train_batch_size=4, cache_epochs=0.0)
    summary = run(replace(config, balance_column="kind"), str(data), tmp_path / "out", tmp_path / "model", Stop())
    assert (summary["samples"], summary["dropped"]) == (7, 1)
    (cache,) = (LatentCache(folder, 0.0) for folder in (tmp_path / "out" / "cache").iterdir())
    assert cache.row_numbers == [0, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match=r"has no column 'type'; its columns are: .*kind.*Set training.balance_column"):
        open_rows(str(data), replace(config, balance_column="type"))


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_killed_training_ends_in_the_same_weights(tmp_path: Path, data: Path, tiny_sd: Path, optim: str) -> None:
    options = {"checkpointing_steps": 3, "checkpoints_total_limit": 2, "learning_rate_conv_in": 5e-3, "optim": optim}
    config = tiny_training(tiny_sd, max_train_steps=60, **options)
    run(config, str(data), tmp_path / "whole" / "training", tmp_path / "whole" / "model", Stop())
    killed = tmp_path / "killed"
    child = start(config, data, killed)
    processes.wait_until(lambda: find_checkpoints(killed / "training"), child)
    child.join(np.random.default_rng().uniform(0, 1.0))
    processes.kill(child)
    assert not (killed / "model").exists()
    run(config, str(data), killed / "training", killed / "model", Stop())
    assert same_weights(tmp_path / "whole/model" / WEIGHTS, killed / "model" / WEIGHTS)
    assert len(find_checkpoints(killed / "training")) == 2


def test_checkpoints_of_other_settings_are_not_gone_on_from(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd, max_train_steps=2, lr_scheduler="constant")
    for name, seed in (("fresh", 1), ("used", 0), ("used", 1)):
        run(replace(config, seed=seed), str(data), tmp_path / name, tmp_path / f"{name}-model", Stop())
    assert same_weights(tmp_path / "fresh-model" / WEIGHTS, tmp_path / "used-model" / WEIGHTS)


@pytest.mark.slow
def test_a_training_at_a_constant_rate_can_be_made_longer(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd, max_train_steps=2, lr_scheduler="constant")
    run(config, str(data), tmp_path / "grown", tmp_path / "grown-model", Stop())
    steps: list[float] = [entry["step"] for entry in RecordFile(tmp_path / "grown" / "loss.jsonl").read()]
    run(replace(config, max_train_steps=4), str(data), tmp_path / "grown", tmp_path / "grown-model", Stop())
    run(replace(config, max_train_steps=4), str(data), tmp_path / "once", tmp_path / "once-model", Stop())
    assert steps == [2]
    assert [entry["step"] for entry in RecordFile(tmp_path / "grown" / "loss.jsonl").read()] == [2, 4]
    assert same_weights(tmp_path / "grown-model" / WEIGHTS, tmp_path / "once-model" / WEIGHTS)


def trainer_on(data: Path, folder: Path, config: TrainingConfig) -> Trainer:
    """A trainer whose steps can be taken one at a time."""
    accelerator = Accelerator(cpu=True)
    cache = load_cache(folder / "cache", open_rows(str(data), config), config, accelerator)
    return new_trainer(cache, config, accelerator)[0]


def test_a_cache_that_is_built_later_leaves_the_accelerator_its_optimizer(
    tmp_path: Path, data: Path, tiny_sd: Path
) -> None:
    """Without it, gradients of fp16 would be clipped at their scaled size, and DeepSpeed could not step."""
    config = tiny_training(tiny_sd)
    trainer = trainer_on(data, tmp_path, config)
    load_cache(tmp_path / "held-out", open_rows(str(data), config), config, trainer.accelerator)
    assert trainer.accelerator._optimizers == [trainer.trained.optimizer]


def test_a_step_of_two_halves_has_the_gradient_of_their_mean(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd, train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-6)
    trainer = trainer_on(data, tmp_path, config)
    expected = (trainer.loss(6) + trainer.loss(7)).item() / 2
    assert trainer.step(3)[0].item() == pytest.approx(expected, rel=1e-5)


def test_the_first_convolution_can_learn_faster_than_the_rest(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    options = {"learning_rate": 1e-5, "learning_rate_conv_in": 1e-2, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    trainer = trainer_on(data, tmp_path, tiny_training(tiny_sd, **options))
    before = {name: value.clone() for name, value in trainer.trained.denoiser.state_dict().items()}
    trainer.step(0)
    moved = {name: (value - before[name]).abs().max() for name, value in trainer.trained.denoiser.state_dict().items()}
    first = {name for name in moved if name.startswith("conv_in.")}
    assert all(9e-3 < moved[name] < 1.2e-2 for name in first)
    assert all(moved[name] < 1.2e-5 for name in moved.keys() - first)


def test_a_state_that_lies_otherwise_in_memory_goes_on_the_same(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    trainer = trainer_on(data, tmp_path, tiny_training(tiny_sd, lr_warmup_steps=0))
    trainer.step(0)
    path = write_checkpoint(tmp_path, trainer.trained, Progress(step=1), limit=None)
    trainer.step(1)
    expected = {name: value.clone() for name, value in trainer.trained.denoiser.state_dict().items()}
    state = torch.load(path / "optimizer.bin", weights_only=True)
    state["state"] = {n: {k: v.contiguous() for k, v in each.items()} for n, each in state["state"].items()}
    torch.save(state, path / "optimizer.bin")  # as another launch, or diffusers' script, writes it
    load_checkpoint(read_checkpoint(path), trainer.trained)
    trainer.step(1)
    assert all(torch.equal(value, expected[name]) for name, value in trainer.trained.denoiser.state_dict().items())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "unet/diffusion_pytorch_model.safetensors": cut,
    "unet_ema/diffusion_pytorch_model.safetensors": Path.unlink,
    "optimizer.bin": cut,
    "scheduler.bin": lambda path: path.write_bytes(b""),
    "state.json": lambda path: path.write_text('{"step": 2'),
    "unet": shutil.rmtree,
}


def test_a_damaged_checkpoint_is_named_and_the_newest_whole_one_taken(
    tmp_path: Path, data: Path, tiny_sd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = trainer_on(data, tmp_path, tiny_training(tiny_sd, use_ema=True)).trained
    fresh, output = Progress(fingerprint="the same"), tmp_path / "whole"
    for step, value in ((1, 0.25), (2, 0.5)):
        with torch.no_grad():
            next(trained.denoiser.parameters()).fill_(value)
        write_checkpoint(output, trained, replace(fresh, step=step), limit=None)
    for name, damage in DAMAGES.items():
        for asked in ("latest", "auto"):
            folder = tmp_path / f"{name.replace('/', '-')}-{asked}"
            shutil.copytree(output, folder)
            damage(folder / "checkpoint-2" / name)
            caplog.clear()
            assert resume(folder, trained, fresh, 9, asked).step == 1
            assert torch.all(next(trained.denoiser.parameters()) == 0.25)
            assert f"could not load {folder / 'checkpoint-2' / name.partition('/')[0]}" in caplog.text
        with pytest.raises(ValueError, match=r"could not load .*checkpoint-2.*Resume from another") as refused:
            resume(folder, trained, fresh, 9, "checkpoint-2")
        assert "\n" not in str(refused.value)


def test_without_a_whole_checkpoint_nothing_is_changed(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    trained = trainer_on(data, tmp_path, tiny_training(tiny_sd)).trained
    cut(write_checkpoint(tmp_path, trained, Progress(step=1), limit=None) / "optimizer.bin")
    weights = next(trained.denoiser.parameters())
    with torch.no_grad():
        weights.fill_(0.5)
    assert resume(tmp_path, trained, Progress(), 9, "latest") == Progress()
    assert torch.all(weights == 0.5)


@pytest.mark.slow
def test_training_overfits_four_pairs(tmp_path: Path, tiny_sd: Path) -> None:
    folder = write_pairs(tmp_path / "four", [pair(n) for n in range(4)])
    config = tiny_training(tiny_sd, train_batch_size=8, learning_rate=5e-3, lr_warmup_steps=0)
    trainer = trainer_on(folder, tmp_path, config)
    assert isinstance(trainer.pairs, LatentCache)
    for part in trainer.pairs.rows:  # the random autoencoder's own spread could not be learnt
        part["deviation"] = torch.zeros_like(part["deviation"])
        part["mean"] = torch.arange(4.0)[:, None, None, None, None].expand_as(part["mean"]) - 1.5
    with torch.no_grad():
        before = torch.stack([trainer.loss(10**6 + n) for n in range(4)]).mean()
    for step in range(60):
        trainer.step(step)
    with torch.no_grad():
        after = torch.stack([trainer.loss(10**6 + n) for n in range(4)]).mean()
    assert after < 0.4 * before


CHANGES = [
    {"mixed_precision": "bf16", "random_flip": True},
    {"snr_gamma": 5.0, "use_ema": False},
    {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 3.0, "learning_rate_conv_in": 1e-2},
]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.slow
def test_variants_of_the_loop_train(tmp_path: Path, data: Path, tiny_sd: Path, changes: dict[str, object]) -> None:
    config = tiny_training(tiny_sd, max_train_steps=2, gradient_checkpointing=True, **changes)
    summary = run(config, str(data), tmp_path / "out", tmp_path / "model", Stop())
    assert np.isfinite(summary["loss"])
    assert load_file(tmp_path / "model" / WEIGHTS)["conv_in.weight"].dtype == torch.float32


def test_a_users_mistake_is_one_line_and_exit_code_two(
    tmp_path: Path, data: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(asdict(tiny_training(tiny_sd, edit_prompt_column="words"))))
    flags = ["--train_data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    assert main(["--config", str(tmp_path / "config.json"), *flags]) == 2
    assert "error: " in (told := capsys.readouterr().out)
    assert "no column 'words'" in told


@pytest.mark.slow
def test_a_launched_training_is_exported_and_not_repeated(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    config = PipelineConfig(out=tmp_path / "run", training=tiny_training(tiny_sd, max_train_steps=3))
    summary = launch(config, str(data))
    assert (summary["steps"], summary["samples"], summary["dropped"]) == (3, 7, 0)
    folder = RunFolder(config.out)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder.model)
    assert pipeline.unet.config.in_channels == 8
    assert (folder.model / "tokenizer" / "vocab.json").exists()
    assert not list(folder.model.rglob("*.bin"))
    average = folder.training / "checkpoint-3/unet_ema/diffusion_pytorch_model.safetensors"
    assert same_weights(folder.model / WEIGHTS, average)
    image = Image.new("RGB", (64, 64), "red")
    edited = pipeline("make it blue", image=image, num_inference_steps=2, guidance_scale=3.0).images[0]
    assert edited.size == (64, 64)
    before = (folder.model / WEIGHTS).stat().st_mtime_ns
    assert launch(config, str(data)) == summary
    assert (folder.model / WEIGHTS).stat().st_mtime_ns == before


def test_fp16_without_a_gpu_is_refused(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("fp16 works on a GPU")
    with pytest.raises(ValueError, match="mixed_precision fp16 needs a GPU"):
        run(tiny_training(tiny_sd, mixed_precision="fp16"), str(data), tmp_path / "out", tmp_path / "model", Stop())


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ("print('error: no such column'); exit(2)", ValueError, "^no such column$"),
        ("raise OSError('disk full')", RuntimeError, "exit code 1(.|\n)*disk full"),
    ],
)
def test_a_child_that_fails_says_why(program: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_child([sys.executable, "-c", program])
