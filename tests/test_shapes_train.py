"""The recipe of the base models: resumable, and the same weights under every library's roof."""

from __future__ import annotations

import random
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ip2p.shapes.language import EDIT_TYPES, describe, draw_caption, draw_edit
from ip2p.shapes.oracle import read_scene
from ip2p.shapes.scene import draw_scene, render
from ip2p.shapes.train.__main__ import write_captions
from ip2p.shapes.train.clip import (
    EDITS_PER_GROUP,
    GROUPS,
    VIT,
    contrast,
    draw_batch,
    keep_layout,
    new_clip,
    text_encoder_of,
    train_judge,
    write_clip,
)
from ip2p.shapes.train.language_model import draw_text
from ip2p.shapes.train.loop import LoopConfig, learning_rate_at, train
from ip2p.shapes.train.measure import one_attribute_apart, says
from ip2p.shapes.train.spoil import spoil
from ip2p.shapes.train.text import (
    CAPTION_CLASSES,
    CONTEXT_LENGTH,
    EDIT_CLASSES,
    caption_answers,
    domain_words,
    edit_answers,
    write_tokenizer,
)
from ip2p.shapes.train.unet import draw_timesteps, edit_pool, guidance_difference, new_scheduler
from ip2p.shapes.train.vae import NARROWING, narrow_posterior, scene_pixels, to_pixels
from tests.tiny import tiny_unet, tiny_vae


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return loaded


def fit(folder: Path, stops: list[int]) -> Tensor:
    """Trains a line, stopping and resuming at the given steps."""

    class Stopped(Exception):
        pass

    config = LoopConfig(num_steps=20, learning_rate=0.05, warmup_steps=3)
    for stop in [*stops, 10**6]:
        torch.manual_seed(0)
        model = nn.Linear(2, 1)

        def loss_at(step: int, model: nn.Linear = model, stop: int = stop) -> Tensor:
            if step == stop:
                raise Stopped
            inputs = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
            loss: Tensor = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            return loss

        try:
            train(model, loss_at, config, checkpoint=folder / "line.pt")
        except Stopped:
            continue
    return model.weight.detach()


def test_a_run_that_was_stopped_and_resumed_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ip2p.shapes.train.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    assert torch.equal(fit(tmp_path / "whole", []), fit(tmp_path / "stopped", [7, 13]))


def test_the_learning_rate_rises_then_falls_to_a_fiftieth() -> None:
    config = LoopConfig(num_steps=100, learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate_at(step, config) for step in range(101)]
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.02)


