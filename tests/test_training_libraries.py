"""Optimizers of other libraries: against those libraries' plain loops, stopped, validated, exported; adapters too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from prodigyopt import Prodigy
from safetensors.torch import load_file
from schedulefree import AdamWScheduleFree

from ip2p.config import TrainingConfig
from ip2p.training.checkpoint import Progress, load_checkpoint, read_checkpoint, write_checkpoint
from ip2p.training.data import open_rows
from ip2p.training.filling import load_cache
from ip2p.training.loop import Interrupted, Stop
from ip2p.training.run import new_trainer
from tests.test_training import pair, tiny_training, write_pairs
from tests.test_training_reference import Reference
from tests.test_training_run import WEIGHTS, _StopAfter, run, same_weights, trainer_on

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
OPTIMS = ("prodigy", "schedule_free")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data", [pair(number) for number in range(7)])


def settings(model: Path, optim: str, **changes: Any) -> TrainingConfig:
    """Settings under which the first steps move the weights."""
    rate = {"prodigy": 1.0, "schedule_free": 5e-3}.get(optim, 1e-3)
    options = {"optim": optim, "learning_rate": rate, "lr_warmup_steps": 0, "max_train_steps": 7}
    return tiny_training(model, **(options | changes))


def plain_optimizer(reference: Reference, config: TrainingConfig) -> Any:
    """The library's own, as its authors advise for diffusion models."""
    weights = list(reference.pipeline.unet.parameters())
    if config.optim == "prodigy":
        further = {"safeguard_warmup": True, "use_bias_correction": True}
        return Prodigy(weights, lr=config.learning_rate, weight_decay=0.01, **further)
    warmup = config.lr_warmup_steps if config.lr_scheduler == "constant_with_warmup" else 0
    optimizer = AdamWScheduleFree(weights, lr=config.learning_rate, weight_decay=0.01, warmup_steps=warmup)
    optimizer.train()
    return optimizer


