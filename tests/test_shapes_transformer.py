"""The flow transformer of the shapes domain: its recipe, and the folder that is shipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ip2p.presets import data_folder
from ip2p.shapes.train import transformer as recipe
from ip2p.shapes.train.clip import new_clip, text_encoder_of
from ip2p.shapes.train.measure import text_to_image_accuracy
from ip2p.shapes.train.text import write_tokenizer
from tests.tiny import tiny_vae

SHIPPED = data_folder() / "shapes" / "stable-diffusion-3"
TEXTS = ["a small red circle on a pink background", "a large star and a small blue cross on a black background", ""]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return recipe.short_tokenizer(CLIPTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def encoders(tokenizer: CLIPTokenizer) -> recipe.TextEncoders:
    torch.manual_seed(0)
    towers = [new_clip(len(tokenizer)), new_clip(len(tokenizer), text=recipe.SMALL_TEXT)]
    first, second = (recipe.with_projection(text_encoder_of(tower, tokenizer)) for tower in towers)
    return first, second


def unfrozen() -> SD3Transformer2DModel:
    """A transformer whose blocks and output do something."""
    torch.manual_seed(1)
    transformer = recipe.new_transformer(192, 192)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.05)
    return transformer


def test_a_training_that_was_stopped_and_resumed_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoders: recipe.TextEncoders, tokenizer: CLIPTokenizer
) -> None:
    monkeypatch.setattr("ip2p.shapes.train.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(recipe, "BATCH_SIZE", 4)
    monkeypatch.setattr(recipe, "NUM_INSTRUCTED", 1)
    torch.manual_seed(2)
    vae = tiny_vae()

    def fit(name: str) -> dict[str, Tensor]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        options = {"seed": 0, "num_steps": 4, "num_scenes": 20, "num_edits": 10}
        trained = recipe.train_transformer(folder, vae, encoders, tokenizer, **options)  # type: ignore[arg-type]
        states: dict[str, Tensor] = trained.state_dict()
        return states

    whole = fit("whole")
    with monkeypatch.context() as stopping:
        stopping.setattr(recipe, "flow_loss", raises_at(2, recipe.flow_loss))
        with pytest.raises(InterruptedError):
            fit("stopped")
    assert all(torch.equal(value, whole[name]) for name, value in fit("stopped").items())
    assert whole["proj_out.weight"].abs().max() > 0


def raises_at(call: int, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, but for the call of that number, which is interrupted."""
    calls = iter(range(call + 1))

    def called(*args: object) -> Tensor:
        if next(calls) == call:
            raise InterruptedError
        return function(*args)

    return called


def test_a_true_velocity_leads_from_the_noisy_latents_to_the_latents_in_one_step() -> None:
    latents = torch.randn(3, 4, 16, 16)
    noisy, timesteps, velocities = recipe.mix_noise(latents, torch.Generator().manual_seed(0))
    scheduler = FlowMatchEulerDiscreteScheduler()
    for one in range(3):
        scheduler.set_timesteps(sigmas=[float(timesteps[one]) / 1000])
        step = scheduler.step(velocities[one], scheduler.timesteps[0], noisy[one], return_dict=False)[0]
        torch.testing.assert_close(step, latents[one], atol=1e-5, rtol=1e-5)


def test_sigmas_dwell_where_the_layout_and_the_shapes_are_decided() -> None:
    sigmas = recipe.draw_sigmas(20_000, torch.Generator().manual_seed(0))
    assert sigmas.min() > 0 and sigmas.max() < 1
    assert torch.logit(sigmas).mean() == pytest.approx(recipe.LOGIT_MEAN, abs=0.03)
    assert torch.logit(sigmas).std() == pytest.approx(recipe.LOGIT_STD, abs=0.03)


def test_an_untrained_transformer_predicts_nothing() -> None:
    transformer = recipe.new_transformer(192, 192)
    hidden, pooled = torch.randn(2, recipe.MAX_TOKENS, 192), torch.randn(2, 192)
    predicted = transformer(torch.randn(2, 4, 16, 16), hidden, pooled, torch.tensor([200.0, 700.0])).sample
    assert predicted.shape == (2, 4, 16, 16) and not predicted.any()


