"""FLUX.1 and Kontext: rendering against diffusers' pipelines and explicit maps, and editing against diffusers' own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from torch import Tensor

from ip2p.config import RenderingConfig, TrainingConfig
from ip2p.editing import Editor, Knobs, edit_images, guidance_terms, load_editor
from ip2p.models.architecture import architecture_of, architectures, base_architecture
from ip2p.models.flux import packed, places_of, unpacked
from ip2p.models.pipelines import load_text_to_image
from ip2p.p2p.attention import WatchedWords
from ip2p.p2p.installing import shared_attention
from ip2p.p2p.sampler import check_renderable, fits_encoders, sample_latents
from tests.explicit_flux import FluxPair, JointMaps
from tests.test_rendering_exact import BOTH, CIRCLE, SQUARE, candidate, distance, with_operator
from tests.tiny_flow import write_tiny_flux, write_tiny_kontext

NUM_TEXTS = 40
CONFIG = RenderingConfig(num_inference_steps=5, height=64, width=64, max_sequence_length=NUM_TEXTS)
TOLERANCE = 2e-5
OPERATORS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "self": {"p2p": 0.6},
    "self under a cap that all exceed": {"p2p": 0.6, "p2p_max_positions": 32},
    "blend": {"local_blend": 0.6, "blend_threshold": 0.99},
    "blend by difference": {"local_blend": 0.6, "blend_by_difference": True, "blend_threshold": 0.8},
    "all": {"p2p": 0.5, "local_blend": 0.8, "blend_threshold": 0.99, "shared_steps": 0.3},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model like dev, one like schnell and a Kontext."""
    place = tmp_path_factory.mktemp("flux")
    return {
        "dev": write_tiny_flux(place / "dev"),
        "schnell": write_tiny_flux(place / "schnell", guidance_embeds=False),
        "kontext": write_tiny_kontext(place / "kontext"),
    }


def load(folder: Path, dtype: str = "float32") -> Any:
    return load_text_to_image(str(folder), revision=None, variant=None, dtype=dtype, device="cpu")


def watched_of(pipeline: Any) -> list[Any]:
    return list(architecture_of(pipeline).attention_layers(pipeline.transformer).watched)


def test_the_class_in_the_index_chooses_between_flux_and_kontext(folders: dict[str, Path]) -> None:
    titles = {name: architecture_of(load(folder)).title for name, folder in folders.items()}
    assert titles == {"dev": "FLUX.1", "schnell": "FLUX.1", "kontext": "FLUX.1 Kontext"}
    for name, folder in folders.items():
        config = TrainingConfig(pretrained_model_name_or_path=str(folder))
        base = base_architecture(config)
        assert base.title == titles[name]
        assert base.takes_guidance(config) == (name != "schnell") == base.is_distilled(load(folder).transformer)


def test_latents_are_packed_and_placed_as_the_pipeline_does(folders: dict[str, Path]) -> None:
    pipeline, latents = load(folders["dev"]), torch.randn(2, 4, 6, 10)
    assert torch.equal(packed(latents), pipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(unpacked(packed(latents), 6, 10), latents)
    assert torch.equal(
        places_of(6, 10, torch.device("cpu")), pipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32)
    )


@pytest.mark.parametrize("length", [None, NUM_TEXTS])
def test_texts_are_those_of_the_pipeline(folders: dict[str, Path], length: int | None) -> None:
    pipeline, config = load(folders["dev"]), TrainingConfig(pretrained_model_name_or_path=str(folders["dev"]))
    base = architecture_of(pipeline)
    loaded = base.load_text_encoders(replace(config, max_sequence_length=length), torch.device("cpu"))
    with torch.no_grad():
        expected = pipeline.encode_prompt(["", CIRCLE, BOTH], max_sequence_length=length or 512)
    for encoders in (base.text_encoders(pipeline, length), loaded):
        texts = encoders.encode(["", CIRCLE, BOTH])
        assert encoders.lengths == [length or 512] and encoders.offset == 0
        assert torch.equal(texts.hidden, expected[0])
        assert texts.pooled is not None and torch.equal(texts.pooled, expected[1])


@pytest.mark.parametrize(
    ("name", "guidance_scale"), [("dev", 3.5), ("schnell", 0.0), ("schnell", 3.0), ("kontext", 2.5)]
)
def test_without_sharing_each_side_equals_diffusers_own_pipeline(
    folders: dict[str, Path], name: str, guidance_scale: float
) -> None:
    pipeline = load(folders[name])
    with torch.inference_mode():
        found = sample_latents(pipeline, [candidate(CIRCLE, SQUARE, guidance_scale, 11)], CONFIG)
    options: dict[str, Any] = {"guidance_scale": guidance_scale}
    if name == "schnell":
        options = {"true_cfg_scale": guidance_scale, "negative_prompt": ""}
    if name == "kontext":
        options |= {"max_area": 64 * 64}
    for prompt, latents in zip((CIRCLE, SQUARE), found, strict=True):
        expected = pipeline(
            prompt=prompt,
            height=64,
            width=64,
            num_inference_steps=5,
            generator=torch.Generator().manual_seed(11),
            max_sequence_length=NUM_TEXTS,
            output_type="latent",
            **options,
        ).images
        assert distance(packed(latents[None]), expected) < TOLERANCE


