"""The bases: chosen by the class in model_index.json, refused with those there are, added by one file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel, StableDiffusionPipeline
from safetensors.torch import load_file

from ip2p import models
from ip2p.config import RenderingConfig, TrainingConfig
from ip2p.editing import edit_images, load_editor
from ip2p.models import latents
from ip2p.models.architecture import architecture_of, architectures, base_architecture
from ip2p.models.latents import LatentSpace, decode_images
from ip2p.models.pipelines import load_text_to_image
from ip2p.models.texts import Texts, join_texts
from ip2p.p2p.sampler import render_pairs, sample_latents
from ip2p.records import Candidate, EditTriplet, RenderSpec
from ip2p.training.__main__ import main
from tests.test_training import pair, write_pairs

CIRCLE, SQUARE = "a small red circle on a white background", "a large blue square on a black background"


@pytest.fixture
def transformer_base(monkeypatch: pytest.MonkeyPatch, tiny_sd: Path, tmp_path: Path) -> Iterator[Path]:
    """A base of an architecture whose file lies beside ours, and that file's folder among those of the bases."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(Path(__file__).with_name("bases"))])
    from ip2p.models.tiny_transformer import TinyTransformerPipeline

    torch.manual_seed(5)
    parts = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=16,
        norm_num_groups=4,
        caption_channels=parts.text_encoder.config.hidden_size,
        use_additional_conditions=False,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    pipeline = TinyTransformerPipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, transformer.eval(), parts.scheduler
    )
    pipeline.save_pretrained(tmp_path / "base", safe_serialization=True)
    yield tmp_path / "base"
    sys.modules.pop("ip2p.models.tiny_transformer")


def load(folder: Path | str) -> Any:
    return load_text_to_image(str(folder), revision=None, variant=None, dtype="float32", device="cpu")


def candidate(seed: int, **shares: float) -> Candidate:
    triplet = EditTriplet(original_prompt=CIRCLE, edit_prompt="-", edited_prompt=SQUARE)
    spec = RenderSpec(triplet_id=triplet.id, candidate=0, seed=seed, guidance_scale=3.0, **{"p2p": 0.0, **shares})
    return Candidate(triplet=triplet, spec=spec)


def renamed(folder: Path, copy: Path, name: str) -> Path:
    """A copy of a model whose index names another class."""
    shutil.copytree(folder, copy)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    return copy


def test_every_base_has_a_name_a_noise_process_and_pipelines_of_its_own() -> None:
    bases = architectures()
    names = [name for base in bases for name in base.pipelines]
    assert len({base.title for base in bases}) == len(bases) >= 2
    assert len(set(names)) == len(names)
    for base in bases:
        assert base.noise and base.part and base.adapted
        if base.widened is not None:
            assert any(edge.startswith(base.widened.partition(".")[0]) for edge in base.edges)


def test_the_class_in_the_index_chooses_the_base(tiny_sd: Path, tiny_xl: Path) -> None:
    chosen = [base_architecture(TrainingConfig(pretrained_model_name_or_path=str(path))) for path in (tiny_sd, tiny_xl)]
    assert [base.title for base in chosen] == ["Stable Diffusion 1.x or 2.x", "Stable Diffusion XL"]
    for base, folder in zip(chosen, (tiny_sd, tiny_xl), strict=True):
        assert architecture_of(load(folder)) is base


