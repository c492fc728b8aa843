"""The trainer's parts: surgery, objective, chance, data, cache."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from ip2p.config import TrainingConfig
from ip2p.models.components import load_vae
from ip2p.models.noise.discrete import DiscreteNoise
from ip2p.models.stable_diffusion import widen_conv_in
from ip2p.models.texts import Texts, hidden_states
from ip2p.store.journal import RecordFile
from ip2p.training.data import check_local_data, open_rows, open_table
from ip2p.training.decoding import decode_pair
from ip2p.training.draws import (
    BalancedOrder,
    SampleStream,
    draw_samples,
    draw_step,
    draw_strata,
    drop_conditions,
)
from ip2p.training.filling import load_cache
from ip2p.training.fingerprints import training_fingerprint
from ip2p.training.loop import LossLog, mean_of_last
from tests.tiny import tiny_unet

CPU = torch.device("cpu")


def png(size: tuple[int, int] = (64, 64), seed: int = 0, mode: str = "RGB") -> dict[str, Any]:
    """A cell of an image column."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_pairs(folder: Path, rows: list[dict[str, Any]], name: str = "train-00000-of-00001.parquet") -> Path:
    """A parquet dataset with these rows."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / name)
    return folder


def pair(number: int, **changes: Any) -> dict[str, Any]:
    """A row; numbers that differ by three share an instruction."""
    images = {"original_image": png(seed=number), "edited_image": png(seed=1000 + number)}
    return images | {"edit_prompt": f"make it {('red', 'green', 'blue')[number % 3]}"} | changes


def tiny_training(tiny_sd: Path, **changes: Any) -> TrainingConfig:
    """Settings for 64 x 64 pixels."""
    fixed = {"resolution": 64, "train_batch_size": 4, "learning_rate": 1e-3, "lr_warmup_steps": 2}
    return TrainingConfig(pretrained_model_name_or_path=str(tiny_sd), **(fixed | changes))


def test_a_widened_unet_predicts_what_its_base_does_whatever_the_image() -> None:
    torch.manual_seed(0)
    base, latents, text = tiny_unet(), torch.randn(2, 4, 16, 16), torch.randn(2, 32, 128)
    torch.nn.init.normal_(base.conv_in.bias)
    with torch.no_grad():
        expected = base(latents, 500, text).sample
        bias = base.conv_in.bias.clone()
        wide = widen_conv_in(base, 8)
        for image in (torch.randn(2, 4, 16, 16), torch.zeros(2, 4, 16, 16)):
            assert torch.allclose(wide(torch.cat([latents, image], 1), 500, text).sample, expected, atol=1e-5)
    assert wide.conv_in.weight.shape[1] == wide.config.in_channels == 8
    assert torch.equal(wide.conv_in.bias, bias)
    assert not wide.conv_in.weight[:, 4:].any()


def test_a_wide_unet_is_taken_as_it_is_and_a_wider_one_refused() -> None:
    wide = tiny_unet(in_channels=8)
    before = wide.conv_in
    assert widen_conv_in(wide, 8).conv_in is before
    with pytest.raises(ValueError, match="takes 8 channels, expected at most 4"):
        widen_conv_in(wide, 4)


def test_dropout_takes_five_percent_each_of_text_image_and_both() -> None:
    uniform = (torch.arange(100) + 0.5) / 100
    texts, none = Texts(torch.ones(100, 3, 5), torch.ones(100, 6)), Texts(torch.full((1, 3, 5), 7.0), torch.zeros(1, 6))
    condition, dropped = drop_conditions(torch.ones(100, 4, 2, 2), texts, none, uniform, 0.05)
    text, pooled = dropped.hidden, dropped.pooled
    no_text, no_image = (text == 7).all(2).all(1), (condition == 0).flatten(1).all(1)
    drops = (no_text & ~no_image, no_text & no_image, ~no_text & no_image)
    assert [int(rows.sum()) for rows in drops] == [5, 5, 5]
    assert (text[~no_text] == 1).all()
    assert pooled is not None and torch.equal((pooled == 0).all(1), no_text) and pooled[~no_text].all()
    assert (condition[~no_image] == 1).all()


def test_dropout_of_probability_zero_drops_nothing() -> None:
    texts, none = Texts(torch.ones(50, 3, 5)), Texts(torch.zeros(1, 3, 5))
    condition, kept = drop_conditions(torch.ones(50, 4, 2, 2), texts, none, torch.rand(50), 0.0)
    assert condition.all()
    assert kept.hidden.all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noising_and_targets_are_those_of_the_scheduler(prediction_type: str) -> None:
    scheduler = DDPMScheduler(prediction_type=prediction_type, beta_schedule="scaled_linear")
    objective = DiscreteNoise.of(scheduler, None)
    torch.manual_seed(0)
    latents, noise, steps = torch.randn(6, 4, 8, 8), torch.randn(6, 4, 8, 8), torch.tensor([0, 1, 400, 600, 998, 999])
    assert torch.allclose(objective.noised(latents, noise, steps), scheduler.add_noise(latents, noise, steps))
    targets = {"epsilon": noise, "v_prediction": scheduler.get_velocity(latents, noise, steps), "sample": latents}
    assert torch.allclose(objective.target(latents, noise, steps), targets[prediction_type])
    assert objective.loss(targets[prediction_type], latents, noise, steps) < 1e-10


def test_the_bases_zero_terminal_snr_is_kept(tiny_sd: Path) -> None:
    objective = DiscreteNoise.load(tiny_training(tiny_sd))
    assert objective.prediction_type == "v_prediction"
    assert objective.alphas_cumprod[-1] < 1e-10
    latents, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    assert torch.allclose(objective.noised(latents, noise, torch.tensor([999])), noise, atol=1e-4)


def test_min_snr_weights_mean_the_same_loss_in_every_prediction_type() -> None:
    torch.manual_seed(0)
    latents, noise, steps = torch.randn(8, 4, 8, 8), torch.randn(8, 4, 8, 8), torch.arange(8) * 120
    guess = latents + 0.1 * torch.randn_like(latents)
    losses = []
    for kind in ("epsilon", "v_prediction", "sample"):
        objective = DiscreteNoise.of(DDPMScheduler(prediction_type=kind), 5.0)
        share = objective.alphas_cumprod[steps][:, None, None, None]
        noised = objective.noised(latents, noise, steps)
        implied = (noised - share.sqrt() * guess) / (1 - share).sqrt()
        told = {
            "epsilon": implied,
            "v_prediction": share.sqrt() * implied - (1 - share).sqrt() * guess,
            "sample": guess,
        }
        losses.append(objective.loss(told[kind], latents, noise, steps))
    assert torch.allclose(torch.stack(losses), losses[0].expand(3), rtol=1e-3)


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    stream = draw_samples(10, 3, 0, 30)
    epochs = [stream[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert draw_samples(10, 3, 7, 8) == stream[7:15]


def test_a_balanced_stream_shows_each_group_once_a_round_and_each_sample_before_it_repeats() -> None:
    groups = ["add"] * 7 + ["size"] * 2 + [None]
    stream = BalancedOrder(groups, 3).samples(0, 3 * 14)
    rounds = [stream[start : start + 3] for start in range(0, len(stream), 3)]
    assert all(sorted(str(groups[sample]) for sample in shown) == ["None", "add", "size"] for shown in rounds)
    added = [sample for sample in stream if sample < 7]
    assert sorted(added[:7]) == sorted(added[7:]) == list(range(7)) and added[:7] != added[7:]
    assert stream.count(9) == 14 and stream.count(7) == stream.count(8) == 7
    assert BalancedOrder(groups, 3).samples(10, 9) == stream[10:19]  # whatever was drawn before
    assert BalancedOrder(groups, 4).samples(0, 42) != stream


def test_draws_depend_on_seed_step_and_process_alone() -> None:
    shape = torch.Size((2, 4, 8, 8))
    draws = [draw_step(shape, torch.ones(1000), 0, *key) for key in ((5, 0), (5, 0), (6, 0), (5, 1))]
    assert torch.equal(draws[0].noise, draws[1].noise)
    assert torch.equal(draws[0].dropout, draws[1].dropout)
    assert not any(torch.equal(draws[0].noise, other.noise) for other in draws[2:])
    assert not torch.equal(draws[0].noise, draws[0].posterior)


def test_stratified_timesteps_take_one_from_each_part_of_the_density_and_keep_its_chances() -> None:
    chances = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chances[7:12] = 0
    below = np.concatenate([[0.0], np.cumsum(chances.numpy()) / float(chances.sum())])
    means: dict[str, list[float]] = {"strata": [], "alone": []}
    counts = np.zeros(40)
    for step in range(2000):
        drawn = draw_strata(8, chances, 3, step)
        for part, timestep in enumerate(drawn.sort().values.tolist()):  # its interval meets the part
            assert below[timestep] < (part + 1) / 8 and below[timestep + 1] > part / 8
        counts += np.bincount(drawn, minlength=40)
        means["strata"].append(float(drawn.double().mean()))
        alone = draw_step(torch.Size((8, 1)), chances, 3, step).timesteps
        means["alone"].append(float(alone.double().mean()))
    np.testing.assert_allclose(counts / counts.sum(), np.diff(below), atol=0.003)
    assert np.var(means["strata"]) < np.var(means["alone"]) / 10
    assert torch.equal(draw_strata(8, chances, 3, 5), draw_strata(8, chances, 3, 5))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_strata_span_the_processes_and_micro_steps_of_a_step(accumulation: int) -> None:
    config = TrainingConfig(stratified_timesteps=True, train_batch_size=2, gradient_accumulation_steps=accumulation)
    shape, chances = torch.Size((1, 2, 2)), torch.ones(1000)
    two = [SampleStream(config, 9, shape, chances, rank, 2) for rank in (0, 1)]
    alone = SampleStream(replace(config, train_batch_size=4), 9, shape, chances)
    plain = SampleStream(replace(config, stratified_timesteps=False), 9, shape, chances, 0, 2)
    for step in (0, 6):
        micro = range(step * accumulation, (step + 1) * accumulation)
        drawn = [each.draws(number).timesteps for number in micro for each in two]
        assert torch.equal(torch.cat(drawn), torch.cat([alone.draws(number).timesteps for number in micro]))
        width = 1000 / (4 * accumulation)
        assert sorted(int(each // width) for each in torch.cat(drawn)) == list(range(4 * accumulation))
        assert torch.equal(two[0].draws(micro[0]).noise, plain.draws(micro[0]).noise)


@pytest.mark.parametrize(
    ("bias", "favoured"),
    [
        ({"strategy": "none"}, range(0)),
        ({"strategy": "earlier", "portion": 0.3}, range(300)),
        ({"strategy": "later", "portion": 0.3}, range(700, 1000)),
        ({"strategy": "range", "begin": 100, "end": 400}, range(100, 400)),
    ],
)
def test_favoured_timesteps_are_drawn_more_often(bias: dict[str, Any], favoured: range) -> None:
    options = {f"timestep_bias_{name}": value for name, value in bias.items()}
    config = TrainingConfig(timestep_bias_multiplier=4.0, **options)
    weights = DiscreteNoise.of(DDPMScheduler(), None).timestep_chances(config)
    drawn = draw_step(torch.Size((20_000, 1)), weights, 0).timesteps
    share = torch.isin(drawn, torch.tensor(list(favoured))).float().mean().item()
    expected = 4 * 0.3 / (4 * 0.3 + 0.7) if favoured else 0.0
    assert share == pytest.approx(expected, abs=0.015)
    assert (int(drawn.min()), int(drawn.max())) == (0, 999)


def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path: Path, tiny_sd: Path) -> None:
    folder = write_pairs(tmp_path, [{"input": png(), "edited_image": png(), "edit_prompt": "x"}])
    with pytest.raises(
        ValueError, match=r"no column 'original_image'; its columns are: input, edited_image, edit_prompt"
    ):
        open_rows(str(folder), tiny_training(tiny_sd))
    assert len(open_rows(str(folder), tiny_training(tiny_sd, original_image_column="input"))) == 1


def test_only_the_training_split_of_a_folder_is_read(tmp_path: Path, tiny_sd: Path) -> None:
    write_pairs(tmp_path / "dataset", [pair(0), pair(1)])
    write_pairs(tmp_path / "dataset", [pair(2)], "test-00000-of-00001.parquet")
    assert len(open_rows(str(tmp_path), tiny_training(tiny_sd))) == 2
    assert len(open_rows(str(tmp_path / "dataset" / "data"), tiny_training(tiny_sd, max_train_samples=1))) == 1


@pytest.mark.parametrize("data", ["/does/not/exist", "./nor/this", "a/b/c", "typo", ""])
def test_data_that_do_not_exist_are_a_one_line_error(data: str, tiny_sd: Path) -> None:
    with pytest.raises(ValueError, match="does not exist|no data"):
        open_rows(data, tiny_training(tiny_sd))


def test_a_folder_without_parquet_is_an_error(tmp_path: Path, tiny_sd: Path) -> None:
    with pytest.raises(ValueError, match="holds no parquet file"):
        open_rows(str(tmp_path), tiny_training(tiny_sd))


def test_both_images_are_cropped_alike(tmp_path: Path, tiny_sd: Path) -> None:
    cell = png((90, 60), mode="RGBA")
    folder = write_pairs(tmp_path, [pair(0, original_image=cell, edited_image=cell)])
    (row,) = open_rows(str(folder), tiny_training(tiny_sd)).read()
    images = decode_pair(row, 32).pixels
    assert images.shape == (2, 32, 32, 3)
    assert np.array_equal(images[0], images[1])


def test_the_cache_holds_what_the_encoders_say(tmp_path: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd)
    rows = open_rows(str(write_pairs(tmp_path, [pair(number) for number in range(5)])), config)
    cache = load_cache(tmp_path / "cache", rows, config, Accelerator(cpu=True))
    batch = cache.take([4, 1], [False, True])
    raw = [list(rows.read())[number] for number in (4, 1)]
    pixels = torch.from_numpy(np.stack([decode_pair(row, 64).pixels for row in raw])).permute(1, 0, 4, 2, 3) / 127.5 - 1
    vae = load_vae(config, CPU)
    with torch.no_grad():
        posterior = vae.encode(pixels[1]).latent_dist
        assert torch.allclose(batch.mean, posterior.mean, atol=1e-5)
        assert torch.allclose(batch.deviation, posterior.std, atol=1e-5)
        assert torch.allclose(batch.condition, vae.encode(pixels[0]).latent_dist.mode(), atol=1e-5)
        encoder = CLIPTextModel.from_pretrained(tiny_sd, subfolder="text_encoder")
        tokenizer = CLIPTokenizer.from_pretrained(tiny_sd, subfolder="tokenizer")
        prompts = [str(row.edit_prompt) for row in raw]
        assert torch.allclose(batch.texts.hidden, hidden_states(encoder, tokenizer, prompts), atol=1e-5)
        assert torch.allclose(cache.none.hidden, hidden_states(encoder, tokenizer, [""]), atol=1e-5)
    assert len(cache.texts) == 1 + 3


def test_the_mirrored_latents_are_those_of_the_mirrored_images(tmp_path: Path, tiny_sd: Path) -> None:
    data = write_pairs(tmp_path, [pair(number) for number in range(3)])
    plain, mirroring = tiny_training(tiny_sd), tiny_training(tiny_sd, random_flip=True)
    caches = [
        load_cache(tmp_path / str(n), open_rows(str(data), each), each, Accelerator(cpu=True))
        for n, each in enumerate((plain, mirroring))
    ]
    as_they_are = [cache.take([0, 2], [False, False]) for cache in caches]
    assert torch.equal(as_they_are[0].mean, as_they_are[1].mean)
    (raw,) = itertools.islice(open_rows(str(data), plain).read(), 2, 3)
    pixels = torch.from_numpy(decode_pair(raw, 64).pixels[:, :, ::-1].copy()).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        told = load_vae(plain, CPU).encode(pixels).latent_dist
    turned = caches[1].take([2], [True])
    assert torch.allclose(turned.condition[0], told.mode()[0], atol=1e-5)
    assert torch.allclose(turned.mean[0], told.mean[1], atol=1e-5)


def test_the_first_of_several_wordings_is_the_instruction(tmp_path: Path, tiny_sd: Path) -> None:
    data = write_pairs(tmp_path, [pair(0, edit_prompt=["make it red", "redder"]), pair(1, edit_prompt=[])])
    assert open_rows(str(data), tiny_training(tiny_sd)).prompts() == ["make it red", None]


@pytest.mark.parametrize("name", ["pairs.jsonl", "metadata.jsonl"])
def test_tables_of_picture_files_are_trained_on_in_order_and_by_number(
    name: str, tmp_path: Path, tiny_sd: Path
) -> None:
    (tmp_path / "[set] one").mkdir()
    for number in range(3):
        (tmp_path / "[set] one" / f"{number}.png").write_bytes(png()["bytes"])
    suffix = "_file_name" if name == "metadata.jsonl" else ""
    lines = [
        {f"original_image{suffix}": f"{n}.png", f"edited_image{suffix}": f"{n}.png", "edit_prompt": f"edit {n}"}
        for n in range(3)
    ]
    path = tmp_path / "[set] one" / name
    path.write_text("\n".join(map(json.dumps, lines)))
    data, config = str(path.parent if suffix else path), tiny_training(tiny_sd)
    pairs = list(open_rows(data, config).read())
    table = open_table(data, config)
    assert [each.edit_prompt for each in pairs] == ["edit 0", "edit 1", "edit 2"]
    assert [table[number] for number in range(3)] == pairs
    assert decode_pair(pairs[2], 32).pixels.shape == (2, 32, 32, 3)
    with pytest.raises(ValueError, match=r"no column 'before'; its columns are: .*Set training\.original_image_column"):
        check_local_data(data, replace(config, original_image_column="before"))


def test_rows_that_are_of_no_use_are_dropped_and_counted(tmp_path: Path, tiny_sd: Path) -> None:
    broken = [
        pair(1, original_image={"bytes": b"no picture", "path": None}),
        pair(2, edited_image={"bytes": png()["bytes"][:200], "path": None}),
        pair(3, edited_image={"bytes": None, "path": None}),
        pair(4, edit_prompt=None),
        pair(5, edited_image=png((32, 64))),
    ]
    rows = [pair(0), *broken, pair(6)]
    config = tiny_training(tiny_sd)
    opened = open_rows(str(write_pairs(tmp_path, rows)), config)
    cache = load_cache(tmp_path / "cache", opened, config, Accelerator(cpu=True))
    assert len(cache) == 2
    assert cache.dropped == {"image does not decode": 2, "no image": 1, "no instruction": 1, "two shapes": 1}


def test_data_of_which_no_row_can_be_used_are_an_error(tmp_path: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd)
    rows = open_rows(str(write_pairs(tmp_path, [pair(0, original_image={"bytes": b"x", "path": None})])), config)
    with pytest.raises(ValueError, match="no row of the data can be used"):
        load_cache(tmp_path / "cache", rows, config, Accelerator(cpu=True))


def test_a_finished_cache_is_not_computed_again(tmp_path: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd)
    rows = open_rows(str(write_pairs(tmp_path, [pair(0)])), config)
    load_cache(tmp_path / "cache", rows, config, Accelerator(cpu=True))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    load_cache(tmp_path / "cache", rows, replace(config, learning_rate=5e-4), Accelerator(cpu=True))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    load_cache(tmp_path / "cache", rows, replace(config, resolution=32), Accelerator(cpu=True))
    assert not any(path.exists() for path in before)


def test_the_fingerprint_follows_settings_and_data_but_not_paths(tmp_path: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd)
    first, copy = (str(write_pairs(tmp_path / name, [pair(0)])) for name in ("a", "b"))
    other = str(write_pairs(tmp_path / "c", [pair(1)]))
    base = training_fingerprint(config, first)
    assert training_fingerprint(config, copy) == base
    assert training_fingerprint(config, other) != base
    assert training_fingerprint(replace(config, seed=9), first) != base
    assert training_fingerprint(replace(config, log_every=3), first) == base


def test_the_loss_log_is_cut_back_to_where_a_training_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "loss.jsonl"
    log = LossLog(path, 0)
    for step in (10, 20, 30):
        log.write(step, float(step), 1e-3, 1.0)
    path.write_text(path.read_text() + '{"step": 40, "lo')
    LossLog(path, 20).write(30, 5.0, 1e-3, 2.0)
    assert [(entry["step"], entry["loss"]) for entry in RecordFile(path).read()] == [(10, 10.0), (20, 20.0), (30, 5.0)]
    assert mean_of_last(RecordFile(path).read(), 20) == 12.5
