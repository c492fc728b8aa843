"""`python -m ip2p.training` in the place of diffusers' scripts: layout, checkpoints, validation, trackers, adapters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import (
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ip2p.models.stable_diffusion import widen_conv_in
from ip2p.store.journal import RecordFile
from ip2p.training.__main__ import main
from ip2p.training.lora import LORA_FILE, load_lora
from ip2p.training.trackers import check_trackers
from tests import processes
from tests.test_training import pair, png, write_pairs
from tests.test_training_run import same_weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_accelerator")]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
COLUMNS = "--original_image_column=original_image"
ON_CPU = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_pairs(tmp_path / "data", [pair(number) for number in range(7)])
    return write_pairs(folder, [pair(number) for number in range(20, 23)], "test-00000-of-00001.parquet")


def train(model: Path, data: Path, output: Path, *flags: str) -> int:
    """A training by the command line, in this process."""
    words = [f"--pretrained_model_name_or_path={model}", f"--train_data_dir={data}", "--output_dir", str(output)]
    fixed = [COLUMNS, "--resolution", "64", "--train_batch_size", "4", "--lr_warmup_steps", "0", "--seed", "3"]
    return main([*words, *fixed, *flags])


def edit(pipeline: Any) -> np.ndarray:
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(0)}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    size = {"height": 64, "width": 64} if hasattr(pipeline, "text_encoder_2") else {}
    return np.asarray(pipeline("make it blue", image=image, output_type="np", **options, **size).images[0])


def test_the_layout_is_that_of_the_scripts(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    output = tmp_path / "out"
    flags = ["--max_train_steps", "6", "--checkpointing_steps", "2", "--checkpoints_total_limit", "2", "--use_ema"]
    assert train(tiny_sd, data, output, *flags) == 0
    checkpoints = sorted(path.name for path in output.glob("checkpoint*"))
    assert checkpoints == ["checkpoint-4", "checkpoint-6"]
    assert {path.name for path in (output / "checkpoint-6").iterdir()} >= {"unet", "unet_ema", "optimizer.bin"}
    index = json.loads((output / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    assert StableDiffusionInstructPix2PixPipeline.from_pretrained(output).unet.config.in_channels == 8
    assert same_weights(output / WEIGHTS, output / "checkpoint-6/unet_ema/diffusion_pytorch_model.safetensors")
    assert list((output / "logs").rglob("events.out.tfevents.*"))
    card = (output / "README.md").read_text()
    assert (
        "StableDiffusionInstructPix2PixPipeline" in card
        and "7 pairs" in card
        and "pipeline_tag: image-to-image" in card
    )


def test_without_steps_whole_epochs_are_trained(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    assert train(tiny_sd, data, tmp_path / "out", "--num_train_epochs", "3") == 0
    assert json.loads((tmp_path / "out/finished.json").read_text())["summary"]["steps"] == 3 * 2


@pytest.mark.parametrize("flags", [[], ["--optim", "muon"], ["--use_lora", "--use_ema"]])
def test_a_training_goes_on_from_its_latest_checkpoint(
    tmp_path: Path, data: Path, tiny_sd: Path, flags: list[str]
) -> None:
    common = ["--checkpointing_steps", "2", "--lr_scheduler", "constant", *flags]
    assert train(tiny_sd, data, tmp_path / "whole", "--max_train_steps", "6", *common) == 0
    assert train(tiny_sd, data, tmp_path / "cut", "--max_train_steps", "4", *common) == 0
    assert (
        train(tiny_sd, data, tmp_path / "cut", "--max_train_steps", "6", "--resume_from_checkpoint", "latest", *common)
        == 0
    )
    assert same_weights(tmp_path / "whole" / WEIGHTS, tmp_path / "cut" / WEIGHTS)
    elsewhere = ["--resume_from_checkpoint", str(tmp_path / "cut/checkpoint-4")]
    assert train(tiny_sd, data, tmp_path / "new", "--max_train_steps", "6", *elsewhere, *common) == 0
    assert same_weights(tmp_path / "whole" / WEIGHTS, tmp_path / "new" / WEIGHTS)


def test_a_checkpoint_that_is_not_there_is_named(
    tmp_path: Path, data: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_sd, data, tmp_path / "out", "--max_train_steps", "1") == 0
    assert train(tiny_sd, data, tmp_path / "out", "--resume_from_checkpoint", "checkpoint-9") == 2
    assert "there is no checkpoint checkpoint-9" in (told := capsys.readouterr().out) and "checkpoint-1." in told


class Scripts:
    """The state of diffusers' scripts: accelerate's own, with their hooks for the UNet and its average."""

    def __init__(self, model: Path) -> None:
        self.accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        unet = widen_conv_in(UNet2DConditionModel.from_pretrained(model / "unet"), 8)
        self.ema = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
        schedule = get_scheduler("constant", optimizer, num_warmup_steps=0, num_training_steps=6)
        self.unet, self.optimizer, self.schedule = self.accelerator.prepare(unet, optimizer, schedule)
        self.accelerator.register_save_state_pre_hook(self._save)
        self.accelerator.register_load_state_pre_hook(self._load)

    def _save(self, models: list[Any], weights: list[Any], folder: str) -> None:
        self.ema.save_pretrained(os.path.join(folder, "unet_ema"))
        for model in models:
            model.save_pretrained(os.path.join(folder, "unet"))
            weights.pop()

    def _load(self, models: list[Any], folder: str) -> None:
        self.ema.load_state_dict(
            EMAModel.from_pretrained(os.path.join(folder, "unet_ema"), UNet2DConditionModel).state_dict()
        )
        loaded = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        models.pop().load_state_dict(loaded.state_dict())

    def step(self) -> None:
        inputs = (
            torch.randn(2, 8, 16, 16),
            torch.tensor([10, 900]),
            torch.randn(2, 8, self.unet.config.cross_attention_dim),
        )
        self.unet(*inputs).sample.square().mean().backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())


def test_a_checkpoint_of_the_scripts_is_gone_on_from(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    scripts = Scripts(tiny_sd)
    for _ in range(4):
        scripts.step()
    scripts.accelerator.save_state(str(tmp_path / "out/checkpoint-4"))
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = ["--resume_from_checkpoint", "latest", "--max_train_steps", "5", "--use_ema", "--learning_rate", "1e-30"]
    assert train(tiny_sd, data, tmp_path / "out", *flags) == 0
    after = load_file(tmp_path / "out/checkpoint-5" / WEIGHTS)
    for name, value in scripts.unet.state_dict().items():
        torch.testing.assert_close(after[name], value, atol=2e-4, rtol=0)  # one step at the checkpoint's own rate
    state = torch.load(tmp_path / "out/checkpoint-5/optimizer.bin", weights_only=True)["state"]
    assert {float(each["step"]) for each in state.values()} == {5.0}


def test_our_checkpoint_loads_in_the_scripts(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    flags = ["--max_train_steps", "3", "--checkpointing_steps", "3", "--use_ema"]
    assert train(tiny_sd, data, tmp_path / "out", *flags) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    scripts, folder = Scripts(tiny_sd), tmp_path / "out/checkpoint-3"
    scripts.accelerator.load_state(str(folder))
    ours, average = load_file(folder / WEIGHTS), load_file(folder / "unet_ema/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, ours[name]) for name, value in scripts.unet.state_dict().items())
    names = [name for name, _ in scripts.unet.named_parameters()]
    assert all(torch.equal(value, average[name]) for name, value in zip(names, scripts.ema.shadow_params, strict=True))
    assert scripts.ema.optimization_step == 3
    assert scripts.schedule.scheduler.last_epoch == 3
    scripts.step()


def test_an_editor_is_trained_further(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    assert train(tiny_sd, data, tmp_path / "first", "--max_train_steps", "1") == 0
    assert (
        train(tmp_path / "first", data, tmp_path / "second", "--max_train_steps", "1", "--learning_rate", "1e-30") == 0
    )
    assert same_weights(tmp_path / "first" / WEIGHTS, tmp_path / "second" / WEIGHTS)


@pytest.mark.parametrize("scaled", [False, True])
def test_an_xl_is_trained_and_exported(tmp_path: Path, data: Path, tiny_xl: Path, scaled: bool) -> None:
    output = tmp_path / "out"
    flags = ["--max_train_steps", "2", "--conditioning_dropout_prob", "0.05", "--random_flip", "--use_ema"]
    picture = ["--val_image_url_or_path", str(picture_of(tmp_path)), "--validation_prompt", "make it red"]
    limits = ["--validation_steps", "2", "--num_validation_images", "1"]
    more = ["--scale_condition_latents"] if scaled else []
    assert train(tiny_xl, data, output, *flags, *picture, *limits, *more) == 0
    pipeline = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(output)
    assert pipeline.unet.config.in_channels == 8 and pipeline.is_cosxl_edit is scaled
    assert edit(pipeline).shape == (64, 64, 3)
    assert sorted(path.name for path in (output / "validation_images").iterdir()) == ["step_2_val_img_0.png"]


def picture_of(folder: Path, size: tuple[int, int] = (96, 64)) -> Path:
    path = folder / "picture.png"
    path.write_bytes(png(size)["bytes"])
    return path


def scalars(output: Path) -> dict[str, list[int]]:
    """Steps at which tensorboard has figures, by name; images too."""
    events = EventAccumulator(str(output / "logs/instruct-pix2pix"))
    events.Reload()
    found = {name: [each.step for each in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return found | {name: [each.step for each in events.Images(name)] for name in events.Tags()["images"]}


def test_validation_comes_at_its_steps_to_the_tracker_and_to_disk(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    output = tmp_path / "out"
    wanted = tmp_path / "wanted.jsonl"
    picture_of(tmp_path)
    wanted.write_text(json.dumps({"image": "picture.png", "edit_prompt": "make it green"}) + "\n")
    one = ["--val_image_url", str(picture_of(tmp_path)), "--validation_prompt", "make it red"]
    flags = ["--max_train_steps", "5", "--validation_steps", "2", "--num_validation_images", "2", "--log_every", "1"]
    assert train(tiny_sd, data, output, *flags, *one, "--validation_file", str(wanted)) == 0
    names = sorted(path.name for path in (output / "validation_images").iterdir())
    assert names == [f"step_{step}_val_img_{number}.png" for step in (2, 4, 5) for number in range(4)]
    assert Image.open(output / "validation_images/step_5_val_img_0.png").size == (96, 64)
    seen = scalars(output)
    for name in ("train_loss", "lr", "grad_norm", "pairs_per_second"):
        assert seen[name] == [1, 2, 3, 4, 5]
    assert seen["held_out_loss"] == seen["held_out_loss_750_1000"] == [2, 4, 5]
    assert seen["validation/picture.png: make it red (3)"] == [2, 4, 5]
    rows = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]


def test_validating_changes_nothing_of_the_training(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    one = [
        "--val_image_url",
        str(picture_of(tmp_path)),
        "--validation_prompt",
        "make it red",
        "--validation_steps",
        "1",
    ]
    common = ["--max_train_steps", "3", "--use_ema", "--num_validation_images", "1"]
    assert train(tiny_sd, data, tmp_path / "plain", *common) == 0
    assert train(tiny_sd, data, tmp_path / "watched", *common, *one) == 0
    assert same_weights(tmp_path / "plain" / WEIGHTS, tmp_path / "watched" / WEIGHTS)


def test_a_validation_image_that_cannot_be_read_ends_the_training_before_it_starts(
    tmp_path: Path, data: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--val_image_url", str(tmp_path / "nothing.png"), "--validation_prompt", "make it red"]
    assert train(tiny_sd, data, tmp_path / "out", *flags) == 2
    assert "the validation image" in (told := capsys.readouterr().out) and "nothing.png" in told
    assert not (tmp_path / "out/cache").exists()


def test_no_figure_or_file_holds_the_token(
    tmp_path: Path, data: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    assert train(tiny_sd, data, tmp_path / "out", "--max_train_steps", "1", "--hub_token", "hf_very_secret") == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files and not any(b"hf_very_secret" in path.read_bytes() for path in files)


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_xl"])
def test_adapters_train_with_the_whole_first_convolution(
    tmp_path: Path, data: Path, request: pytest.FixtureRequest, model: str
) -> None:
    base = request.getfixturevalue(model)
    output = tmp_path / "out"
    flags = ["--use_lora", "--rank", "2", "--max_train_steps", "3", "--learning_rate", "1e-2"]
    assert train(base, data, output, *flags) == 0
    assert (output / LORA_FILE).exists() and (output / "conv_in.safetensors").exists()
    before = UNet2DConditionModel.from_pretrained(base / "unet").state_dict()
    after = load_file(output / WEIGHTS)
    assert before.keys() == after.keys()
    moved = {
        name
        for name in before
        if not torch.equal(before[name], after[name][:, :4] if name == "conv_in.weight" else after[name])
    }
    assert {name.split(".")[-2] for name in moved} == {"conv_in", "to_q", "to_k", "to_v", "0"}
    assert after["conv_in.weight"][:, 4:].abs().max() > 0
    kind = StableDiffusionInstructPix2PixPipeline if model == "tiny_sd" else StableDiffusionXLInstructPix2PixPipeline
    fused = kind.from_pretrained(output)
    loaded = load_lora(kind.from_pretrained(base, **({"safety_checker": None} if model == "tiny_sd" else {})), output)
    np.testing.assert_allclose(edit(loaded), edit(fused), atol=1e-4)


def test_a_folder_without_adapters_or_without_the_first_convolution_is_named(tmp_path: Path, tiny_sd: Path) -> None:
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(tiny_sd, safety_checker=None)
    with pytest.raises(ValueError, match="holds no pytorch_lora_weights.safetensors"):
        load_lora(pipeline, tmp_path)
    (tmp_path / LORA_FILE).touch()
    with pytest.raises(ValueError, match="holds no conv_in.safetensors"):
        load_lora(pipeline, tmp_path)


def test_random_crops_of_wide_images_rule_the_cache_out(
    tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = [pair(n, original_image=png((128, 64), seed=n), edited_image=png((128, 64), seed=n + 50)) for n in range(5)]
    data = write_pairs(tmp_path / "wide", wide)
    flags = ["--max_train_steps", "2", "--log_every", "1"]
    for name, more in {"crops": [], "workers": ["--dataloader_num_workers", "2"], "centre": ["--center_crop"]}.items():
        assert train(tiny_sd, data, tmp_path / name, *flags, *more) == 0
        AcceleratorState._reset_state(reset_partial_state=True)
    assert "so there is no latent cache" in capsys.readouterr().out
    assert not (tmp_path / "crops/cache").exists() and (tmp_path / "centre/cache").exists()
    losses = {
        name: [e["loss"] for e in RecordFile(tmp_path / name / "loss.jsonl").read()]
        for name in ("crops", "workers", "centre")
    }
    assert losses["crops"] == losses["workers"] != losses["centre"]


def test_a_folder_of_images_with_metadata_is_read(tmp_path: Path, tiny_sd: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    for number in range(3):
        for side in ("input", "edited"):
            (folder / f"{side}-{number}.png").write_bytes(png(seed=number)["bytes"])
        names = {f"{side}_image_file_name": f"{side}-{number}.png" for side in ("input", "edited")}
        rows.append({**names, "edit_prompt": "make it red"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    words = [f"--pretrained_model_name_or_path={tiny_sd}", f"--train_data_dir={folder}", f"--output_dir={output}"]
    where = [f"--cache_dir={tmp_path / 'datasets'}", "--resolution=64", "--train_batch_size=2", "--max_train_steps=1"]
    assert main([*words, *where]) == 0
    assert json.loads((output / "finished.json").read_text())["summary"]["samples"] == 3


@pytest.mark.parametrize(
    ("model", "weights"), [("tiny_sd", WEIGHTS), ("tiny_sd3", "transformer/diffusion_pytorch_model.safetensors")]
)
def test_two_processes_train_what_one_does_at_the_same_batch(
    tmp_path: Path, data: Path, request: pytest.FixtureRequest, model: str, weights: str
) -> None:
    flags = ["--max_train_steps", "4", "--conditioning_dropout_prob", "0.1", "--log_every", "1", "--random_flip"]
    base = request.getfixturevalue(model)
    words = [f"--pretrained_model_name_or_path={base}", f"--train_data_dir={data}", COLUMNS, "--resolution=64"]
    words += ["--lr_warmup_steps=0", *flags]
    alone = [*words, "--train_batch_size=4", f"--output_dir={tmp_path / '1'}"]
    processes.run(processes.training, alone, tmp_path / "log", os.environ | ON_CPU)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "ip2p.training", *words]
    command += ["--train_batch_size=2", f"--output_dir={tmp_path / '2'}"]
    subprocess.run(command, env=os.environ | ON_CPU, check=True, capture_output=True)
    losses = [[e["loss"] for e in RecordFile(tmp_path / name / "loss.jsonl").read()] for name in ("1", "2")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    one, two = (load_file(tmp_path / name / weights) for name in ("1", "2"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-5, rtol=0)


def test_wandb_sees_figures_and_pictures_offline(
    tmp_path: Path, data: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    one = ["--val_image_url", str(picture_of(tmp_path)), "--validation_prompt", "make it red"]
    flags = ["--max_train_steps", "1", "--num_validation_images", "1", "--report_to", "wandb"]
    assert train(tiny_sd, data, tmp_path / "out", *flags, *one) == 0
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("run-*.wandb"))
    assert len(list((run / "files/media/images").rglob("*.png"))) == 1


def test_a_tracker_that_is_not_there_is_named(
    tmp_path: Path, data: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_sd, data, tmp_path / "out", "--report_to", "tensorbord") == 2
    assert "report_to must be of tensorboard, wandb, comet_ml, trackio, all or none" in capsys.readouterr().out


def test_a_tracker_without_a_login_is_named_before_anything_is_encoded(
    tmp_path: Path, data: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.teardown()  # it remembers the environment of another test
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train(tiny_sd, data, tmp_path / "out", "--report_to", "tensorboard,wandb") == 2
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("error: report_to asks for wandb, which cannot log in: no key was found. Run `wandb login`")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ValueError, match="cannot log in: WANDB_API_KEY invalid.*WANDB_MODE=offline"):
        check_trackers("wandb")
    assert not list(tmp_path.glob("out/cache/*.safetensors"))


def test_two_processes_that_are_killed_end_in_the_same_weights(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    words = [f"--pretrained_model_name_or_path={tiny_sd}", f"--train_data_dir={data}", COLUMNS, "--resolution=64"]
    words += ["--lr_warmup_steps=0", "--max_train_steps=40", "--checkpointing_steps=3", "--train_batch_size=2"]
    words += ["--resume_from_checkpoint=latest", "--use_ema", "--conditioning_dropout_prob=0.1"]
    whole, killed = ([*words, f"--output_dir={tmp_path / name}"] for name in ("whole", "killed"))
    log, environment = tmp_path / "log", os.environ | ON_CPU
    processes.run_ranks(processes.training, whole, log, environment)
    with processes.ranks(processes.training, killed, log, environment) as children:
        processes.wait_until(lambda: list((tmp_path / "killed").glob("checkpoint-*")), children[0])
        children[0].join(np.random.default_rng().uniform(0, 0.5))
        processes.kill(*children)
    assert not (tmp_path / "killed/model_index.json").exists()
    processes.run_ranks(processes.training, killed, log, environment)
    assert same_weights(tmp_path / "whole" / WEIGHTS, tmp_path / "killed" / WEIGHTS)


@pytest.mark.parametrize("form", ["glob", "url", "stream"])
def test_pairs_are_read_from_a_pattern_a_url_or_a_stream(tmp_path: Path, data: Path, tiny_sd: Path, form: str) -> None:
    flags = ["--max_train_steps", "2", "--resolution", "64", "--train_batch_size", "4", "--seed", "3", COLUMNS]
    pattern = f"{data}/data/train-*.parquet"
    source = pattern if form == "glob" else f"file://{pattern}"
    more = [f"--cache_dir={tmp_path / 'datasets'}", *(["--streaming"] if form == "stream" else [])]
    words = [f"--pretrained_model_name_or_path={tiny_sd}", f"--dataset_name={source}", "--lr_warmup_steps=0"]
    assert main([*words, f"--output_dir={tmp_path / 'out'}", *flags, *more]) == 0
    assert json.loads((tmp_path / "out/finished.json").read_text())["summary"]["samples"] == 7
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(tiny_sd, data, tmp_path / "folder", "--max_train_steps", "2") == 0
    assert same_weights(tmp_path / "out" / WEIGHTS, tmp_path / "folder" / WEIGHTS)


def test_a_stream_has_no_random_access_for_random_crops(
    tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = [pair(n, original_image=png((128, 64), seed=n), edited_image=png((128, 64), seed=n + 50)) for n in range(3)]
    data = write_pairs(tmp_path / "wide", wide)
    source = [f"--dataset_name=file://{data}/data/train-*.parquet", "--streaming", COLUMNS, "--resolution=64"]
    words = [f"--pretrained_model_name_or_path={tiny_sd}", f"--output_dir={tmp_path / 'out'}", "--max_train_steps=1"]
    assert main([*words, *source]) == 2
    assert "streamed rows can be read in order only" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        ["--offload_ema", "--use_ema", "--noise_offset", "0.1", "--scale_lr"],
        ["--use_8bit_adam", "--enable_xformers_memory_efficient_attention", "--allow_tf32", "--revision", "main"],
        ["--lr_scheduler", "cosine_with_restarts", "--lr_num_cycles", "2", "--prediction_type", "epsilon"],
        ["--vae_precision", "bf16", "--mixed_precision", "bf16", "--no_cache", "--snr_gamma", "5"],
    ],
)
def test_other_flags_train_too(tmp_path: Path, data: Path, tiny_sd: Path, flags: list[str]) -> None:
    assert train(tiny_sd, data, tmp_path / "out", "--max_train_steps", "2", *flags) == 0
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "out")
    wanted = "epsilon" if "epsilon" in flags else "v_prediction"
    assert pipeline.scheduler.config.prediction_type == wanted
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float32


def test_latents_of_a_separate_autoencoder_are_encoded_again_when_its_weights_change(
    tmp_path: Path, data: Path, tiny_sd: Path
) -> None:
    vae = shutil.copytree(tiny_sd / "vae", tmp_path / "vae")
    flags = ["--max_train_steps", "1", "--pretrained_vae_model_name_or_path", str(vae)]
    assert train(tiny_sd, data, tmp_path / "out", *flags) == 0
    file = vae / "diffusion_pytorch_model.safetensors"
    save_file({name: weight * 1.3 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    losses = {}
    for output in ("out", "new"):
        assert train(tiny_sd, data, tmp_path / output, *flags) == 0
        losses[output] = RecordFile(tmp_path / output / "loss.jsonl").read()[-1]["loss"]
    assert losses["out"] == losses["new"]