@pytest.mark.parametrize(
    ("optim", "schedule"),
    [("prodigy", "constant"), *(("schedule_free", each) for each in ("constant", "constant_with_warmup"))],
)
@pytest.mark.slow
def test_steps_are_those_of_the_librarys_own_loop(
    tmp_path: Path, data: Path, tiny_sd: Path, optim: str, schedule: str
) -> None:
    changes = {"lr_scheduler": schedule, "lr_warmup_steps": 3, "conditioning_dropout_prob": 0.0}
    config = settings(tiny_sd, optim, **changes)
    accelerator = Accelerator(cpu=True)
    cache = load_cache(tmp_path / "cache", open_rows(str(data), config), config, accelerator)
    trainer, _ = new_trainer(cache, config, accelerator)
    assert (trainer.trained.average is None) == (optim == "schedule_free")
    reference = Reference(config, data)
    reference.optimizer = plain_optimizer(reference, config)
    losses = np.array([(trainer.step(step)[0].item(), reference.step(trainer, step)) for step in range(5)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-3)
    plain = dict(reference.pipeline.unet.named_parameters())
    compare(dict(trainer.trained.denoiser.named_parameters()), plain)
    if optim == "schedule_free":
        reference.optimizer.eval()
        with trainer.trained.averaged():
            compare(dict(trainer.trained.denoiser.named_parameters()), plain)
    else:
        assert trainer.trained.optimizer.param_groups[0]["d"] == pytest.approx(
            reference.optimizer.param_groups[0]["d"], rel=1e-3
        )


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Adam makes a whole step of a gradient near zero, whose sign is a matter of rounding.
        torch.testing.assert_close(found[name].detach(), value.detach(), atol=5e-4, rtol=1e-2)


@pytest.mark.parametrize("optim", OPTIMS)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.slow
def test_a_training_that_is_stopped_saved_and_validated_ends_in_the_same_weights(
    tmp_path: Path, data: Path, tiny_sd: Path, optim: str, lora: bool
) -> None:
    """Putting the optimizer's average into the network, for a checkpoint or a validation, must leave no trace."""
    write_pairs(data, [pair(20), pair(21)], "test-00000-of-00001.parquet")
    config = settings(tiny_sd, optim, use_lora=lora, checkpointing_steps=100)
    run(config, str(data), tmp_path / "whole", tmp_path / "whole-model", Stop())
    often = replace(config, checkpointing_steps=2, validation_steps=1)
    with pytest.raises(Interrupted):
        run(often, str(data), tmp_path / "cut", tmp_path / "cut-model", _StopAfter(3))
    run(often, str(data), tmp_path / "cut", tmp_path / "cut-model", Stop())
    assert same_weights(tmp_path / "whole-model" / WEIGHTS, tmp_path / "cut-model" / WEIGHTS)
    name = "trained.safetensors" if lora else "diffusion_pytorch_model.safetensors"
    for network in ("unet", "unet_ema"):
        file = f"checkpoint-7/{network}/{name}"
        assert same_weights(tmp_path / "whole" / file, tmp_path / "cut" / file)
    last = tmp_path / "cut" / "checkpoint-7"
    assert not same_weights(last / "unet" / name, last / "unet_ema" / name)
    if not lora:
        assert same_weights(tmp_path / "cut-model" / WEIGHTS, last / "unet_ema" / name)


def test_a_checkpoint_of_another_optimizer_is_refused_in_one_line(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    trainers = {}
    for optim in ("adamw", *OPTIMS):
        trainers[optim] = trainer_on(data, tmp_path, settings(tiny_sd, optim))
        trainers[optim].step(0)
        write_checkpoint(tmp_path / optim, trainers[optim].trained, Progress(step=1), limit=None)
    for own, trainer in trainers.items():
        for other in trainers.keys() - {own}:
            with pytest.raises(ValueError, match="was made by another optimizer") as refused:
                load_checkpoint(read_checkpoint(tmp_path / other / "checkpoint-1"), trainer.trained)
            assert "\n" not in str(refused.value)
        load_checkpoint(read_checkpoint(tmp_path / own / "checkpoint-1"), trainer.trained)
        trainer.step(1)


def test_settings_that_an_optimizer_cannot_have_are_refused() -> None:
    with pytest.raises(ValueError, match="schedule_free replaces a schedule, got lr_scheduler cosine"):
        TrainingConfig(optim="schedule_free", lr_scheduler="cosine")
    with pytest.raises(ValueError, match="prodigy finds one rate"):
        TrainingConfig(optim="prodigy", learning_rate_conv_in=1e-2)
    with pytest.raises(ValueError, match="use_8bit_adam is AdamW, got optim prodigy"):
        TrainingConfig(optim="prodigy", use_8bit_adam=True)


def test_adapters_of_a_convolutional_base_have_their_scale_dropout_and_layers(
    tmp_path: Path, data: Path, tiny_sd: Path
) -> None:
    adapters = {"use_lora": True, "rank": 2, "use_ema": False, "train_batch_size": 2}
    config = settings(tiny_sd, "adamw", **adapters, lora_layers="to_q,proj_in", lora_alpha=8.0)
    trainer = trainer_on(data, tmp_path, config)
    denoiser = trainer.trained.denoiser
    layers = {name.rpartition(".lora_A")[0] for name, _ in denoiser.named_parameters() if ".lora_A" in name}
    assert layers and all(layer.endswith((".to_q", ".proj_in")) for layer in layers)
    layer = denoiser.get_submodule(min(layer for layer in layers if layer.endswith("to_q")))
    inputs = torch.randn(3, layer.base_layer.in_features)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        low = inputs @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        torch.testing.assert_close(layer(inputs), layer.base_layer(inputs) + 8 / 2 * low)
    dropping = trainer_on(data, tmp_path, replace(config, lora_dropout=0.5))
    with torch.no_grad():
        for name, weight in dropping.trained.denoiser.named_parameters():
            if ".lora_B" in name:
                weight.fill_(0.1)
        losses = [float(dropping.loss(step)) for step in (3, 3, 4)]
        dropping.trained.denoiser.eval()
        assert losses[0] == losses[1] != float(dropping.loss(3))


@pytest.mark.slow
def test_an_adapters_settings_reach_the_exported_editor(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    options = {"use_lora": True, "rank": 2, "lora_alpha": 6.0, "lora_layers": "to_k,to_v", "lora_dropout": 0.3}
    config = settings(tiny_sd, "adamw", **options, max_train_steps=3, learning_rate=1e-2)
    run(config, str(data), tmp_path / "out", tmp_path / "model", Stop())
    base, merged = (load_file(folder / WEIGHTS) for folder in (tiny_sd, tmp_path / "model"))
    adapters = load_file(tmp_path / "model" / "pytorch_lora_weights.safetensors")
    changed = {name for name in base if name != "conv_in.weight" and not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if name.endswith((".to_k.weight", ".to_v.weight"))} | {"conv_in.bias"}
    for name in changed - {"conv_in.bias"}:
        down, up = (adapters[f"unet.{name.removesuffix('.weight')}.lora.{side}.weight"] for side in ("down", "up"))
        torch.testing.assert_close(merged[name], base[name] + up @ down, atol=1e-5, rtol=1e-4)
