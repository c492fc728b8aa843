"""Contrast, SSIM and DINOv2 against their definitions, and how they get from the config into the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from ip2p import rendering
from ip2p.config import PipelineConfig, Thresholds
from ip2p.models.loading import load_image_model
from ip2p.scoring.contrast import contrast
from ip2p.scoring.dino import image_similarities
from ip2p.scoring.shift import shift
from ip2p.scoring.ssim import ssim
from ip2p.store import RunFolder
from tests.test_rendering_candidates import write_triplets


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of random weights with its preprocessing."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    return folder


def noise(seed: int, size: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).normal(128, 40, (size, size, 3))
    return Image.fromarray(gaussian_filter(pixels, (2, 2, 0)).clip(0, 255).astype(np.uint8))


def test_a_flat_image_has_no_contrast_and_a_chessboard_the_most() -> None:
    assert contrast(Image.new("RGB", (8, 8), "purple")) == 0
    board = np.indices((8, 8)).sum(0) % 2 * 255
    assert contrast(Image.fromarray(board.astype(np.uint8)).convert("RGB")) == 0.5


def square(x: int, y: int, colour: str, *, other: str | None = None, size: int = 64) -> Image.Image:
    """A picture of a square of 12 pixels, and of another one at a fixed place."""
    picture = Image.new("RGB", (size, size), "beige")
    picture.paste(colour, (x, y, x + 12, y + 12))
    if other is not None:
        picture.paste(other, (46, 46, 54, 54))
    return picture


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, 0), (0, -4), (3, 4), (-6, 8)])
@pytest.mark.parametrize("other", [None, "black"])
def test_the_shift_is_the_distance_that_the_changed_part_moved(dx: int, dy: int, other: str | None) -> None:
    moved = shift(square(10, 20, "red", other=other), square(10 + dx, 20 + dy, "blue", other=other))
    assert moved == pytest.approx(np.hypot(dx, dy) / 64, abs=0.003)


def test_what_does_not_change_does_not_shift_and_sizes_must_agree() -> None:
    assert shift(square(10, 20, "red"), square(10, 20, "red")) == 0
    assert shift(Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")) == 0
    assert np.isnan(shift(square(1, 1, "red"), square(1, 1, "red", size=65)))


def test_ssim_is_that_of_wang_et_al() -> None:
    one, other = noise(0), noise(1)
    assert ssim(one, one) == pytest.approx(1.0)

    def local(values: np.ndarray) -> np.ndarray:
        means: np.ndarray = gaussian_filter(values, sigma=1.5, truncate=3.5)  # the window of 11 pixels
        return means

    x, y = (np.asarray(image, dtype=np.float64) for image in (one, other))
    found = []
    for channel in range(3):
        a, b = x[..., channel], y[..., channel]
        mean_a, mean_b = local(a), local(b)
        spread_a, spread_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
        together = local(a * b) - mean_a * mean_b
        k1, k2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        index = (2 * mean_a * mean_b + k1) * (2 * together + k2)
        index /= (mean_a**2 + mean_b**2 + k1) * (spread_a + spread_b + k2)
        found.append(index[5:-5, 5:-5].mean())
    assert ssim(one, other) == pytest.approx(float(np.mean(found)), abs=1e-6)
    assert np.isnan(ssim(noise(0, 8), noise(1, 8)))


def test_images_are_alike_by_the_models_first_token(dino: Path) -> None:
    model = load_image_model(str(dino), device="cpu")
    originals, edited = [noise(0), noise(1), noise(2)], [noise(0), noise(3), noise(4)]
    found = image_similarities(model, originals, edited, batch_size=4)
    assert found[0] == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        pixels = model.processor(images=[originals[1], edited[1]], return_tensors="pt").pixel_values
        one, other = model.model(pixels).last_hidden_state[:, 0]
    assert found[1] == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=1e-5)


def test_what_is_asked_for_is_scored_and_filtered_by(tiny_config: PipelineConfig, dino: Path) -> None:
    write_triplets(tiny_config)
    scoring = replace(tiny_config.scoring, ssim=True, dino_model=str(dino))
    config = replace(tiny_config, scoring=scoring)
    rendering.write_shard(config, 0)
    path = RunFolder(config.out).shard("candidates", 0)
    rows = pq.read_table(path).to_pylist()
    assert all(0 <= row["contrast"] <= 0.5 and -1 <= row["ssim"] <= 1 and -1 <= row["dino"] <= 1 for row in rows)
    limit = sorted(row["contrast"] for row in rows)[3]
    loose = config.filtering.thresholds
    filtering = replace(config.filtering, thresholds=replace(loose, contrast=limit))
    rendering.refilter(replace(config, filtering=filtering))
    judged = pq.read_table(path).to_pylist()
    assert [row["reason"] for row in judged] == ["" if row["contrast"] >= limit else "low_contrast" for row in rows]
    thresholds = Thresholds(original=-1, edited=-1, direction=-1, image=-1, max_dino=-1.0)
    counts = rendering.refilter(replace(config, filtering=replace(filtering, thresholds=thresholds)))
    assert counts["high_dino"] == len(rows)


def test_without_a_wish_the_costly_scores_are_left_out(tiny_config: PipelineConfig) -> None:
    write_triplets(tiny_config)
    rendering.write_shard(tiny_config, 0)
    rows = pq.read_table(RunFolder(tiny_config.out).shard("candidates", 0)).to_pylist()
    assert {row["ssim"] for row in rows} == {row["dino"] for row in rows} == {None}
    assert all(row["contrast"] is not None for row in rows)


def test_a_folder_that_holds_no_image_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scoring\.dino_model .* has no preprocessor_config.json"):
        load_image_model(str(tmp_path), device="cpu")
