"""The shipped base models: in the standard formats, small, and as good as the data's README says."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
from diffusers import StableDiffusionPipeline
from transformers import AutoModelForCausalLM

from ip2p.presets import data_folder, shapes
from ip2p.shapes.train.measure import clip_choice, text_to_image_accuracy, triplet_validity

MODELS = data_folder() / "shapes"


def test_the_models_are_safetensors_and_at_most_forty_megabytes() -> None:
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    assert sum(path.stat().st_size for path in files) <= 40 * 2**20


def test_each_library_loads_its_model_from_the_folder() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(MODELS / "stable-diffusion")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert AutoModelForCausalLM.from_pretrained(MODELS / "language-model").config.model_type == "llama"
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{MODELS / 'clip'}")
    assert clip.visual.image_size == (64, 64) or clip.visual.image_size == 64


def test_clip_and_the_text_encoder_share_one_text_tower() -> None:
    encoder = StableDiffusionPipeline.from_pretrained(MODELS / "stable-diffusion").text_encoder
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{MODELS / 'clip'}")
    states = encoder.state_dict()
    name = next(key for key in states if key.endswith("token_embedding.weight"))
    assert states[name].equal(clip.token_embedding.weight)


@pytest.mark.slow
def test_clip_picks_the_right_caption_among_thirty_two() -> None:
    assert clip_choice(MODELS / "clip", num=150, seed=7)["right"] >= 0.93


@pytest.mark.slow
def test_the_language_models_triplets_are_the_grammars() -> None:
    figures = triplet_validity(MODELS / "language-model", num=500, seed=7, sampling=shapes().prompts)
    assert figures["consistent"] >= 0.93


@pytest.mark.slow
def test_the_denoiser_shows_every_attribute_of_its_caption() -> None:
    folder: Path = MODELS / "stable-diffusion"
    assert text_to_image_accuracy(folder, shapes().rendering, num=500)["scenes"] >= 0.9


@pytest.mark.slow
def test_the_judge_is_another_clip_that_tells_captions_apart() -> None:
    towers = [open_clip.create_model_and_transforms(f"local-dir:{MODELS / name}")[0] for name in ("clip", "judge")]
    assert not towers[0].token_embedding.weight.equal(towers[1].token_embedding.weight)
    assert isinstance(towers[1].visual, open_clip.transformer.VisionTransformer)
    assert clip_choice(MODELS / "judge", num=150, seed=7)["right"] >= 0.83
