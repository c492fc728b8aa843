"""A latent cache in a store: what is put there, what a window of it holds, and that a training sees the same."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fsspec.implementations.memory import MemoryFileSystem

from ip2p.config import TrainingConfig
from ip2p.store import remote
from ip2p.store.journal import RecordFile
from ip2p.store.remote import NotCopied, Remote
from ip2p.training import cache_store, filling, text_cache
from ip2p.training.cache import LatentCache
from ip2p.training.cache_store import CacheStore
from ip2p.training.data import open_rows
from ip2p.training.draws import SampleStream
from ip2p.training.encoding import encode_views
from ip2p.training.fetching import FetchedParts
from ip2p.training.filling import load_cache
from ip2p.training.fingerprints import training_fingerprint
from ip2p.training.loop import Interrupted, Stop
from ip2p.training.windows import Window, WindowOrder
from tests import processes
from tests.s3_server import serving_s3
from tests.test_training import pair, png, tiny_training, write_pairs
from tests.test_training_run import WEIGHTS, _StopAfter, run, same_weights

pytestmark = pytest.mark.usefixtures("fresh_accelerator", "small_parts")
NUM_PAIRS, ROWS, WINDOW = 13, 2, 2
PARTS = 7


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirteen pairs, one of which cannot be used."""
    rows = [pair(number) for number in range(NUM_PAIRS)]
    rows[5]["edited_image"] = {"bytes": b"broken", "path": None}
    return write_pairs(tmp_path / "data", rows)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two rows and two texts, and no pause before a copy is tried again."""
    monkeypatch.setattr(filling, "ROWS_PER_PART", ROWS)
    for module in (filling, text_cache):
        monkeypatch.setattr(module, "TEXTS_PER_PART", 2)
    monkeypatch.setattr(remote, "SECONDS_BETWEEN_TRIES", 0.0)


class Watch:
    """Which parts were copied from the store, and how many lay in the local folder when one came."""

    def __init__(self) -> None:
        self.copied: list[str] = []
        self.most = 0

    def clear(self) -> None:
        self.copied, self.most = [], 0

    @property
    def rows(self) -> list[str]:
        return sorted(name for name in self.copied if name.startswith("rows-"))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Counts what is copied, which goes on as ever."""
    watch, get, count = Watch(), Remote.get, threading.Lock()

    def watched(self: Remote, path: Path, size: int) -> None:
        get(self, path, size)
        with count:
            watch.copied.append(path.name)
            watch.most = max(watch.most, len(list(path.parent.glob("rows-*"))))

    monkeypatch.setattr(Remote, "get", watched)
    return watch


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of pairs of each batch that is encoded."""
    batches: list[int] = []

    def counted(vae: Any, pairs: Any, config: Any) -> dict[str, torch.Tensor]:
        batches.append(len(pairs))
        return encode_views(vae, pairs, config)

    monkeypatch.setattr(filling, "encode_views", counted)
    return batches


def streamed(sd: Path, store: object, **changes: Any) -> TrainingConfig:
    """Settings of a training whose batches of three lie across windows of two parts."""
    fixed = {"max_train_steps": 11, "train_batch_size": 3, "checkpointing_steps": 100, "cache_window": WINDOW}
    latent_cache = None if store is None else str(store)
    return tiny_training(sd, **(fixed | {"log_every": 1, "use_ema": False, "latent_cache": latent_cache} | changes))


def train(config: TrainingConfig, data: Path, folder: Path, stop: Stop | None = None) -> dict[str, Any]:
    return run(config, str(data), folder, folder / "model", stop or Stop())


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in RecordFile(folder / "loss.jsonl").read()]


def assert_same(first: Path, second: Path) -> None:
    """The same losses and weights, bit for bit."""
    assert losses(first) == losses(second)
    assert same_weights(first / "model" / WEIGHTS, second / "model" / WEIGHTS)


def local_parts(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").glob("*/rows-*") if path.parent.parent.name == "cache"]


# --- the order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts_at_once", [1, 2, 3, 7, 20])
def test_windows_show_every_row_once_an_epoch_and_are_the_same_from_any_sample_on(parts_at_once: int) -> None:
    sizes = [2, 0, 3, 1, 0, 4, 5]
    order, total = WindowOrder(sizes, parts_at_once, seed=3), sum(sizes)
    part_of = np.repeat(range(len(sizes)), sizes)
    stream = order.samples(0, 3 * total)
    for epoch in range(3):
        shown = stream[epoch * total : (epoch + 1) * total]
        assert sorted(shown) == list(range(total))
        of_epoch = [order.parts(Window(epoch, number)) for number in range(order.num_windows)]
        assert sorted(part for parts in of_epoch for part in parts) == list(range(len(sizes)))
        in_order = [sorted(sample for sample in range(total) if part_of[sample] in parts) for parts in of_epoch]
        ends = np.cumsum([0, *map(len, in_order)])
        assert [sorted(shown[a:b]) for a, b in zip(ends, ends[1:], strict=False)] == in_order
    assert stream[:total] != stream[total : 2 * total]
    again = WindowOrder(sizes, parts_at_once, seed=3)
    assert all(again.samples(first, 4) == stream[first : first + 4] for first in reversed(range(2 * total)))
    assert WindowOrder(sizes, parts_at_once, seed=4).samples(0, total) != stream[:total]


def test_the_window_that_follows_has_the_next_sample_even_if_some_windows_have_none() -> None:
    order = WindowOrder([2, 0, 3, 0, 0, 4], 1, seed=1)
    window = order.windows(0, 1)[0]
    for _ in range(9):
        follower, first = order.after(window)
        assert order.windows(first - 1, 2) == [window, follower]
        assert order.samples(first, 1)[0] in range(9)
        window = follower


def test_several_processes_take_their_places_in_the_order_of_one(tiny_sd: Path) -> None:
    def stream(batch_size: int, rank: int, ranks: int) -> SampleStream:
        config = streamed(tiny_sd, None, train_batch_size=batch_size)
        order, shape = WindowOrder([2] * 6, WINDOW, config.seed), torch.Size((4, 8, 8))
        return SampleStream(config, 12, shape, torch.ones(1000), rank, ranks, windows=order)

    one, two = stream(4, 0, 1), [stream(2, rank, 2) for rank in range(2)]
    for step in range(12):
        assert one.samples(step) == [sample for each in two for sample in each.samples(step)]


# --- trainings ------------------------------------------------------------------------------------------------------


def test_a_training_from_a_store_sees_what_one_from_the_local_disk_sees_and_holds_two_windows(
    tmp_path: Path, data: Path, tiny_sd: Path, watch: Watch, encoded: list[int]
) -> None:
    config = streamed(tiny_sd, tmp_path / "store")
    local = train(replace(config, latent_cache=None), data, tmp_path / "local")
    assert not watch.copied and len(local_parts(tmp_path / "local")) == PARTS
    encoded.clear()
    summary = train(config, data, tmp_path / "streamed")
    assert sum(encoded) == NUM_PAIRS - 1 and (summary["samples"], summary["dropped"]) == (12, 1)
    assert summary["loss"] == local["loss"]
    assert_same(tmp_path / "local", tmp_path / "streamed")
    assert 0 < watch.most <= 2 * WINDOW and len(local_parts(tmp_path / "streamed")) <= 2 * WINDOW
    (stored,) = (tmp_path / "store").iterdir()
    assert len(list(stored.glob("rows-*.safetensors"))) == PARTS
    assert not list((tmp_path / "streamed").glob("cache/*/finished.json"))  # which would say that all parts are here
    for path in local_parts(tmp_path / "streamed"):
        assert path.read_bytes() == (stored / path.name).read_bytes()
    order = [losses(tmp_path / name) for name in ("local", "streamed")]
    other = replace(config, latent_cache=None, cache_window=None)
    train(other, data, tmp_path / "whole")
    assert losses(tmp_path / "whole") != order[0]  # the samples come in another order


def test_a_training_goes_on_in_the_midst_of_a_window_on_another_machine_without_encoding_anything(
    tmp_path: Path, data: Path, tiny_sd: Path, watch: Watch, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = streamed(tiny_sd, tmp_path / "store", lr_scheduler="cosine")
    train(config, data, tmp_path / "whole")
    for steps in (2, 3, 2):
        with pytest.raises(Interrupted):
            train(config, data, tmp_path / "cut", _StopAfter(steps))
        shutil.rmtree(tmp_path / "cut/cache")
        encoded.clear()
        watch.clear()
        monkeypatch.setattr(filling, "_write_rows", None)
    train(config, data, tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert not encoded and watch.most <= 2 * WINDOW
    assert {name for name in watch.copied if name.startswith("text-")} == {f"text-0000{n}.safetensors" for n in (0, 1)}


def test_a_resumed_training_copies_only_the_windows_that_it_comes_to(
    tmp_path: Path, data: Path, tiny_sd: Path, watch: Watch
) -> None:
    config = streamed(tiny_sd, tmp_path / "store", train_batch_size=1, max_train_steps=2, lr_scheduler="constant")
    train(config, data, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/cache")
    (stored,) = (tmp_path / "store").iterdir()
    order = WindowOrder([cache_store.facts_of(path).rows for path in sorted(stored.glob("rows-*.safetensors"))], 2, 0)
    watch.clear()
    train(replace(config, max_train_steps=3), data, tmp_path / "out")
    (window,) = order.windows(2, 1)
    assert watch.rows == [cache_store.part_name(number) for number in sorted(order.parts(window))]


@pytest.mark.usefixtures("own_handlers")
def test_a_build_goes_on_at_its_last_part_on_another_machine(
    tmp_path: Path, data: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, calls, stops = streamed(tiny_sd, tmp_path / "store", max_train_steps=2), list[int](), {4}

    def counted(*arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) in stops:
            signal.raise_signal(signal.SIGTERM)
        return encode_views(*arguments)

    monkeypatch.setattr(filling, "encode_views", counted)
    with pytest.raises(Interrupted):
        train(config, data, tmp_path / "cut", Stop().on_signals())
    (stored,) = (tmp_path / "store").iterdir()
    whole = {path.name for path in stored.glob("rows-*")}
    assert whole == {f"rows-0000{n}.safetensors{end}" for n in range(3) for end in ("", ".json")}
    assert len(local_parts(tmp_path / "cut")) <= WINDOW
    (stored / "rows-00001.safetensors.json").unlink()  # as if it was killed in the midst of a copy
    calls.clear()
    stops.clear()
    train(config, data, tmp_path / "elsewhere")
    assert len(calls) == PARTS - 2
    train(replace(config, latent_cache=None), data, tmp_path / "alone")
    assert_same(tmp_path / "elsewhere", tmp_path / "alone")


def test_a_store_without_a_window_changes_nothing_but_where_the_cache_lies(
    tmp_path: Path, data: Path, tiny_sd: Path, encoded: list[int], watch: Watch
) -> None:
    plain = streamed(tiny_sd, None, cache_window=None, cache_epochs=0.0)
    stored = replace(plain, latent_cache=str(tmp_path / "store"))
    assert training_fingerprint(plain, str(data)) == training_fingerprint(stored, str(data))
    windowed = training_fingerprint(replace(plain, cache_window=2), str(data))
    assert windowed != training_fingerprint(plain, str(data))
    train(plain, data, tmp_path / "first")
    encoded.clear()
    train(stored, data, tmp_path / "first")  # a cache that is there is put into the store
    assert not encoded and not watch.copied
    train(stored, data, tmp_path / "second")
    assert not encoded and len(watch.rows) == PARTS
    assert_same(tmp_path / "first", tmp_path / "second")
    (copied,) = (tmp_path / "second/cache").iterdir()
    assert (copied / "finished.json").exists()
    train(plain, data, tmp_path / "second")
    assert not encoded
    with pytest.raises(ValueError, match=r"latent_cache must lie outside the training's own caches in .* Give another"):
        train(replace(stored, latent_cache=str(tmp_path / "second/cache")), data, tmp_path / "second")


def test_texts_past_the_limit_are_encoded_at_every_step_on_every_machine(
    tmp_path: Path, data: Path, tiny_sd: Path, encoded: list[int]
) -> None:
    config = streamed(tiny_sd, tmp_path / "store", max_text_cache_gib=0.0)
    train(config, data, tmp_path / "first")
    encoded.clear()
    train(replace(config, max_text_cache_gib=32.0), data, tmp_path / "second")
    assert not encoded and not [*tmp_path.rglob("text-*")]
    assert_same(tmp_path / "first", tmp_path / "second")


# --- damages and failures -------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("damage", [truncate, overwrite, Path.unlink])
def test_a_local_part_that_is_damaged_is_copied_anew(
    tmp_path: Path, data: Path, tiny_sd: Path, damage: Callable[[Path], None], encoded: list[int]
) -> None:
    config = streamed(tiny_sd, tmp_path / "store", max_train_steps=3, lr_scheduler="constant")
    train(config, data, tmp_path / "damaged")
    encoded.clear()
    for path in local_parts(tmp_path / "damaged"):
        damage(path)
    for path in tmp_path.glob("damaged/cache/*/text-00000.safetensors"):
        truncate(path)
    train(replace(config, max_train_steps=6), data, tmp_path / "damaged")
    train(replace(config, max_train_steps=6, latent_cache=None), data, tmp_path / "local")
    assert_same(tmp_path / "damaged", tmp_path / "local")
    assert len(encoded) == PARTS  # of the local one


def test_a_damaged_part_of_an_earlier_build_is_made_again(
    tmp_path: Path, data: Path, tiny_sd: Path, encoded: list[int]
) -> None:
    config = streamed(tiny_sd, None, max_train_steps=2)
    train(config, data, tmp_path / "out")
    encoded.clear()
    truncate(sorted(local_parts(tmp_path / "out"))[3])
    train(replace(config, latent_cache=str(tmp_path / "store"), seed=1), data, tmp_path / "out")
    assert encoded == [2]


def opened(config: TrainingConfig, data: Path, folder: Path) -> LatentCache:
    return load_cache(folder / "cache", open_rows(str(data), config), config, Accelerator(cpu=True))


def test_a_part_that_is_damaged_in_the_store_is_named_with_the_way_out(
    tmp_path: Path, data: Path, tiny_sd: Path, encoded: list[int]
) -> None:
    config = streamed(tiny_sd, tmp_path / "store")
    opened(config, data, tmp_path / "out")
    (stored,) = (tmp_path / "store").iterdir()
    overwrite(stored / "rows-00006.safetensors")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(NotCopied, match=r"rows-00006.safetensors is damaged. Remove it and finished.json") as refused:
        opened(config, data, tmp_path / "out").rows[6]
    assert "\n" not in str(refused.value)
    (stored / "rows-00006.safetensors").unlink()
    (stored / "finished.json").unlink()
    encoded.clear()
    assert opened(config, data, tmp_path / "out").rows[6]["prompt"].numel() == 1
    assert encoded == [1]


class Unsteady(MemoryFileSystem):  # type: ignore[misc]
    """A store in memory that does what it is told before it gives a file."""

    protocol = "unsteady"
    store: dict[str, Any] = {}
    before: Callable[[str], object] = staticmethod(lambda path: None)

    def get_file(self, path: str, local: str, **options: Any) -> None:
        type(self).before(path)
        super().get_file(path, local, **options)


@pytest.fixture
def unsteady(monkeypatch: pytest.MonkeyPatch) -> type[Unsteady]:
    """An empty store whose behaviour a test may set."""
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    monkeypatch.setattr(Unsteady, "store", {})
    monkeypatch.setattr(Unsteady, "pseudo_dirs", [""])
    monkeypatch.setattr(Unsteady, "before", staticmethod(lambda path: None))
    return Unsteady


def test_a_copy_that_fails_is_tried_again(
    tmp_path: Path,
    data: Path,
    tiny_sd: Path,
    unsteady: type[Unsteady],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: Counter[str] = Counter()

    def fail_twice(path: str) -> None:
        tries[path] += 1
        if tries[path] < 3:
            raise OSError("the line is busy")

    monkeypatch.setattr(unsteady, "before", staticmethod(fail_twice))
    config = streamed(tiny_sd, "unsteady://latents", max_train_steps=5)
    train(config, data, tmp_path / "streamed")
    assert tries and "could not be copied: the line is busy; trying again" in caplog.text
    train(replace(config, latent_cache=None), data, tmp_path / "local")
    assert_same(tmp_path / "local", tmp_path / "streamed")


def test_a_part_that_never_comes_ends_the_training_with_a_line_and_a_checkpoint(
    tmp_path: Path, data: Path, tiny_sd: Path, unsteady: type[Unsteady], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = streamed(tiny_sd, "unsteady://latents", lr_scheduler="constant", train_batch_size=1)
    first = replace(config, max_train_steps=1)
    train(first, data, tmp_path / "cut")
    here = {path.name for path in local_parts(tmp_path / "cut")}

    def fail(path: str) -> None:
        if path.rpartition("/")[2] not in here:
            raise OSError("no route\nto host")

    monkeypatch.setattr(unsteady, "before", staticmethod(fail))
    with pytest.raises(NotCopied, match=r"rows-0000\d.safetensors could not be copied in 5 tries: no route") as refused:
        train(config, data, tmp_path / "cut")
    assert "\n" not in str(refused.value) and "Run again once the store can be reached" in str(refused.value)
    (saved,) = (path for path in tmp_path.glob("cut/checkpoint-*") if path.name != "checkpoint-1")
    assert saved.name != "checkpoint-11"
    monkeypatch.setattr(unsteady, "before", staticmethod(lambda path: None))
    train(config, data, tmp_path / "cut")
    train(replace(config, latent_cache=None), data, tmp_path / "local")
    assert_same(tmp_path / "local", tmp_path / "cut")


@pytest.mark.usefixtures("own_handlers")
def test_a_stop_is_heeded_while_a_part_does_not_come(
    tmp_path: Path, data: Path, tiny_sd: Path, unsteady: type[Unsteady], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, go_on, taken = streamed(tiny_sd, "unsteady://latents"), threading.Event(), list[str]()
    main = threading.main_thread().ident

    def hang(path: str) -> None:
        taken.append(path)
        if len(taken) >= 5 and main is not None:
            signal.pthread_kill(main, signal.SIGTERM)
            go_on.wait()

    monkeypatch.setattr(unsteady, "before", staticmethod(hang))
    with pytest.raises(Interrupted):
        train(config, data, tmp_path / "cut", Stop().on_signals())
    go_on.set()
    assert [*tmp_path.glob("cut/checkpoint-*")]
    train(config, data, tmp_path / "cut")
    train(replace(config, latent_cache=None), data, tmp_path / "local")
    assert_same(tmp_path / "local", tmp_path / "cut")


def test_processes_of_a_node_copy_each_part_once_and_may_remove_what_others_have_mapped(
    tmp_path: Path, data: Path, tiny_sd: Path, watch: Watch
) -> None:
    config = streamed(tiny_sd, tmp_path / "store")
    opened(config, data, tmp_path / "out")
    (stored,), (folder,) = (tmp_path / "store").iterdir(), (tmp_path / "out/cache").iterdir()
    store = CacheStore(Remote.open(str(stored), "latent_cache"), folder)
    index = store.index()
    assert index is not None
    for path in folder.glob("rows-*"):
        path.unlink()
    watch.clear()
    both = [FetchedParts(store, index, None, rank, 2) for rank in range(2)]
    threads = [threading.Thread(target=each.enter, args=([0, 1, 2, 3], [4])) for each in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both[0].enter([4], [])
    assert watch.rows == [cache_store.part_name(number) for number in range(5)]
    assert sorted(path.name for path in folder.glob("rows-*")) == [cache_store.part_name(4)]
    assert both[1][2]["mean"].isfinite().all()
    both[1].enter([4, 5], [])
    assert both[1][5]["row"].tolist() == [10, 11]


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"balance_column": "edit_type"},
        {"more_data": ("other",)},
        {"data_weights": (1.0,)},
        {"aspect_ratio_buckets": True},
        {"cache": False},
        {"cache": False, "cache_window": None, "latent_cache": "s3://bucket/latents"},
        {"cache_window": 0},
    ],
)
def test_settings_that_draw_from_all_parts_and_those_without_a_cache_are_refused(
    tiny_sd: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"(cache_window|latent_cache) (cannot be|is a setting|must be)") as refused:
        streamed(tiny_sd, None, **changes)
    assert "\n" not in str(refused.value) and all(
        name in str(refused.value) for name, value in changes.items() if value
    )


def test_a_window_is_refused_where_random_crops_rule_a_cache_out(tmp_path: Path, tiny_sd: Path) -> None:
    wide = {"original_image": png((96, 64)), "edited_image": png((96, 64), seed=1), "edit_prompt": "make it red"}
    config = streamed(tiny_sd, tmp_path / "store", center_crop=False)
    with pytest.raises(ValueError, match="cache_window is of a cache, which random crops rule out"):
        train(config, write_pairs(tmp_path / "wide", [wide] * 3), tmp_path / "out")


def test_a_store_that_needs_a_missing_package_is_refused_in_one_line(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere://latents/\w+ cannot be opened: .* another latent_cache"):
        train(streamed(tiny_sd, "nowhere://latents"), data, tmp_path / "out")


# --- a real server --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cache_lies_on_s3_and_is_trained_from_on_another_machine(
    tmp_path: Path, data: Path, tiny_sd: Path, watch: Watch, encoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ip2p.training")
    with serving_s3() as bucket:
        config = streamed(tiny_sd, f"{bucket}/latents")
        with pytest.raises(Interrupted):
            train(config, data, tmp_path / "first", _StopAfter(4))
        shutil.copytree(tmp_path / "first", tmp_path / "second", ignore=shutil.ignore_patterns("cache"))
        encoded.clear()
        train(config, data, tmp_path / "second")
        assert not encoded and watch.most <= 2 * WINDOW
        assert f"using the latent cache in {bucket}/latents/" in caplog.text
        train(replace(config, latent_cache=None), data, tmp_path / "local")
    assert_same(tmp_path / "local", tmp_path / "second")


@pytest.mark.slow
def test_two_processes_train_from_a_store_what_one_does(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    words = [f"--pretrained_model_name_or_path={tiny_sd}", f"--train_data_dir={data}", "--cache_window=1"]
    words += ["--original_image_column=original_image", "--resolution=64", "--learning_rate=1e-3"]
    words += ["--max_train_steps=5", "--log_every=1", "--lr_warmup_steps=0"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    alone, both, again = (
        [*words, f"--output_dir={tmp_path / name}", *store]
        for name, store in (
            ("alone", []),
            ("both", [f"--latent_cache={tmp_path / 'store'}"]),
            ("again", [f"--latent_cache={tmp_path / 'store'}"]),
        )
    )
    processes.run(processes.training, [*alone, "--train_batch_size=4"], tmp_path / "log", environment)
    for each in (both, again):  # which fills the store, and which finds it filled
        processes.run_ranks(processes.training, [*each, "--train_batch_size=2"], tmp_path / "log", environment)
    values = {name: [loss for _, loss in losses(tmp_path / name)] for name in ("alone", "both", "again")}
    np.testing.assert_allclose(values["both"], values["alone"], rtol=1e-4)
    assert values["both"] == values["again"]