@pytest.mark.parametrize("model", ["dev", "schnell"])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.slow
def test_a_batch_on_fused_kernels_equals_pairs_with_explicit_maps(
    folders: dict[str, Path], model: str, name: str
) -> None:
    pipeline = load(folders[model])
    config, batch = with_operator(OPERATORS[name], CONFIG)
    plain = with_operator({}, CONFIG)[1]
    with torch.inference_mode():
        found = torch.unflatten(sample_latents(pipeline, batch, config), 0, (2, -1))
        without = torch.unflatten(sample_latents(pipeline, plain, config), 0, (2, -1))
        expected = [FluxPair(pipeline, each, config, watched_of(pipeline)).sample() for each in batch]
    moved = []
    for index, (original, edited) in enumerate(expected):
        assert distance(found[0, index], original) < TOLERANCE
        assert distance(found[1, index], edited) < TOLERANCE
        moved.append(distance(without[1, index], edited))
    assert max(moved[2], moved[4]) < TOLERANCE
    assert name in ("nothing", "self under a cap that all exceed") or min(moved[0], moved[3]) > 1e-3
    if "local_blend" in OPERATORS[name]:
        same = (found[0] == found[1]).all(1).float().mean((1, 2))
        assert 0 < same[0] < 1 and 0 < same[3] < 1


@pytest.mark.parametrize("model", ["dev", "schnell"])
def test_half_precision_differs_from_explicit_maps_by_its_rounding_alone(folders: dict[str, Path], model: str) -> None:
    """One step from the same noise, so that rounding has no time to grow.

    The denoiser is told a thousand times the scale, of which 8 bits leave little: these scales are exact.
    """
    config, batch = with_operator({"p2p": 1.0}, CONFIG)
    config, scales = replace(config, num_inference_steps=1), (4.096, 1.024, 8.192, 2.048, 4.096)
    specs = [replace(each.spec, guidance_scale=scale) for each, scale in zip(batch, scales, strict=True)]
    batch = [replace(each, spec=spec) for each, spec in zip(batch, specs, strict=True)]
    low, high = load(folders[model], "bfloat16"), load(folders[model])
    with torch.inference_mode():
        found = torch.unflatten(sample_latents(low, batch, config), 0, (2, -1))
        exact = torch.unflatten(sample_latents(high, batch, config), 0, (2, -1))
        expected = [FluxPair(low, each, config, watched_of(low)).sample() for each in batch]
    for index, pair in enumerate(expected):
        for side in range(2):
            rounding = distance(pair[side], exact[side, index])
            assert distance(found[side, index], exact[side, index]) < max(2 * rounding, 0.02)
            assert 0 < rounding < 0.1


def test_a_batch_equals_its_pairs_alone(folders: dict[str, Path]) -> None:
    pipeline = load(folders["kontext"])
    config, batch = with_operator({"p2p": 0.5, "shared_steps": 0.3, "local_blend": 0.5, "blend_threshold": 0.9}, CONFIG)
    with torch.inference_mode():
        together = torch.unflatten(sample_latents(pipeline, batch, config), 0, (2, -1))
        alone = torch.stack([sample_latents(pipeline, [each], config) for each in batch], 1)
    assert distance(together, alone) < TOLERANCE


class Looking(JointMaps):
    """Sums up the explicit maps of some layers."""

    num_texts = NUM_TEXTS

    def __init__(self, watched: list[Any], words: Tensor) -> None:
        self.watched, self.words, self.seen = watched, words, torch.zeros(())

    def look(self, attn: Any, maps: Tensor) -> None:
        if attn in self.watched:
            to_text = maps[:, :, NUM_TEXTS:, :NUM_TEXTS]
            self.seen = self.seen + torch.einsum("rhnl,rl->rn", to_text, self.words) / maps.shape[1]


def test_words_are_found_by_the_mean_of_the_maps_over_heads(folders: dict[str, Path]) -> None:
    pipeline = load(folders["dev"])
    base, transformer = architecture_of(pipeline), pipeline.transformer
    texts, words = base.encode(pipeline, [CIRCLE, BOTH, SQUARE], NUM_TEXTS), torch.zeros(3, NUM_TEXTS)
    words[0, 2], words[1, 7:9], words[2, 3] = 1.0, 1.0, 1.0
    latents, guidance = torch.randn(3, 4, 16, 12, generator=torch.Generator().manual_seed(1)), torch.full((3,), 3.0)
    explicit, before = Looking(watched_of(pipeline), words), dict(transformer.attn_processors)
    with torch.inference_mode():
        transformer.set_attn_processor(explicit)
        expected = base.predict(transformer, latents, torch.tensor(500.0), texts, guidance=guidance)
        transformer.set_attn_processor(before)
        with shared_attention(base.attention_layers(transformer)) as shared:
            rows = torch.arange(3)
            shared.num_text_tokens, shared.watched = NUM_TEXTS, WatchedWords(rows, words, rows, max_positions=256)
            found = base.predict(transformer, latents, torch.tensor(500.0), texts, guidance=guidance)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert list(shared.watched.seen) == [8 * 6]
    torch.testing.assert_close(shared.watched.seen[48], explicit.seen, atol=1e-6, rtol=1e-4)
    assert float(explicit.seen.std()) > 1e-3


