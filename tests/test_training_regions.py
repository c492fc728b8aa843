"""A loss weighted by regions, and pairs of several shapes: against plain loops, mirrored, cached and resumed."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import find_nearest_bucket, generate_aspect_ratio_buckets
from PIL import Image, ImageOps
from torch import Tensor

from ip2p.config import TrainingConfig
from ip2p.images import open_picture
from ip2p.models.components import load_vae
from ip2p.training.buckets import buckets_of
from ip2p.training.cache import LatentCache, cache_key
from ip2p.training.data import RawPair, open_rows, open_table
from ip2p.training.decoding import DecodedPair, Framing, Regions, Square, decode_pair
from ip2p.training.draws import SampleStream
from ip2p.training.filling import load_cache
from ip2p.training.fingerprints import training_fingerprint
from ip2p.training.flags import parse
from ip2p.training.loop import Interrupted, Stop
from ip2p.training.mixing import new_stream
from ip2p.training.online import OnlinePairs
from ip2p.training.regions import position_weights
from ip2p.training.run import new_trainer
from ip2p.training.trainer import Trainer
from tests.test_training import pair, png, tiny_training, write_pairs
from tests.test_training_reference import Reference
from tests.test_training_run import WEIGHTS, _StopAfter, run, same_weights
from tests.tiny_flow import write_tiny_flux, write_tiny_klein, write_tiny_kontext

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
SIZES = ((64, 64), (128, 64), (64, 128), (96, 64), (200, 100), (64, 64), (150, 75))


def encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def with_box(seed: int, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    """A pair that differs in a box, and a mask of another box."""
    noise = np.random.default_rng(seed).integers(0, 200, (size[1], size[0], 3), dtype=np.uint8)
    edited, mask = noise.copy(), np.zeros(size[::-1], dtype=np.uint8)
    edited[8:24, 4 : 20 + seed] += 50
    mask[30:50, 10:40] = 255
    return {
        "original_image": {"bytes": encoded(Image.fromarray(noise)), "path": None},
        "edited_image": {"bytes": encoded(Image.fromarray(edited)), "path": None},
        "edit_prompt": f"make it {('red', 'green', 'blue')[seed % 3]}",
        "mask_image": {"bytes": encoded(Image.fromarray(mask)), "path": None},
    }


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """Six pairs that differ in a box, and one that does not differ."""
    same = with_box(6)
    return write_pairs(
        tmp_path / "data", [with_box(n) for n in range(6)] + [same | {"edited_image": same["original_image"]}]
    )


def plain_weights(share: np.ndarray, weight: float | str) -> np.ndarray:
    """The weights of one (h, w) map of shares, written out."""
    if weight == "log2":
        weight = math.log2(1 / share.mean()) + 1 if share.any() else 1.0
    weights = np.array([[1 - m + m * float(weight) for m in row] for row in share])
    scaled: np.ndarray = weights / weights.mean()
    return scaled


def changed_shares(original: Image.Image, edited: Image.Image, side: int) -> np.ndarray:
    """The share of the pixels of each square of which a colour differs by more than a tenth."""
    first, second = (np.asarray(each, dtype=float) / 255 for each in (original, edited))
    rows, columns = (length // side for length in first.shape[:2])
    shares = np.zeros((rows, columns))
    for y in range(rows):
        for x in range(columns):
            square = np.s_[y * side : y * side + side, x * side : x * side + side]
            shares[y, x] = (np.abs(first[square] - second[square]).max(-1) > 0.1).mean()
    return shares


class WeightedReference(Reference):
    """The plain loop with a weight for each position."""

    def weighed(self, squares: Tensor, pairs: list[DecodedPair], numbers: list[int], turned: list[bool]) -> Tensor:
        weights = []
        for each, number, turn in zip(pairs, numbers, turned, strict=True):
            share = changed_shares(Image.fromarray(each.pixels[0]), Image.fromarray(each.pixels[1]), 4)
            if self.config.mask_column:
                picture = self.rows[number].mask
                assert isinstance(picture, bytes)
                levels = np.asarray(Image.open(io.BytesIO(picture))).astype(float) / 255
                share = levels.reshape(16, 4, 16, 4).mean((1, 3))[:, :: -1 if turn else 1]
            weights.append(plain_weights(share, self.config.region_weight or 1.0))
        return squares * torch.from_numpy(np.stack(weights)).float()[:, None]


@pytest.mark.parametrize("weight", [4.0, "log2"])
@pytest.mark.parametrize("mask", [None, "mask_image"])
def test_the_shares_and_weights_of_a_pair_are_those_of_a_loop_over_its_squares(
    weight: float | Literal["log2"], mask: str | None
) -> None:
    cells = with_box(3)
    pictures = [cells[name]["bytes"] for name in ("original_image", "edited_image", "mask_image")]
    raw = RawPair(pictures[0], pictures[1], "x", pictures[2])
    found = decode_pair(raw, Framing(Square(64), Regions(4, 0.1, mask is not None))).changed
    assert found is not None
    expected = changed_shares(open_picture(pictures[0]), open_picture(pictures[1]), 4)
    if mask:
        levels = np.asarray(Image.open(io.BytesIO(pictures[2]))).astype(float) / 255
        expected = levels.reshape(16, 4, 16, 4).mean((1, 3))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    weights = position_weights(torch.from_numpy(found)[None, None], weight)[0, 0].numpy()
    np.testing.assert_allclose(weights, plain_weights(expected, weight), rtol=1e-5)
    changed, rest = weights[expected == 1], weights[expected == 0]
    ratio = 4.0 if weight == 4.0 else 1 + math.log2(1 / expected.mean())
    assert len(changed) and np.allclose(changed / rest[0], ratio, rtol=1e-5)


@pytest.mark.parametrize(
    ("flip", "cached", "mask", "weight"),
    [(False, True, None, 4.0), (True, True, "mask_image", 0.5), (True, False, None, "log2")],
)
@pytest.mark.slow
def test_the_weighted_losses_are_those_of_a_plain_loop(
    tmp_path: Path,
    boxes: Path,
    tiny_sd: Path,
    flip: bool,
    cached: bool,
    mask: str | None,
    weight: float | Literal["log2"],
) -> None:
    options = {"lr_warmup_steps": 0, "use_ema": False, "conditioning_dropout_prob": 0.0, "random_flip": flip}
    config = tiny_training(tiny_sd, region_weight=weight, mask_column=mask, max_train_steps=3, **options)
    accelerator = Accelerator(cpu=True)
    source: Any = OnlinePairs(open_table(str(boxes), config), config, accelerator)
    if cached:
        source = load_cache(tmp_path / "cache", open_rows(str(boxes), config), config, accelerator)
    trainer, _ = new_trainer(source, config, accelerator)
    reference = WeightedReference(config, boxes)
    losses = np.array([(trainer.step(step)[0].item(), reference.step(trainer, step)) for step in range(3)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=2e-4)


def trainer_on(data: Path, cache: Path, config: TrainingConfig) -> Trainer:
    accelerator = Accelerator(cpu=True)
    rows = open_rows(str(data), config)
    return new_trainer(load_cache(cache, rows, config, accelerator), config, accelerator, rows)[0]


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_sd3_without_t5"])
@torch.no_grad()
def test_the_loss_of_a_sample_is_a_mean_of_two_regions_in_every_kind_of_training(
    tmp_path: Path, boxes: Path, request: pytest.FixtureRequest, model: str
) -> None:
    """Times the weights' mean, a weighted loss is linear in the weight."""
    options = {"train_batch_size": 1, "use_ema": False, "conditioning_dropout_prob": 0.0}
    weighted = {}
    for weight in (1.0, 2.0, 5.0):
        config = tiny_training(request.getfixturevalue(model), region_weight=weight, **options)
        trainer = trainer_on(boxes, tmp_path / "cache", config)
        batch = trainer.pairs.load(trainer.stream, 2, trainer.stream.draws(2))
        assert batch.changed is not None and 0 < (area := float(batch.changed.mean())) < 1
        weighted[weight] = float(trainer.loss(2)) * (1 + (weight - 1) * area)
    plain = trainer_on(boxes, tmp_path / "cache", tiny_training(request.getfixturevalue(model), **options))
    assert float(plain.loss(2)) == pytest.approx(weighted[1.0], rel=1e-6)
    changed = weighted[2.0] - weighted[1.0]
    assert changed > 0
    assert weighted[5.0] == pytest.approx(weighted[1.0] + 4 * changed, rel=1e-4)


