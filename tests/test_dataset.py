"""The dataset of a run: what `datasets` makes of it, what is in it, and what a killed run leaves."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image, load_dataset

from ip2p import store
from ip2p.config import DatasetConfig, EditTypeRendering, PipelineConfig
from ip2p.dataset import files, write_dataset
from ip2p.dataset.schema import COLUMNS
from ip2p.images import encode_image
from ip2p.records import Candidate, EditTriplet, PairScores, RenderSpec, ScoredCandidate, Verdict
from ip2p.rendering.table import OPTIONAL_COLUMNS, as_row
from ip2p.sources.columns import SIDES

REJECTED_EVERY = 5
NUM_SHARDS, TRIPLETS, CANDIDATES = 4, 10, 2


def scored(shard: int, number: int, candidate: int, *, accept: bool = True) -> ScoredCandidate:
    triplet = EditTriplet(
        original_prompt=f"caption {shard} {number}",
        edit_prompt=f"edit {shard} {number}",
        edited_prompt=f"edited {shard} {number}",
        edit_type=f"type {shard}",
        source="test",
    )
    spec = RenderSpec(triplet_id=triplet.id, candidate=candidate, seed=2**62 + number, guidance_scale=7.5, p2p=0.5)
    rejected = not accept or (number * CANDIDATES + candidate) % REJECTED_EVERY == 0
    return ScoredCandidate(
        candidate=Candidate(triplet=triplet, spec=spec),
        scores=PairScores(original=0.1 * number, edited=0.3, direction=0.2, image=0.9),
        verdict=Verdict(reason="low_direction" if rejected else ""),
    )


def image_of(*key: int) -> dict[str, Any]:
    pixels = np.random.default_rng(key).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    return {"bytes": encode_image(pixels, "png", 95), "path": f"{key}.png"}


def write_pairs(config: PipelineConfig, *, num_shards: int = NUM_SHARDS, accept: bool = True) -> None:
    for shard in range(num_shards):
        rows = []
        for number in range(TRIPLETS):
            for candidate in range(CANDIDATES):
                images = {name: image_of(shard, number, candidate, side) for side, name in enumerate(SIDES)}
                rows.append(as_row(scored(shard, number, candidate, accept=accept)) | images)
        table = pa.Table.from_pylist(rows)
        for stage in ("candidates", "pairs"):
            path = store.RunFolder(config.out).shard(stage, shard)
            store.write_shard(path, table, fingerprint="test", seconds=0.0, optional=OPTIONAL_COLUMNS)


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    made = PipelineConfig(out=tmp_path / "run", dataset=DatasetConfig(test_fraction=0.3, rows_per_shard=16))
    write_pairs(made)
    return made


def rows_of(config: PipelineConfig, split: str = "*") -> list[dict[str, Any]]:
    paths = sorted((config.out / "dataset" / "data").glob(f"{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_datasets_loads_the_folder_with_image_features_and_both_splits(config: PipelineConfig, tmp_path: Path) -> None:
    counts = write_dataset(config)
    loaded = load_dataset(str(config.out / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": counts["train"], "test": counts["test"]}
    assert tuple(loaded["train"].column_names) == COLUMNS
    assert all(isinstance(loaded["test"].features[name], Image) for name in SIDES)
    assert loaded["test"][0]["edited_image"].size == (8, 8)
    streamed = load_dataset(str(config.out / "dataset"), split="train", streaming=True)
    assert [row["triplet_id"] for row in streamed] == loaded["train"]["triplet_id"]


def test_the_files_alone_have_image_features_without_the_card(config: PipelineConfig, tmp_path: Path) -> None:
    write_dataset(config)
    pattern = str(config.out / "dataset" / "data" / "train-*.parquet")
    loaded = load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["original_image"], Image)


def test_every_accepted_pair_is_there_once_byte_for_byte(config: PipelineConfig) -> None:
    counts = write_dataset(config)
    pairs = [row for path in store.RunFolder(config.out).shards("pairs") for row in pq.read_table(path).to_pylist()]
    accepted = {(row["triplet_id"], row["candidate"]): row for row in pairs if row["accepted"]}
    rows = rows_of(config)
    assert len(rows) == len(accepted) == counts["pairs"] == NUM_SHARDS * TRIPLETS * CANDIDATES * 4 // 5
    for row in rows:
        assert row == {name: accepted[row["triplet_id"], row["candidate"]][name] for name in COLUMNS}


def test_no_triplet_and_no_caption_is_in_two_splits(config: PipelineConfig) -> None:
    write_dataset(config)
    for columns in (("triplet_id",), ("original_prompt", "edited_prompt")):
        train, test = ({row[name] for row in rows_of(config, split) for name in columns} for split in ("train", "test"))
        assert train and test and not train & test


def test_a_share_of_the_training_triplets_grows_only_by_addition_and_leaves_the_test_split(
    config: PipelineConfig,
) -> None:
    found, tests = [], []
    for share in (0.2, 0.5, 1.0):
        shared = replace(config, dataset=replace(config.dataset, train_share=share))
        counts = write_dataset(shared)
        triplets = [row["triplet_id"] for row in rows_of(shared, "train")]
        assert counts["beyond_share"] == NUM_SHARDS * TRIPLETS * CANDIDATES * 4 // 5 - counts["pairs"]
        assert ("- beyond_share" in (config.out / "dataset/README.md").read_text()) == (share < 1)
        found.append(triplets)
        tests.append(rows_of(shared, "test"))
    assert tests[0] == tests[1] == tests[2] != []
    assert 0 < len(found[0]) < len(found[1]) < len(found[2])
    for small, large in zip(found, found[1:], strict=False):
        assert small == [each for each in large if each in set(small)]


@pytest.mark.parametrize("share", [0.0, 1.1, -0.5])
def test_a_share_of_nothing_or_of_more_than_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="train_share must lie above 0 and up to 1"):
        DatasetConfig(train_share=share)


def test_a_share_too_small_for_the_pairs_at_hand_says_so(config: PipelineConfig) -> None:
    with pytest.raises(ValueError, match=r"train_share 1e-09 leaves none of \d+ pairs"):
        write_dataset(replace(config, dataset=replace(config.dataset, train_share=1e-9)))


def test_pairs_that_share_a_caption_with_the_other_split_are_left_out_and_counted(config: PipelineConfig) -> None:
    write_dataset(config)
    test_caption, train_caption = (rows_of(config, split)[0]["original_prompt"] for split in ("test", "train"))
    crossing = EditTriplet(original_prompt=train_caption, edit_prompt="swap", edited_prompt=test_caption.upper())
    row = as_row(replace(scored(0, 1, 0), candidate=replace(scored(0, 1, 0).candidate, triplet=crossing)))
    table = pa.Table.from_pylist([row | {name: image_of(9) for name in SIDES}])
    store.write_shard(store.RunFolder(config.out).shard("pairs", 9), table, fingerprint="test", seconds=0.0)
    counts = write_dataset(config)
    assert counts["split_conflict"] == 1 and crossing.id not in {row["triplet_id"] for row in rows_of(config)}


def test_adding_shards_moves_no_pair(config: PipelineConfig, tmp_path: Path) -> None:
    longer = replace(config, out=tmp_path / "longer")
    write_pairs(longer, num_shards=NUM_SHARDS + 2)
    write_dataset(config)
    write_dataset(longer)
    for split in ("train", "test"):
        before, after = ({row["triplet_id"] for row in rows_of(made, split)} for made in (config, longer))
        assert before < after


def test_rows_are_mixed_and_their_order_is_the_seed_s(config: PipelineConfig) -> None:
    write_dataset(config)
    first = rows_of(config, "train-00000")
    assert len({row["edit_type"] for row in first}) == NUM_SHARDS
    reseeded = replace(config, dataset=replace(config.dataset, seed=1))
    write_dataset(reseeded)
    assert [row["triplet_id"] for row in rows_of(config, "train-00000")] != [row["triplet_id"] for row in first]


def test_files_are_named_and_sized_as_load_dataset_expects(config: PipelineConfig) -> None:
    counts = write_dataset(config)
    names = sorted(path.name for path in (config.out / "dataset" / "data").iterdir())
    num_files = {split: -(-counts[split] // 16) for split in ("train", "test")}
    expected = [f"{s}-{i:05d}-of-{n:05d}.parquet" for s, n in num_files.items() for i in range(n)]
    assert names == sorted(expected) and len(names) > 2


def test_images_are_stored_plain_and_texts_compressed_with_a_page_index(config: PipelineConfig) -> None:
    write_dataset(config)
    path = config.out / "dataset" / "data" / "train-00000-of-00003.parquet"
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    image, text = columns["original_image.bytes"], columns["edit_prompt"]
    assert image.compression == "UNCOMPRESSED" and not image.has_dictionary_page and "PLAIN" in image.encodings
    assert text.compression == "SNAPPY" and text.has_column_index and text.has_offset_index


def test_row_groups_are_cut_by_size(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROW_GROUP_BYTES", 2000)
    write_dataset(config)
    metadata = pq.read_metadata(config.out / "dataset" / "data" / "train-00000-of-00003.parquet")
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert sum(sizes) == 16 and len(sizes) > 4 and max(sizes) < 8


def test_a_finished_dataset_is_not_written_again(config: PipelineConfig) -> None:
    counts = write_dataset(config)
    modified = (config.out / "dataset" / "manifest.json").stat().st_mtime_ns
    assert write_dataset(config) == counts
    assert (config.out / "dataset" / "manifest.json").stat().st_mtime_ns == modified


def test_the_manifest_names_every_file_with_its_checksum(config: PipelineConfig) -> None:
    write_dataset(config)
    folder = config.out / "dataset"
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    assert {file["path"] for file in entries} == {f"data/{path.name}" for path in (folder / "data").iterdir()}
    assert all(store.sha256_of(folder / file["path"]) == file["sha256"] for file in entries)


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_a_damaged_dataset_is_made_again_the_same(config: PipelineConfig, damage: str) -> None:
    write_dataset(config)
    before = contents(config.out / "dataset")
    victim = next((config.out / "dataset" / "data").glob("train-*.parquet"))
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "remove":
        victim.unlink()
    else:
        (config.out / "dataset" / "manifest.json").write_text("{")
    write_dataset(config)
    assert contents(config.out / "dataset") == before


def test_a_changed_setting_replaces_the_dataset_and_leaves_no_file_behind(config: PipelineConfig) -> None:
    write_dataset(config)
    write_dataset(replace(config, dataset=replace(config.dataset, rows_per_shard=1000)))
    assert len(list((config.out / "dataset" / "data").iterdir())) == 2


@pytest.mark.parametrize("moment", ["write._swap", "write.write_card", "files._write_file", "spilling._chosen_rows"])
def test_a_run_killed_at_any_moment_leaves_the_old_dataset_and_the_next_run_ends_the_same(
    config: PipelineConfig, tmp_path: Path, moment: str
) -> None:
    write_dataset(config)
    before = contents(config.out / "dataset")
    longer = replace(config, dataset=replace(config.dataset, rows_per_shard=7))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"ip2p.dataset.{moment}", interrupt)
        write_dataset(longer)
    assert contents(config.out / "dataset") == before and (config.out / ".dataset.partial").exists()
    write_dataset(longer)
    fresh = replace(longer, out=tmp_path / "fresh")
    write_pairs(fresh)
    write_dataset(fresh)
    assert contents(config.out / "dataset") == contents(fresh.out / "dataset")
    assert not list(config.out.glob(".dataset*")) and not list((config.out / "dataset").glob(".*"))


def interrupt(*arguments: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_no_accepted_pair_is_a_one_line_error_that_says_what_to_loosen(config: PipelineConfig) -> None:
    write_pairs(config, accept=False)
    with pytest.raises(ValueError, match=r"80 candidates \(low_direction 80\)") as caught:
        write_dataset(config)
    message = str(caught.value)
    assert "Lower filtering.thresholds.direction (now 0.2)" in message and "\n" not in message


def test_a_run_in_which_nothing_was_rendered_points_at_the_prompts(tmp_path: Path) -> None:
    config = PipelineConfig(out=tmp_path / "run")
    table = pa.table({"reason": ["unparsable", "unparsable", "no_op"]})
    store.write_shard(store.RunFolder(config.out).shard("triplets", 0), table, fingerprint="test", seconds=0.0)
    with pytest.raises(ValueError, match=r"0 triplets were kept of 3 \(no_op 1, unparsable 2\). Check prompts.model"):
        write_dataset(config)


def test_a_dataset_without_test_pairs_still_loads_and_warns(
    config: PipelineConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        counts = write_dataset(replace(config, dataset=replace(config.dataset, test_fraction=0.0)))
    assert counts["test"] == 0 and "there is no test split" in caplog.text
    loaded = load_dataset(str(config.out / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": counts["pairs"]}


def test_the_card_tells_models_thresholds_and_counts(config: PipelineConfig) -> None:
    own = {"type 3": EditTypeRendering(num_candidates=9, shared_steps=(0.0, 0.25))}
    write_dataset(replace(config, rendering=replace(config.rendering, p2p=(0.5, 0.5), per_edit_type=own)))
    card = (config.out / "dataset" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n") and "image-to-image" in card
    for told in (
        "| type 3 | 16 |",
        "| - low_direction | 16 |",
        "| accepted | 64 |",
        "| all others | 0.2 | 0.2 | 0.2 | 0.7 |",
        "| guidance scale | 7.5 to 15, drawn per candidate |",
        "| share of steps with prompt-to-prompt | 0.5 |",
        "| for type 3 edits | 9 candidates; original's caption 0 to 0.25, drawn per candidate |",
    ):
        assert told in card
    assert str(config.out) not in card
