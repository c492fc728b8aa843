"""Heads on CLIP's embeddings: a safety checker says what diffusers' own class says, layers what torch's say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig

from ip2p import rendering
from ip2p.config import PipelineConfig
from ip2p.scoring.nsfw import load_nsfw_head
from ip2p.store import RunFolder
from tests.test_rendering_candidates import write_triplets

WIDTH = 16


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checker of random weights, whose thresholds some random images pass."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config={**vision, "image_size": 16, "patch_size": 8}, projection_dim=WIDTH)
    )
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(model, name).data = torch.randn_like(getattr(model, name))
    model.concept_embeds_weights.data = torch.rand(17) * 0.3 + 0.25
    model.special_care_embeds_weights.data = torch.rand(3) * 0.3 + 0.1
    folder = tmp_path_factory.mktemp("checker")
    model.save_pretrained(folder)
    return folder


def test_a_score_above_zero_is_what_the_safety_checker_calls_unsafe(checker: Path) -> None:
    model = StableDiffusionSafetyChecker.from_pretrained(checker).eval()
    torch.manual_seed(1)
    pixels = torch.randn(64, 3, 16, 16) * torch.rand(64, 1, 1, 1) * 4
    with torch.no_grad():
        _, unsafe = model(pixels, list(np.zeros((64, 4, 4, 3))))
        embeddings = model.visual_projection(model.vision_model(pixels)[1])
    found = load_nsfw_head(str(checker))(nn.functional.normalize(embeddings, dim=-1))
    assert 0 < sum(unsafe) < 64
    assert (found > 0).tolist() == unsafe


def test_layers_are_applied_as_their_places_say(tmp_path: Path) -> None:
    torch.manual_seed(2)
    layers = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4), nn.Linear(4, 1)).eval()
    embeddings = nn.functional.normalize(torch.randn(20, WIDTH), dim=-1)
    path = tmp_path / "head.safetensors"
    save_file({f"layers.{name}": value for name, value in layers.state_dict().items()}, path)
    torch.testing.assert_close(load_nsfw_head(str(path))(embeddings), layers(embeddings)[:, 0].sigmoid().detach())


def test_what_is_no_head_is_named(tmp_path: Path, checker: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_file({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"the last with one output, got 0.bias, 0.weight"):
        load_nsfw_head(str(path))
    with pytest.raises(ValueError, match=r"nowhere.safetensors does not exist"):
        load_nsfw_head("nowhere.safetensors")
    with pytest.raises(ValueError, match=r"does not fit embeddings of 5 numbers. Give the scoring.clip_model"):
        load_nsfw_head(str(checker))(torch.zeros(2, 5))


def test_the_worse_image_is_scored_and_filtered_by(tiny_config: PipelineConfig, tmp_path: Path) -> None:
    write_triplets(tiny_config)
    rendering.write_shard(tiny_config, 0)
    path = RunFolder(tiny_config.out).shard("pairs", 0)
    width = len(pq.read_table(path)["clip_embeddings"][0].as_py()) // 4
    torch.manual_seed(3)
    weight = torch.randn(1, width) * 3
    save_file({"0.weight": weight, "0.bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    scoring = replace(tiny_config.scoring, nsfw_head=str(tmp_path / "head.safetensors"))
    config = replace(tiny_config, scoring=scoring)
    rendering.write_shard(config, 0)
    rows = pq.read_table(RunFolder(config.out).shard("candidates", 0)).to_pylist()
    kept = {(row["triplet_id"], row["candidate"]): row["clip_embeddings"] for row in pq.read_table(path).to_pylist()}
    for row in rows:
        both = np.frombuffer(kept[row["triplet_id"], row["candidate"]], np.float16).reshape(2, -1).astype(np.float32)
        expected = torch.from_numpy(both @ weight[0].numpy()).sigmoid().max()
        assert row["nsfw"] == pytest.approx(float(expected), abs=2e-2)
    limit = sorted(row["nsfw"] for row in rows)[2]
    loose = replace(config.filtering.thresholds, max_nsfw=limit)
    counts = rendering.refilter(replace(config, filtering=replace(config.filtering, thresholds=loose)))
    assert counts["high_nsfw"] == sum(row["nsfw"] > limit for row in rows) > 0
