"""PixArt-Sigma: rendered as its pipeline and explicit maps say, with the operators of UNets; refused as an editor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ip2p.config import RenderingConfig, TrainingConfig
from ip2p.models.architecture import architecture_of, base_architecture
from ip2p.models.pipelines import load_editor, load_text_to_image
from ip2p.p2p.sampler import sample_latents
from tests.explicit_attention import ExplicitPair
from tests.test_rendering_exact import CIRCLE, CONFIG, OPERATORS, SQUARE, TOLERANCE, candidate, distance, with_operator


class ExplicitPixArt(ExplicitPair):
    """PixArt's parts and conditions."""

    num_tokens = 300

    @property
    def network(self) -> Any:
        """The transformer."""
        return self.pipeline.transformer

    def predict(self, rows: Tensor, timestep: Tensor, conditions: dict[str, Any]) -> Tensor:
        """Calls it, and leaves the variances."""
        sizes = {"resolution": None, "aspect_ratio": None}
        out = self.network(rows, timestep=timestep.expand(len(rows)), added_cond_kwargs=sizes, **conditions).sample
        prediction: Tensor = out.chunk(2, dim=1)[0]
        return prediction

    def conditions(self, prompts: list[str]) -> dict[str, Any]:
        """Encodes texts with masks."""
        guided = self.is_guided
        found = self.pipeline.encode_prompt(prompts, do_classifier_free_guidance=guided)
        states, mask, no_states, no_mask = found
        if guided:
            states, mask = torch.cat([no_states, states]), torch.cat([no_mask, mask])
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random PixArt-Sigma."""
    from tests.tiny_flow import write_tiny_pixart

    return write_tiny_pixart(tmp_path_factory.mktemp("tiny") / "pixart")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    """The same, loaded."""
    return load_text_to_image(str(folder), revision=None, variant=None, dtype="float32", device="cpu")


@pytest.mark.parametrize("guidance_scale", [0.0, 5.0])
def test_without_sharing_each_side_is_what_diffusers_own_pipeline_draws(pipeline: Any, guidance_scale: float) -> None:
    with torch.inference_mode():
        latents = sample_latents(pipeline, [candidate(CIRCLE, SQUARE, guidance_scale, 11)], CONFIG)
    size = {"height": 64, "width": 64, "use_resolution_binning": False}
    for prompt, side in zip((CIRCLE, SQUARE), latents, strict=True):
        options = {"num_inference_steps": 5, "guidance_scale": guidance_scale, "output_type": "latent", **size}
        expected = pipeline(prompt, generator=torch.Generator().manual_seed(11), clean_caption=False, **options).images
        assert distance(side[None], expected) < TOLERANCE
    assert distance(latents[1], latents[0]) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["nothing", "self", "replace", "refine", "reweight", "blend", "all"])
@pytest.mark.slow
def test_a_batch_on_fused_kernels_equals_pairs_with_explicit_maps(pipeline: Any, name: str) -> None:
    config, batch = with_operator(OPERATORS[name])
    plain = with_operator({})[1]
    with torch.inference_mode():
        together = torch.unflatten(sample_latents(pipeline, batch, config), 0, (2, -1))
        without = torch.unflatten(sample_latents(pipeline, plain, config), 0, (2, -1))
        expected = [ExplicitPixArt(pipeline, each, config).sample() for each in batch]
    moved = []
    for number, (original, edited) in enumerate(expected):
        assert distance(together[0, number], original) < TOLERANCE
        assert distance(together[1, number], edited) < TOLERANCE
        moved.append(distance(without[1, number], edited))
    assert name == "nothing" or max(moved) > 5 * TOLERANCE


def test_texts_that_are_padded_are_masked(pipeline: Any) -> None:
    with torch.inference_mode():
        texts = architecture_of(pipeline).encode(pipeline, [CIRCLE, ""])
    assert texts.mask is not None
    assert texts.mask.sum(1).tolist() == [len(pipeline.tokenizer(CIRCLE).input_ids), 1]


def test_a_base_that_only_renders_is_refused_as_an_editor_in_one_line(folder: Path) -> None:
    message = "PixArt-Sigma renders pairs, but no pipeline edits with it. Train another base on the pairs."
    config = TrainingConfig(pretrained_model_name_or_path=str(folder))
    base = base_architecture(config)
    for attempt in (
        lambda: base.load_widened(config),
        lambda: base.load_text_encoders(config, torch.device("cpu")),
        lambda: load_editor(str(folder), "cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()


def test_sizes_are_multiples_of_patches(pipeline: Any) -> None:
    with pytest.raises(ValueError, match="rendering.width must be a multiple of 8 for this model, got 36"):
        sample_latents(pipeline, [candidate(CIRCLE, SQUARE, 1.0, 0)], RenderingConfig(width=36))