def test_the_watched_layers_are_the_published_ones_of_flux(folders: dict[str, Path]) -> None:
    base = architecture_of(load(folders["dev"]))

    class Block:
        def __init__(self, name: str) -> None:
            self.attn = name

    class Large:
        transformer_blocks = [Block(f"double {number}") for number in range(19)]
        single_transformer_blocks = [Block(f"single {number}") for number in range(38)]

    layers: Any = base.attention_layers(Large())
    assert layers.watched == [f"double {number}" for number in (18, 17, 12, 14, 11)]
    assert len(layers.joint) == 19 + 38 and layers.text_first and not layers.to_itself


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 68}, "rendering.height must be a multiple of 8 for this model, got 68"),  # 4 by patches of 2
        ({"width": 60}, "rendering.width must be a multiple of 8 for this model, got 60"),
        ({"cross_p2p": (0.5, 0.5)}, "rendering.cross_p2p cannot be used with FLUX.1"),
        ({"reweight": (2.0, 2.0)}, "rendering.reweight cannot be used with FLUX.1"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_one_line(
    folders: dict[str, Path], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_renderable(load(folders["dev"]), replace(CONFIG, **settings))
    assert "\n" not in str(caught.value)


def test_a_caption_is_as_long_as_t5_reads(folders: dict[str, Path]) -> None:
    encoders = architecture_of(load(folders["dev"])).text_encoders(load(folders["dev"]), 16)
    assert fits_encoders(encoders, candidate(CIRCLE, SQUARE, 3.0, 1))
    assert not fits_encoders(encoders, candidate(CIRCLE, "red " * 16, 3.0, 1))


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_an_edit_with_kontext_is_that_of_its_own_pipeline(folders: dict[str, Path], size: tuple[int, int]) -> None:
    editor = load_editor(str(folders["kontext"]), "cpu")
    knobs: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.5}
    (ours,) = edit_images(editor, [picture(*size)], [SQUARE], seeds=[5], image_guidance_scale=1.0, **knobs)
    pipeline = FluxKontextPipeline.from_pretrained(folders["kontext"])
    theirs = pipeline(
        **architecture_of(editor).call_options(picture(*size), SQUARE),
        generator=torch.Generator().manual_seed(5),
        output_type="np",
        **knobs,
    ).images[0]
    assert ours.shape == theirs.shape == (size[1], size[0], 3)
    assert np.abs(ours / 255 - theirs).max() < 0.51 / 255 + 1e-3
    (other,) = edit_images(editor, [picture(*size, seed=1)], [SQUARE], seeds=[5], image_guidance_scale=1.0, **knobs)
    assert np.abs(other.astype(int) - ours).max() > 5


def test_a_distilled_editor_is_told_the_scale_and_guided_by_the_image_alone(folders: dict[str, Path]) -> None:
    assert [(term.weight, term.with_image, term.with_text) for term in guidance_terms(7.0, 1.5, is_distilled=True)] == [
        (1.5, True, True),
        (-0.5, False, True),
    ]
    assert len(guidance_terms(7.0, 1.0, is_distilled=True)) == 1
    edit = Editor(folders["kontext"], device="cpu", knobs=Knobs(num_inference_steps=2, resolution=64))
    grid = edit.edit_grid(picture(), SQUARE, guidance_scales=[1.5, 6.0], image_guidance_scales=[1.0, 2.0])
    arrays = [np.asarray(each, dtype=int) for row in grid for each in row]
    assert all(np.abs(one - other).max() > 2 for number, one in enumerate(arrays) for other in arrays[:number])


def test_without_image_guidance_the_picture_is_left_out(folders: dict[str, Path]) -> None:
    """A scale of 0 asks for the prediction without a picture alone, which is zeros in the picture's places."""
    editor = load_editor(str(folders["kontext"]), "cpu")
    knobs: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.5, "image_guidance_scale": 0.0}
    pictures, texts = [picture(), picture(seed=1)], [SQUARE] * 2
    one, other = edit_images(editor, pictures, texts, seeds=[3, 3], **knobs)
    assert np.array_equal(one, other)
    (expected,) = edit_images(editor, pictures[:1], texts[:1], seeds=[3], **(knobs | {"image_guidance_scale": 1.0}))
    assert np.abs(expected.astype(int) - one).max() > 5


def test_a_flux_that_sees_no_image_is_not_an_editor(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="takes 4 channels, expected 8. Train it as an editor"):
        load_editor(str(folders["dev"]), "cpu")


def test_every_base_either_widens_a_layer_or_takes_the_image_in_its_sequence() -> None:
    widened = {base.title: base.widened for base in architectures()}
    assert [title for title, name in widened.items() if name is None] == ["FLUX.2 klein", "FLUX.1 Kontext"]
    assert widened["FLUX.1"] == "x_embedder"