def test_transparent_masks_are_read_and_pairs_without_one_count_alike_everywhere(
    tmp_path: Path, tiny_sd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = np.full((64, 64, 4), 255, dtype=np.uint8)
    hole = whole.copy()
    hole[:16, :32, 3] = 0
    cells = [hole, whole[..., :3], None, "broken", whole[:32]]
    masks = [
        None if cell is None else b"x" if isinstance(cell, str) else encoded(Image.fromarray(cell)) for cell in cells
    ]
    rows = [pair(number, mask_image={"bytes": mask, "path": None}) for number, mask in enumerate(masks)]
    config = tiny_training(tiny_sd, region_weight=3.0, mask_column="mask_image")
    opened = open_rows(str(write_pairs(tmp_path / "data", rows)), config)
    cache = load_cache(tmp_path / "cache", opened, config, Accelerator(cpu=True))
    assert len(cache) == 5 and "3 pairs have no usable mask" in caplog.text
    changed = cache.take([0, 1, 2, 3, 4], [False] * 5).changed
    assert changed is not None
    expected = torch.zeros(16, 16)
    expected[:4, :8] = 1
    assert torch.equal(changed[0, 0], expected) and torch.all(changed[1] == 1) and not changed[2:].any()
    assert torch.all(position_weights(changed[1:], 3.0) == 1) and torch.all(position_weights(changed[1:], "log2") == 1)
    with pytest.raises(ValueError, match=r"has no column 'masks'.*Set training\.mask_column"):
        open_rows(str(tmp_path / "data"), tiny_training(tiny_sd, region_weight=3.0, mask_column="masks"))


def test_regions_change_a_cache_only_if_they_are_weighted(tmp_path: Path, boxes: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd)
    weighted = [replace(config, region_weight=2.0), replace(config, region_weight="log2")]
    keys = [cache_key(open_rows(str(boxes), each), each) for each in (config, *weighted)]
    assert keys[0] != keys[1] == keys[2]
    masked = replace(weighted[0], mask_column="mask_image")
    assert cache_key(open_rows(str(boxes), masked), masked) not in keys
    assert training_fingerprint(weighted[0], str(boxes)) != training_fingerprint(weighted[1], str(boxes))


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Pairs of four shapes."""
    cells = [{"original_image": png(size, 2 * n), "edited_image": png(size, 2 * n + 1)} for n, size in enumerate(SIZES)]
    return write_pairs(tmp_path / "data", [pair(number, **cell) for number, cell in enumerate(cells)])


def test_a_pair_goes_to_the_bucket_that_diffusers_chooses_at_the_largest_resolution_it_has(tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd, aspect_ratio_buckets=True)
    options = generate_aspect_ratio_buckets(64, 16)
    for width, height in ((64, 64), (128, 64), (70, 64), (300, 900), (10, 11)):
        assert buckets_of(config)((height, width)) == options[find_nearest_bucket(height, width, options)]
    several = buckets_of(replace(config, bucket_resolutions=(128, 64)))
    assert [several(size) for size in ((64, 64), (127, 127), (128, 128), (900, 900), (20, 20))] == [
        *((64, 64), (64, 64), (128, 128), (128, 128), (64, 64)),
    ]


def test_the_sides_of_a_buckets_are_those_that_a_unet_halves(tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [16] * 5}))
    sizes = buckets_of(tiny_training(folder, resolution=512, aspect_ratio_buckets=True)).by_resolution[512]
    assert len(sizes) > 3 and all(side % 64 == 0 for size in sizes for side in size)


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_xl"])
def test_a_bucketed_cache_holds_the_fitted_pictures_and_their_true_sizes(
    tmp_path: Path, shapes: Path, request: pytest.FixtureRequest, model: str
) -> None:
    config = tiny_training(request.getfixturevalue(model), aspect_ratio_buckets=True, random_flip=True)
    rows = open_rows(str(shapes), config)
    cache = load_cache(tmp_path / "cache", rows, config, Accelerator(cpu=True))
    raw, vae = list(rows.read()), load_vae(config, torch.device("cpu"))
    assert sorted(cache.row_numbers) == list(range(7))
    found, numbers = cache.shapes
    for sample, row in enumerate(cache.row_numbers):
        original = open_picture(raw[row].original or b"")
        height, width = buckets_of(config)((original.height, original.width))
        assert found[numbers[sample]] == (4, height // 4, width // 4)
        fitted = ImageOps.fit(original, (width, height), Image.Resampling.LANCZOS)
        for turn, picture in ((False, fitted), (True, ImageOps.mirror(fitted))):
            batch = cache.take([sample], [turn])
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.no_grad():
                torch.testing.assert_close(batch.condition, vae.encode(pixels).latent_dist.mode(), atol=1e-5, rtol=0)
        scale = max(width / original.width, height / original.height)
        rest = round(original.height * scale) - height, round(original.width * scale) - width
        top_left = [round(rest[0] / 2), rest[1] - round(rest[1] / 2)]
        assert batch.sizes[0].tolist() == [original.height, original.width, *top_left, height, width]


def stream(config: TrainingConfig, cache: LatentCache, rank: int, ranks: int) -> SampleStream:
    place: Any = SimpleNamespace(process_index=rank, num_processes=ranks)
    return new_stream(cache, config, torch.ones(1000), place, None)


def test_processes_take_parts_of_one_batch_of_one_size(tmp_path: Path, shapes: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd, aspect_ratio_buckets=True)
    cache = load_cache(tmp_path / "cache", open_rows(str(shapes), config), config, Accelerator(cpu=True))
    alone = stream(config, cache, 0, 1)
    two = [stream(replace(config, train_batch_size=2), cache, rank, 2) for rank in (0, 1)]
    seen = set()
    for step in (*range(12), 5, 1000):
        samples = alone.samples(step)
        batch = cache.load(alone, step, alone.draws(step))
        assert batch.mean.shape == alone.draws(step).noise.shape
        seen.add(batch.mean.shape)
        assert samples == two[0].samples(step) + two[1].samples(step)
        halves = [each.draws(step) for each in two]
        for name in ("noise", "timesteps", "mirrored"):
            both = torch.cat([getattr(each, name) for each in halves])
            assert torch.equal(both, getattr(alone.draws(step), name))
    assert len(seen) == len(cache.shapes[0]) == 4


@pytest.mark.parametrize("write", [write_tiny_flux, write_tiny_kontext, write_tiny_klein])
@torch.no_grad()
def test_every_flow_base_takes_pairs_of_every_shape(
    tmp_path: Path, shapes: Path, write: Callable[[Path], Path]
) -> None:
    options = {"aspect_ratio_buckets": True, "region_weight": 3.0, "use_ema": False, "max_sequence_length": 16}
    config = tiny_training(write(tmp_path / "base"), train_batch_size=2, **options)
    trainer = trainer_on(shapes, tmp_path / "cache", config)
    sizes = {trainer.stream.draws(step).noise.shape: step for step in range(20)}
    assert len(sizes) == 4
    for step in sizes.values():
        changed = trainer.pairs.load(trainer.stream, step, trainer.stream.draws(step)).changed
        assert changed is not None and changed.shape[2:] == trainer.stream.draws(step).noise.shape[2:]
        assert torch.isfinite(trainer.loss(step))


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_sd3_without_t5"])
@pytest.mark.slow
def test_a_bucketed_training_that_is_stopped_ends_in_the_same_weights(
    tmp_path: Path, shapes: Path, request: pytest.FixtureRequest, model: str
) -> None:
    options: dict[str, Any] = {"aspect_ratio_buckets": True, "region_weight": "log2", "train_batch_size": 2}
    config = tiny_training(request.getfixturevalue(model), max_train_steps=5, checkpointing_steps=2, **options)
    summary = run(config, str(shapes), tmp_path / "whole", tmp_path / "whole-model", Stop())
    assert (summary["samples"], summary["steps"]) == (7, 5) and np.isfinite(summary["loss"])
    with pytest.raises(Interrupted):
        run(config, str(shapes), tmp_path / "cut", tmp_path / "cut-model", _StopAfter(3))
    run(config, str(shapes), tmp_path / "cut", tmp_path / "cut-model", Stop())
    file = f"checkpoint-5/{WEIGHTS}"
    assert same_weights(tmp_path / "whole" / file, tmp_path / "cut" / file)


def test_buckets_need_a_cache_and_their_settings_each_other() -> None:
    with pytest.raises(ValueError, match="aspect_ratio_buckets needs the sizes"):
        TrainingConfig(aspect_ratio_buckets=True, cache=False)
    with pytest.raises(ValueError, match="bucket_resolutions are those of aspect_ratio_buckets"):
        TrainingConfig(bucket_resolutions=(256, 512))
    with pytest.raises(ValueError, match="Set region_weight too"):
        TrainingConfig(mask_column="mask_image")
    with pytest.raises(ValueError, match="region_weight must be positive"):
        TrainingConfig(region_weight=0.0)


def test_the_flags_are_taken_by_the_drop_in() -> None:
    words = "--train_data_dir x --region_weight log2 --mask_column mask_image --aspect_ratio_buckets"
    job = parse([*words.split(), "--bucket_resolutions", "256", "512"])
    assert (job.region_weight, job.mask_column, job.bucket_resolutions) == ("log2", "mask_image", (256, 512))
    assert parse(["--train_data_dir", "x", "--region_weight", "2.5"]).region_weight == 2.5
