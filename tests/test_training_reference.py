"""The trainer against a plain loop that knows nothing of it: encoders at every step, diffusers' scheduler, AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor, nn

from ip2p.config import TrainingConfig
from ip2p.training.data import open_rows, open_table
from ip2p.training.decoding import DecodedPair, decode_pair
from ip2p.training.filling import load_cache
from ip2p.training.online import OnlinePairs
from ip2p.training.run import new_trainer
from ip2p.training.trainer import Trainer
from tests.test_training import pair, png, tiny_training, write_pairs

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
STEPS = 4


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven pairs, one of them wide."""
    wide = {"original_image": png((128, 64), seed=50), "edited_image": png((128, 64), seed=51)}
    return write_pairs(tmp_path / "data", [pair(number, **(wide if number == 2 else {})) for number in range(7)])


def tiny(request: pytest.FixtureRequest, name: str, **changes: Any) -> TrainingConfig:
    """Settings without a warm-up, whose first steps move the weights."""
    folder = request.getfixturevalue(name)
    options = {"lr_warmup_steps": 0, "learning_rate": 1e-3, "max_train_steps": STEPS, "use_ema": False}
    return tiny_training(folder, **(options | {"conditioning_dropout_prob": 0.0} | changes))


class Reference:
    """What a reader of the paper would write."""

    def __init__(self, config: TrainingConfig, data: Path) -> None:
        self.config = config
        self.pipeline = DiffusionPipeline.from_pretrained(config.pretrained_model_name_or_path)
        self.scheduler = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        self.rows = list(open_rows(str(data), config).read())
        base = self.pipeline.unet.conv_in
        wide = nn.Conv2d(8, base.out_channels, 3, padding=1)
        with torch.no_grad():
            wide.weight.zero_()
            wide.weight[:, :4] = base.weight
            assert wide.bias is not None
            wide.bias.copy_(base.bias)
        self.pipeline.unet.conv_in = wide
        self.optimizer: Any = torch.optim.AdamW(self.pipeline.unet.parameters(), lr=config.learning_rate)

    def step(self, trainer: Trainer, step: int) -> float:
        """One step under the trainer's own draws; returns the loss."""
        draws, numbers = trainer.stream.draws(step), trainer.stream.samples(step)
        pairs = [decode_pair(self.rows[number], self.config.resolution) for number in numbers]
        if self.config.random_flip:
            pairs = [each.mirrored() if turn else each for each, turn in zip(pairs, draws.mirrored, strict=True)]
        original, edited = (self._pixels(pairs, side) for side in (0, 1))
        vae, unet = self.pipeline.vae, self.pipeline.unet
        with torch.no_grad():
            posterior = vae.encode(edited).latent_dist
            latents = (posterior.mean + posterior.std * draws.posterior) * vae.config.scaling_factor
            condition = vae.encode(original).latent_dist.mode()
            texts = [str(self.rows[number].edit_prompt) for number in numbers]
            hidden, added = self._texts(texts, pairs)
        noisy = self.scheduler.add_noise(latents, draws.noise, draws.timesteps)
        prediction = unet(torch.cat([noisy, condition], 1), draws.timesteps, hidden, added_cond_kwargs=added).sample
        target = draws.noise
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, draws.noise, draws.timesteps)
        turned = [turn and self.config.random_flip for turn in draws.mirrored.tolist()]
        squares: Tensor = (prediction - target).square()
        loss: Any = self.weighed(squares, pairs, numbers, turned).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.item())

    def weighed(self, squares: Tensor, pairs: list[DecodedPair], numbers: list[int], turned: list[bool]) -> Tensor:
        """All positions count alike."""
        return squares

    def _pixels(self, pairs: list[DecodedPair], side: int) -> Tensor:
        return torch.from_numpy(np.stack([each.pixels[side] for each in pairs])).permute(0, 3, 1, 2) / 127.5 - 1

    def _texts(self, texts: list[str], pairs: list[DecodedPair]) -> tuple[Tensor, dict[str, Tensor] | None]:
        found = self.pipeline.encode_prompt(
            texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if len(found) == 2:
            return found[0], None
        ids = torch.tensor([[*each.size, *each.top_left, 64, 64] for each in pairs])
        return found[0], {"text_embeds": found[2], "time_ids": ids}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("model", ["tiny_sd", "tiny_xl"])
@pytest.mark.slow
def test_the_losses_are_those_of_a_plain_loop(
    tmp_path: Path, data: Path, request: pytest.FixtureRequest, model: str, flip: bool, cached: bool
) -> None:
    config = tiny(request, model, random_flip=flip)
    accelerator = Accelerator(cpu=True)
    if cached:
        source: Any = load_cache(tmp_path / "cache", open_rows(str(data), config), config, accelerator)
    else:
        source = OnlinePairs(open_table(str(data), config), config, accelerator)
    trainer, _ = new_trainer(source, config, accelerator)
    reference = Reference(config, data)
    for step in range(STEPS):
        assert trainer.step(step)[0].item() == pytest.approx(reference.step(trainer, step), rel=2e-4), step


def test_a_dropped_text_is_what_the_pipeline_takes_for_none(
    tmp_path: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    config = tiny(request, "tiny_xl", conditioning_dropout_prob=1 / 3)
    accelerator = Accelerator(cpu=True)
    cache = load_cache(tmp_path / "cache", open_rows(str(data), config), config, accelerator)
    pipeline = DiffusionPipeline.from_pretrained(config.pretrained_model_name_or_path)
    _, none, _, none_pooled = pipeline.encode_prompt("make it red", device="cpu", num_images_per_prompt=1)
    assert cache.none.pooled is not None and torch.equal(cache.none.pooled, none_pooled)
    assert torch.equal(cache.none.hidden, none)
    trainer, _ = new_trainer(cache, config, accelerator)
    seen: list[dict[str, Tensor]] = []

    class Listening(nn.Module):
        def forward(self, inputs: Tensor, timesteps: Tensor, **options: Any) -> tuple[Tensor]:
            texts = {"text": options["encoder_hidden_states"], "pooled": options["added_cond_kwargs"]["text_embeds"]}
            seen.append(texts | {"inputs": inputs})
            return (inputs[:, :4],)

    object.__setattr__(trainer, "network", Listening())
    trainer.loss(0)
    dropped = trainer.stream.draws(0).dropout < 2 / 3
    assert 0 < dropped.sum() < len(dropped)
    for name in ("text", "pooled"):
        assert [bool((row == 0).all()) for row in seen[0][name]] == dropped.tolist()


def test_condition_latents_are_scaled_where_that_is_asked_for(
    tmp_path: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    inputs = []
    for scaled in (False, True):
        config = tiny(request, "tiny_sd", scale_condition_latents=scaled)
        accelerator = Accelerator(cpu=True)
        cache = load_cache(tmp_path / "cache", open_rows(str(data), config), config, accelerator)
        trainer, _ = new_trainer(cache, config, accelerator)

        class Listening(nn.Module):
            def forward(self, inputs_: Tensor, *rest: Any, **options: Any) -> tuple[Tensor]:
                inputs.append(inputs_)
                return (inputs_[:, :4],)

        object.__setattr__(trainer, "network", Listening())
        trainer.loss(0)
    torch.testing.assert_close(inputs[1][:, 4:], inputs[0][:, 4:] * trainer.latents.scale)
    assert torch.equal(inputs[1][:, :4], inputs[0][:, :4])
