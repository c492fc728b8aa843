"""Proportions of what is shown: exact by round, the same from any step on; several sources against each alone."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ip2p.config import TrainingConfig, TrainingJob
from ip2p.store.journal import RecordFile
from ip2p.training.draws import EncodedPairs, SampleKey, SampleStream
from ip2p.training.fingerprints import training_fingerprint
from ip2p.training.flags import job_of, parse
from ip2p.training.joining import check_sources, open_all_rows
from ip2p.training.loop import Interrupted, Stop
from ip2p.training.mixing import MixedOrder, Rounds, new_stream
from ip2p.training.run import open_pairs
from tests import processes
from tests.test_training import pair, png, tiny_training, write_pairs
from tests.test_training_run import WEIGHTS, _StopAfter, run, same_weights

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
SHAPES = [torch.Size((4, 8, 8)), torch.Size((4, 6, 10)), torch.Size((4, 10, 6))]


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.25, 1.5, 0.0, 3.1), (0.01, 0.6)])
def test_rounds_hold_their_rates_and_are_the_same_from_any_entry_on(rates: tuple[float, ...]) -> None:
    rounds, shown = Rounds(rates, "test", 3), Counter[int]()
    entries = []
    for number in range(400):
        group, before = rounds.at(number)
        assert before == shown[group]
        shown[group] += 1
        entries.append(group)
    for turn in range(1, int(400 / sum(rates))):
        rounded = [int(turn * rate + 0.5) for rate in rates]
        assert [entries[: sum(rounded)].count(group) for group in range(len(rates))] == rounded
    assert Rounds(rates, "test", 3).at(250) == (entries[250], entries[:250].count(entries[250]))
    assert [Rounds(rates, "test", 4).at(number)[0] for number in range(400)] != entries
    assert Rounds(rates, "test", 3).at(10**9)[0] in np.flatnonzero(rates)


def test_rates_of_zero_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="one rate must be above zero") as refused:
        MixedOrder(0, 2, SHAPES[:1], [0, 0], [0, 0], [0.0, 1.0])
    assert "\n" not in str(refused.value)


def test_samples_of_all_sizes_come_equally_often_and_each_before_one_of_its_size_repeats() -> None:
    sizes = [0] * 9 + [1] * 5 + [2] * 1
    order = MixedOrder(1, 4, SHAPES, sizes, [0] * 15, [1.0])
    shown: list[list[int]] = [[], [], []]
    for step in range(15 * 8):
        samples = order.samples(step, 0, 4)
        (size,) = {sizes[sample] for sample in samples}
        assert order.shape(step) == SHAPES[size]
        shown[size] += samples
    for size, count in enumerate((9, 5, 1)):
        members = shown[size]
        passes = [members[start : start + count] for start in range(0, len(members) - count + 1, count)]
        assert all(len(set(each)) == count for each in passes)
        assert abs(len(members) - 8 * 4 * count) <= 4  # 32 epochs, up to a batch
    assert MixedOrder(1, 4, SHAPES, sizes, [0] * 15, [1.0]).samples(77, 1, 2) == order.samples(77, 0, 4)[1:3]


def test_groups_come_in_their_shares_whatever_the_size_of_their_samples() -> None:
    """The chance of a sample is its group's share over the group's samples, as in a plain weighted draw."""
    generator = np.random.default_rng(0)
    sizes, groups = generator.integers(0, 3, 60), generator.integers(0, 4, 60)
    shares = np.array([1.0, 3.0, 0.0, 0.5])
    order = MixedOrder(5, 6, SHAPES, sizes, groups, shares.tolist())
    steps = 6000
    shown = np.bincount([sample for step in range(steps) for sample in order.samples(step, 0, 6)], minlength=60)
    chances = shares[groups] / np.bincount(groups)[groups]
    np.testing.assert_allclose(shown, steps * 6 * chances / chances.sum(), atol=8)


def settings(model: Path, **changes: Any) -> TrainingConfig:
    return tiny_training(model, **({"max_train_steps": 5, "use_ema": False, "train_batch_size": 2} | changes))


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """Five pairs in our columns, and three in those of MagicBrush."""
    ours = write_pairs(tmp_path / "ours", [pair(n, edit_type=("add", "remove")[n % 2]) for n in range(5)])
    names = {"original_image": "source_img", "edit_prompt": "instruction", "edited_image": "target_img"}
    rows = [{names[name]: value for name, value in pair(n).items()} | {"edit_type": "add"} for n in range(10, 13)]
    return ours, write_pairs(tmp_path / "theirs", rows)


def job(config: TrainingConfig, data: Path, output: Path) -> TrainingJob:
    return job_of(config, str(data), output=output, export=output / "model")


def opened(config: TrainingConfig, data: Path, output: Path) -> tuple[EncodedPairs, SampleStream]:
    each, accelerator = job(config, data, output), Accelerator(cpu=True)
    rows = open_all_rows(each)
    pairs = open_pairs(rows, each, accelerator, output)
    return pairs, new_stream(pairs, each, torch.ones(1000), accelerator, rows)


@pytest.mark.parametrize("cached", [True, False])
def test_sources_of_other_columns_are_joined_each_with_the_cache_that_it_has_alone(
    tmp_path: Path, sources: tuple[Path, Path], tiny_sd: Path, cached: bool
) -> None:
    first, second = sources
    config = settings(tiny_sd, cache=cached, cache_epochs=0.0, train_batch_size=1)
    theirs: dict[str, Any] = {"original_image_column": "source_img", "edited_image_column": "target_img"}
    second_alone = replace(config, **theirs, edit_prompt_column="instruction")
    alone = [opened(each, data, tmp_path / data.name) for each, data in ((config, first), (second_alone, second))]
    if cached:
        opened(config, first, tmp_path / "both")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "both").rglob("*.safetensors")}
    pairs, stream = opened(replace(config, more_data=(str(second),)), first, tmp_path / "both")
    assert len(pairs) == 8 and pairs.source_numbers.tolist() == [0] * 5 + [1] * 3
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "both").rglob("*.safetensors")}
    assert before.items() <= after.items() and len(after) == 2 * len(before)
    seen = []
    for step in range(8):
        batch, (sample,) = pairs.load(stream, step, stream.draws(step)), stream.samples(step)
        seen.append(sample)
        source, own = alone[sample >= 5][0], sample - 5 * (sample >= 5)
        only = SimpleNamespace(samples=lambda step, own=own: [own], keys=lambda step, own=own: iter([[key(own)]]))
        expected = source.load(only, 10 * step, stream.draws(step))  # type: ignore[arg-type]
        assert torch.equal(batch.mean, expected.mean) and torch.equal(batch.condition, expected.condition)
        assert torch.equal(batch.texts.hidden, expected.texts.hidden)
    assert sorted(seen) == list(range(8))


def key(number: int) -> SampleKey:
    return SampleKey(number, False, (0.5, 0.5))


@pytest.mark.parametrize("cached", [True, False])
def test_sources_and_values_come_in_the_shares_that_they_are_given(
    tmp_path: Path, sources: tuple[Path, Path], tiny_sd: Path, cached: bool
) -> None:
    options = {"more_data": (str(sources[1]),), "data_weights": (1.0, 3.0), "cache": cached}
    weights = {"balance_column": "edit_type", "balance_weights": ("remove=2",)}
    pairs, stream = opened(settings(tiny_sd, **options, **weights), sources[0], tmp_path / "out")
    shown = np.bincount([sample for step in range(1200) for sample in stream.samples(step)], minlength=8)
    removed, added = 2 / 3 / 2, 1 / 3 / 3  # of a source with two to remove and three to add
    expected = np.array([added, removed, added, removed, added, 3 / 3, 3 / 3, 3 / 3]) / 4
    np.testing.assert_allclose(shown, 2400 * expected, atol=3)


def test_a_value_that_no_row_has_and_weights_that_do_not_fit_are_refused(
    tmp_path: Path, sources: tuple[Path, Path], tiny_sd: Path
) -> None:
    config = settings(tiny_sd, balance_column="edit_type", balance_weights=("ad=2",))
    with pytest.raises(ValueError, match="balance_weights names ad, but the values of edit_type are add, remove"):
        opened(config, sources[0], tmp_path / "out")
    with pytest.raises(ValueError, match="data_weights must be 2, of the data and of each of more_data, got 1"):
        settings(tiny_sd, more_data=("x",), data_weights=(1.0,))
    for wrong in ("add", "add=", "add=-1", "add=much", "add=nan"):
        with pytest.raises(ValueError, match="balance_weights are VALUE=WEIGHT"):
            settings(tiny_sd, balance_column="edit_type", balance_weights=(wrong,))
    with pytest.raises(ValueError, match="Set balance_column too"):
        settings(tiny_sd, balance_weights=("add=2",))
    (tmp_path / "bad").mkdir()
    bad = write_pairs(tmp_path / "bad", [{"picture": png()}])
    with pytest.raises(ValueError, match=r"bad.*has no column 'original_image'; its columns are: picture"):
        check_sources(str(sources[0]), settings(tiny_sd, more_data=(str(bad),)))


def test_the_fingerprint_follows_the_content_of_every_source_and_the_weights(
    tmp_path: Path, sources: tuple[Path, Path], tiny_sd: Path
) -> None:
    config, first = settings(tiny_sd), str(sources[0])
    both = replace(config, more_data=(str(sources[1]),))
    copied = shutil.copytree(sources[1], tmp_path / "copy")
    found = [
        training_fingerprint(each, first)
        for each in (config, both, replace(both, more_data=(str(copied),)), replace(both, data_weights=(1.0, 2.0)))
    ]
    assert found[1] == found[2] and len(set(found)) == 3
    write_pairs(sources[1], [pair(30)])
    assert training_fingerprint(both, first) != found[1]


@pytest.mark.slow
def test_a_mixture_that_is_stopped_ends_in_the_same_weights(
    tmp_path: Path, sources: tuple[Path, Path], tiny_sd: Path
) -> None:
    options = {"more_data": (str(sources[1]),), "data_weights": (2.0, 1.0), "checkpointing_steps": 2}
    config = settings(tiny_sd, **options, aspect_ratio_buckets=True, balance_column="edit_type")
    summary = run(config, str(sources[0]), tmp_path / "whole", tmp_path / "whole-model", Stop())
    assert (summary["samples"], summary["dropped"]) == (8, 0)
    with pytest.raises(Interrupted):
        run(config, str(sources[0]), tmp_path / "cut", tmp_path / "cut-model", _StopAfter(3))
    run(config, str(sources[0]), tmp_path / "cut", tmp_path / "cut-model", Stop())
    assert same_weights(tmp_path / "whole-model" / WEIGHTS, tmp_path / "cut-model" / WEIGHTS)


def test_the_flags_of_a_mixture_are_taken_by_the_drop_in() -> None:
    words = "--train_data_dir x --balance_column edit_type --balance_weights add=2 remove=0.5"
    parsed = parse([*words.split(), "--more_data", "a", "b", "--data_weights", "1", "2", "0.5"])
    assert (parsed.more_data, parsed.data_weights) == (("a", "b"), (1.0, 2.0, 0.5))
    assert parsed.weights_by_value == {"add": 2.0, "remove": 0.5}


@pytest.mark.slow
def test_two_processes_train_what_one_does_on_a_mixture_of_shapes(
    tmp_path: Path, sources: tuple[Path, Path], tiny_sd: Path
) -> None:
    wide = {name: png((128, 64), seed=seed) for seed, name in enumerate(("original_image", "edited_image"))}
    write_pairs(sources[0], [pair(n, **(wide if n % 2 else {})) for n in range(5)])
    words = [f"--pretrained_model_name_or_path={tiny_sd}", f"--train_data_dir={sources[0]}"]
    words += ["--original_image_column=original_image", "--resolution=64", "--aspect_ratio_buckets"]
    words += [f"--more_data={sources[1]}", "--data_weights", "2", "1", "--region_weight=log2", "--stratified_timesteps"]
    words += ["--optim=schedule_free", "--learning_rate=1e-3", "--max_train_steps=5", "--log_every=1"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    alone, both = ([*words, f"--output_dir={tmp_path / name}"] for name in ("1", "2"))
    processes.run(processes.training, [*alone, "--train_batch_size=4"], tmp_path / "log", environment)
    processes.run_ranks(processes.training, [*both, "--train_batch_size=2"], tmp_path / "log", environment)
    losses = [[entry["loss"] for entry in RecordFile(tmp_path / name / "loss.jsonl").read()] for name in ("1", "2")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("1", "2"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=5e-5, rtol=0)