def test_every_word_of_the_domain_is_one_token_and_every_text_fits(tokenizer: CLIPTokenizer) -> None:
    assert all(len(tokenizer.tokenize(word)) == 1 for word in domain_words(500))
    rng = random.Random(0)
    for _ in range(200):
        edit = draw_edit(rng)
        for text in (edit.edit_prompt, draw_caption(rng, edit.original)):
            assert len(tokenizer(text).input_ids) <= CONTEXT_LENGTH
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_the_text_encoder_of_diffusers_is_the_text_tower_of_open_clip(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(0)
    clip = new_clip(len(tokenizer)).eval()
    write_clip(tmp_path, clip, tokenizer)
    loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    texts = ["a small red circle on a pink background", "make it green"]
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(texts)
    padded = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(tokens, padded)
    with torch.no_grad():
        ours = text_encoder_of(clip, tokenizer)(padded).pooler_output @ clip.text_projection
        assert torch.allclose(loaded.eval().encode_text(tokens), ours, atol=1e-5)


def test_two_scenes_share_their_answers_only_where_they_say_the_same() -> None:
    rng = random.Random(1)
    scenes = [draw_scene(rng) for _ in range(300)]
    assert all(len(caption_answers(scene)) == len(CAPTION_CLASSES) for scene in scenes)
    said = {(scene.background, frozenset(thing.attributes for thing in scene.objects)) for scene in scenes}
    assert len({tuple(caption_answers(scene)) for scene in scenes}) == len(said)


@pytest.mark.parametrize("edit_type", EDIT_TYPES)
def test_the_answers_to_an_edit_name_what_it_sets_and_nothing_else(edit_type: str) -> None:
    rng = random.Random(2)
    nothing = [count - 1 for count in EDIT_CLASSES]
    sets = {"colour": {4}, "shape": {5}, "size": {3}, "background": {2}, "remove": set()}.get(edit_type, {3, 4, 5})
    for _ in range(20):
        answers = edit_answers(draw_edit(rng, edit_type=edit_type))
        assert EDIT_TYPES[answers[0]] == edit_type
        assert {slot for slot in range(2, 6) if answers[slot] != nothing[slot]} == sets
        assert (answers[1] == nothing[1]) == (edit_type in ("add", "background"))


def test_a_contrast_batch_marks_pictures_that_say_the_same() -> None:
    batch = draw_batch("seed")
    per_group = 2 + EDITS_PER_GROUP  # the original, its edits, the original with everything elsewhere
    assert batch.pixels.shape == (per_group * GROUPS, 3, 64, 64) and len(batch.captions) == per_group * GROUPS
    assert all(batch.same[group, (per_group - 1) * GROUPS + group] for group in range(GROUPS))
    assert batch.same.diagonal().all()
    assert batch.spoiled.shape == (2 * GROUPS, 3, 64, 64) and batch.moved_edits.shape == (GROUPS, 3, 64, 64)


def test_an_edit_in_place_must_lead_the_same_edit_with_things_moved() -> None:
    original, away = torch.eye(4)[:1], torch.eye(4)[1:2]
    good = keep_layout(original, original, away)
    assert good < 1e-4 < keep_layout(original, original, original) < keep_layout(original, away, original)


def test_a_caption_that_fits_a_spoiled_picture_costs() -> None:
    vectors, same, scale = torch.eye(4), torch.eye(4, dtype=torch.bool), torch.tensor(50.0)
    assert contrast(vectors, vectors, scale, same, vectors[:1]) > 0.05 > contrast(vectors, vectors, scale, same)


@pytest.mark.parametrize("num_objects", [0, 1, 2])
def test_a_spoiled_picture_does_not_read_as_its_scene(num_objects: int) -> None:
    rng = random.Random(5)
    scenes = [draw_scene(rng, num_objects=num_objects) for _ in range(60)]
    found = [says(read_scene(spoil(rng, scene)), describe(scene)) for scene in scenes]
    assert sum(found) <= 0.25 * len(found)  # a bend or a lost corner may be slight


def test_the_contrast_of_perfect_vectors_is_near_zero_and_ignores_duplicates() -> None:
    vectors = torch.eye(4)
    same = torch.eye(4, dtype=torch.bool)
    assert contrast(vectors, vectors, torch.tensor(50.0), same) < 1e-6
    doubled = torch.cat([vectors, vectors[:1]])
    marked = doubled @ doubled.T > 0.5
    assert contrast(doubled, doubled, torch.tensor(50.0), marked) < 1e-6


def test_timesteps_cover_all_and_dwell_where_shapes_and_numbers_are_decided() -> None:
    drawn = draw_timesteps(20_000, torch.Generator().manual_seed(0))
    assert drawn.min() == 0 and drawn.max() == 999
    assert ((drawn >= 100) & (drawn < 600)).float().mean() == pytest.approx(1 / 6 + 1 / 3, abs=0.02)
    assert (drawn >= 600).float().mean() == pytest.approx(0.4 / 3 + 1 / 3, abs=0.02)


def test_the_last_timestep_is_pure_noise() -> None:
    assert new_scheduler().alphas_cumprod[-1] == 0


def test_a_two_object_scene_has_thirty_one_neighbours() -> None:
    rng = random.Random(3)
    scene = draw_scene(rng, num_objects=2)
    described = describe(scene)
    near = one_attribute_apart(described)
    assert len(set(near)) == 31 and described not in near
    assert says(scene, described) and not any(says(scene, other) for other in near)


def test_captions_are_distinct_and_a_function_of_the_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_captions(tmp_path / name, seed=1, num=50)
    lines = (tmp_path / "a").read_text().splitlines()
    assert len(set(lines)) == 50 and lines == (tmp_path / "b").read_text().splitlines()


def test_a_training_text_is_in_the_originals_format() -> None:
    prompt, answer = draw_text(random.Random(4))
    assert prompt.endswith("\n##\n") and "\n%%\n" in answer and answer.endswith("\nEND")


def test_the_difference_leads_from_the_texts_velocity_to_the_guided_one() -> None:
    torch.manual_seed(0)
    unet, noisy, timesteps = tiny_unet().eval(), torch.randn(3, 4, 16, 16), torch.tensor([0, 500, 999])
    hidden = torch.randn(3, 32, unet.config.cross_attention_dim)
    with torch.no_grad():
        null, text = (unet(noisy, timesteps, states).sample for states in (torch.zeros_like(hidden), hidden))
    for scale in (0.0, 1.0, 2.5):
        nothing = torch.zeros_like(hidden[:1])
        found = text + guidance_difference(unet, noisy, timesteps, hidden, nothing, guidance_scale=scale)
        torch.testing.assert_close(found, null + scale * (text - null), atol=1e-5, rtol=1e-4)


def test_an_instruction_is_trained_with_the_scene_that_it_leads_to(tmp_path: Path) -> None:
    vae = tiny_vae().eval()
    pool = edit_pool(tmp_path, vae, seed=3, num=70, device="cpu")
    rng = random.Random("3 edits")
    edits = [draw_edit(rng) for _ in range(70)]
    assert list(pool.texts) == [edit.edit_prompt for edit in edits]
    drawn = torch.stack([torch.from_numpy(render(edit.edited)) for edit in edits[-2:]])
    with torch.no_grad():
        latents = vae.encode(to_pixels(drawn.numpy())).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(pool.latents[-2:].float(), latents, atol=1e-2, rtol=1e-2)
    assert torch.equal(edit_pool(tmp_path, vae, seed=3, num=70, device="cpu").latents, pool.latents)


def test_a_narrowed_posterior_keeps_its_means() -> None:
    vae, pixels = tiny_vae().eval(), scene_pixels("narrow", 2)
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        after = narrow_posterior(vae).encode(pixels).latent_dist
    assert torch.equal(after.mean, before.mean)
    torch.testing.assert_close(after.logvar, before.logvar - NARROWING, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_judge_is_a_clip_that_open_clip_loads(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    judge = train_judge(tmp_path / "work", tokenizer, seed=1, num_steps=6, device="cpu")
    write_clip(tmp_path / "judge", judge, tokenizer, VIT)
    loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'judge'}")
    picture = torch.zeros(1, 3, 64, 64)
    assert torch.equal(loaded.eval().encode_image(picture), judge.encode_image(picture))