def test_an_unknown_base_is_refused_with_a_list_of_those_there_are(tiny_sd: Path, tmp_path: Path) -> None:
    folder = str(renamed(tiny_sd, tmp_path / "other", "KandinskyPipeline"))
    message = "is a KandinskyPipeline, which is not supported. Give one of: .*Stable Diffusion 1.x or 2.x, Stable Diff"
    for attempt in (
        lambda: load(folder),
        lambda: load_editor(folder, "cpu"),
        lambda: base_architecture(TrainingConfig(pretrained_model_name_or_path=folder)),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_base_of_another_file_is_unknown_without_it(transformer_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainingConfig(pretrained_model_name_or_path=str(transformer_base))
    assert base_architecture(config).title == "Tiny Transformer"
    monkeypatch.setattr(models, "__path__", models.__path__[:1])
    with pytest.raises(ValueError, match="is a TinyTransformerPipeline, which is not supported"):
        base_architecture(config)


def test_pairs_are_rendered_with_a_base_of_another_file(transformer_base: Path) -> None:
    pipeline = load(transformer_base)
    config = RenderingConfig(num_inference_steps=4, batch_size=4)
    batch = [candidate(1), candidate(1, p2p=0.8), candidate(2, cross_p2p=0.7)]
    with torch.inference_mode():
        together = sample_latents(pipeline, batch, config).chunk(2)
        alone = [sample_latents(pipeline, [single], config) for single in batch]
    for number, (original, edited) in enumerate(alone):
        torch.testing.assert_close(together[0][number], original, atol=1e-4, rtol=0)
        torch.testing.assert_close(together[1][number], edited, atol=1e-4, rtol=0)
    torch.testing.assert_close(together[0][0], together[0][1], atol=1e-4, rtol=0)
    assert (together[1][0] - together[1][1]).abs().max() > 1e-3
    (first, *_) = render_pairs(pipeline, batch, config)
    assert first.original.shape == (64, 64, 3)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("flags", [[], ["--optim", "muon", "--learning_rate_conv_in", "0.01"]])
def test_an_editor_is_trained_from_a_base_of_another_file(
    transformer_base: Path, tmp_path: Path, flags: list[str]
) -> None:
    data, output = write_pairs(tmp_path / "data", [pair(number) for number in range(5)]), tmp_path / "out"
    words = [
        f"--pretrained_model_name_or_path={transformer_base}",
        f"--train_data_dir={data}",
        f"--output_dir={output}",
    ]
    fixed = ["--original_image_column=original_image", "--resolution=64", "--train_batch_size=2", "--max_train_steps=2"]
    assert main([*words, *fixed, "--lr_warmup_steps=0", "--conditioning_dropout_prob=0.2", *flags]) == 0
    assert json.loads((output / "model_index.json").read_text())["_class_name"] == "TinyTransformerEditor"
    weights = load_file(output / "transformer/diffusion_pytorch_model.safetensors")
    assert weights["pos_embed.proj.weight"].shape[1] == 8 and weights["pos_embed.proj.weight"][:, 4:].any()
    assert "TinyTransformerEditor.from_pretrained" in (output / "README.md").read_text()
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (edited,) = edit_images(
        load_editor(str(output), "cpu"), [picture], ["make it red"], num_inference_steps=2, seeds=[1]
    )
    assert edited.shape == (64, 64, 3) and edited.std() > 0


def test_a_base_that_takes_no_image_condition_is_not_an_editor(transformer_base: Path) -> None:
    with pytest.raises(ValueError, match="the denoiser of .* takes 4 channels, expected 8. Train it as an editor"):
        load_editor(str(transformer_base), "cpu")


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_xl"])
def test_both_ways_to_a_bases_text_encoders_say_the_same(request: pytest.FixtureRequest, model: str) -> None:
    folder = str(request.getfixturevalue(model))
    base = base_architecture(config := TrainingConfig(pretrained_model_name_or_path=folder))
    pipeline = load(folder)
    encoders = base.text_encoders(pipeline), base.load_text_encoders(config, torch.device("cpu"))
    with torch.inference_mode():
        one, other = (encoder.encode(["", CIRCLE, SQUARE]) for encoder in encoders)
        expected = pipeline.encode_prompt(
            [CIRCLE, SQUARE], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    assert torch.equal(one.hidden, other.hidden)
    torch.testing.assert_close(one.hidden[1:], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(one.hidden[0], expected[1][0], atol=1e-5, rtol=0)
    if one.pooled is not None and other.pooled is not None:
        assert torch.equal(one.pooled, other.pooled)
        torch.testing.assert_close(one.pooled[1:], expected[2], atol=1e-5, rtol=0)


def test_an_xl_that_knows_no_zeros_reads_the_empty_text_for_none(tiny_xl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "xl"
    shutil.copytree(tiny_xl, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    none = []
    for path in (tiny_xl, folder):
        config = TrainingConfig(pretrained_model_name_or_path=str(path))
        none.append(base_architecture(config).load_text_encoders(config, torch.device("cpu")).encode([""]))
    for texts, is_zero in zip(none, (True, False), strict=True):
        assert texts.pooled is not None
        assert (not texts.hidden.any(), not texts.pooled.any()) == (is_zero, is_zero)


def test_latents_are_normalised_by_scale_shift_mean_and_deviation_and_back() -> None:
    config = {"scaling_factor": 0.4, "shift_factor": 0.1, "latents_mean": [1.0, -1.0], "latents_std": [2.0, 0.5]}
    own = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    space = LatentSpace.of(config)
    scaled = space.scaled(own)
    torch.testing.assert_close(scaled[:, 0], (own[:, 0] - 1.1) / 2 * 0.4)
    torch.testing.assert_close(space.unscaled(scaled), own)
    assert LatentSpace.of({}) == LatentSpace(0.18215)


def test_pictures_are_decoded_a_few_at_a_time(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_sd, subfolder="vae")
    decode, sizes = vae.decode, list[int]()

    def counted(part: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(part))
        return decode(part, **options)

    monkeypatch.setattr(vae, "decode", counted)
    channels = vae.config.latent_channels
    some = torch.randn(5, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = decode_images(vae, some)
        num_pixels = whole.shape[1] * whole.shape[2]
        monkeypatch.setattr(latents, "CPU_PIXELS", 2 * num_pixels + 1)
        in_parts = decode_images(vae, some)
        monkeypatch.setattr(latents, "CPU_PIXELS", num_pixels - 1)
        alone = decode_images(vae, some)
    assert sizes == [5, 2, 2, 1, *[1] * 5]
    for each in (in_parts, alone):
        assert each.shape == whole.shape and np.abs(each.astype(int) - whole).max() <= 1


def test_texts_keep_their_pooled_states_beside_them() -> None:
    texts = Texts(torch.ones(2, 3, 4), torch.ones(2, 5))
    joined = join_texts([texts, texts.map(torch.zeros_like)])
    assert joined.hidden.sum(dim=(1, 2)).tolist() == [12, 12, 0, 0]
    assert joined.pooled is not None and joined.pooled.sum(dim=1).tolist() == [5, 5, 0, 0]