def test_the_states_are_those_of_the_stock_pipeline_without_t5(
    encoders: recipe.TextEncoders, tokenizer: CLIPTokenizer
) -> None:
    pipeline = StableDiffusion3Pipeline(
        transformer=recipe.new_transformer(192, 192),
        scheduler=recipe.new_sampler(),
        vae=tiny_vae(),
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    expected = pipeline.encode_prompt(TEXTS, None, None, do_classifier_free_guidance=False, max_sequence_length=0)
    states = recipe.encode_texts(encoders, tokenizer, TEXTS)
    assert states.pooled is not None
    assert states.hidden.shape == (3, recipe.MAX_TOKENS, pipeline.transformer.config.joint_attention_dim)
    assert torch.equal(states.hidden, expected[0]) and torch.equal(states.pooled, expected[2])
    no_text = pipeline.encode_prompt(TEXTS, None, None, do_classifier_free_guidance=True, max_sequence_length=0)
    assert torch.equal(no_text[1][0], states.hidden[2]) and torch.equal(no_text[3][0], states.pooled[2])


def test_a_projection_is_added_that_changes_nothing(tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(3)
    encoder = text_encoder_of(new_clip(len(tokenizer)), tokenizer)
    nn.Module.train(encoder, False)
    tokens = tokenizer(TEXTS, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(recipe.with_projection(encoder)(tokens).text_embeds, encoder(tokens).pooler_output)


def test_a_written_folder_holds_half_precision_and_loads_in_single(
    tmp_path: Path, encoders: recipe.TextEncoders, tokenizer: CLIPTokenizer
) -> None:
    transformer = unfrozen()
    recipe.write_stable_diffusion_3(tmp_path, tiny_vae(), encoders, tokenizer, transformer)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        assert part.dtype == torch.float32
    assert pipeline.tokenizer.model_max_length == pipeline.tokenizer_2.model_max_length == recipe.MAX_TOKENS
    saved = pipeline.transformer.state_dict()
    assert all(torch.equal(value.half().float(), saved[name]) for name, value in transformer.state_dict().items())
    image = pipeline(TEXTS[0], num_inference_steps=1, max_sequence_length=0).images[0]
    assert image.size == (64, 64)
    figures = text_to_image_accuracy(tmp_path, replace(recipe.FLOW_RENDERING, num_inference_steps=1), num=4)
    assert figures["n"] == 4 and figures["scenes"] == 0  # an untrained one draws no scene


@pytest.fixture(scope="module")
def shipped() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline.from_pretrained(SHIPPED, text_encoder_3=None, tokenizer_3=None)


def test_the_shipped_folder_is_small_and_in_half_precision() -> None:
    files = list(SHIPPED.rglob("*.safetensors"))
    assert len(files) == 4 and all(path.stat().st_size <= 10e6 for path in files)
    index = json.loads((SHIPPED / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline" and index["text_encoder_3"] == [None, None]


def test_the_shipped_transformer_shares_the_text_tower_and_the_autoencoder(shipped: StableDiffusion3Pipeline) -> None:
    base = StableDiffusionPipeline.from_pretrained(SHIPPED.parent / "stable-diffusion")
    assert shipped.vae.config.scaling_factor == base.vae.config.scaling_factor
    assert shipped.vae.config.shift_factor == 0
    for name, weight in base.vae.state_dict().items():
        assert torch.equal(weight.half().float(), shipped.vae.state_dict()[name]), name
    assert isinstance(shipped.text_encoder, CLIPTextModelWithProjection)
    weights = shipped.text_encoder.state_dict()
    for name, weight in base.text_encoder.state_dict().items():
        shared = next(value for key, value in weights.items() if key.endswith(name.removeprefix("text_model.")))
        assert torch.equal(weight.half().float(), shared), name


@pytest.mark.slow
def test_the_shipped_transformer_shows_every_attribute_of_its_caption() -> None:
    assert text_to_image_accuracy(SHIPPED, recipe.FLOW_RENDERING, num=300, seed=7)["scenes"] >= 0.82
