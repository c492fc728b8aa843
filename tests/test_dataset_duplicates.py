"""Near-duplicates against the plain definition, and how they leave the dataset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p import rendering, store
from ip2p.config import PipelineConfig
from ip2p.dataset import duplicates, write_dataset
from ip2p.dataset.duplicates import find_near_duplicates
from ip2p.dataset.inspection import describe
from ip2p.store import RunFolder
from tests.test_rendering_candidates import write_triplets


def unit(values: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return scaled


def plainly(embeddings: np.ndarray, limit: float) -> list[bool]:
    """One pair after the other against all that were kept."""
    kept: list[np.ndarray] = []
    dropped = []
    for pair in embeddings.astype(np.float32):
        repeats = any((pair * other).sum(-1).min() >= limit for other in kept)
        dropped.append(repeats)
        if not repeats:
            kept.append(pair)
    return dropped


@pytest.mark.parametrize("limit", [0.7, 0.9, 0.97])
def test_the_search_by_blocks_finds_what_the_definition_says(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"ROWS": 7, "COLUMNS": 11, "PART_ROWS": 30, "AXES": 5}.items():
        monkeypatch.setattr(duplicates, name, size)
    rng = np.random.default_rng(0)
    few = rng.normal(size=(12, 2, 16))
    many = few[rng.integers(0, 12, 150)] + rng.normal(size=(150, 2, 16)) * rng.choice([0.1, 0.3, 0.6], (150, 1, 1))
    embeddings = unit(many).astype(np.float16)
    expected = plainly(embeddings, limit)
    assert 5 < sum(expected) < 145
    assert find_near_duplicates(embeddings, limit).tolist() == expected


def test_a_pair_that_repeats_only_one_image_stays() -> None:
    one, other, third = np.eye(3, dtype=np.float16)
    pairs = np.stack([[one, other], [one, third], [third, other], [one, other]])
    assert find_near_duplicates(pairs, 0.99).tolist() == [False, False, False, True]


def keys_of(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["triplet_id"].to_pylist(), table["candidate"].to_pylist(), strict=True))


def written(config: PipelineConfig) -> list[tuple[str, int]]:
    files = sorted((RunFolder(config.out).dataset / "data").glob("*.parquet"))
    return [key for path in files for key in keys_of(pq.read_table(path))]


def as_arrays(table: pa.Table) -> np.ndarray:
    return np.stack([np.frombuffer(each.as_py(), np.float16).reshape(2, -1) for each in table["clip_embeddings"]])


def test_pairs_that_repeat_earlier_ones_leave_the_dataset_and_are_counted(tiny_config: PipelineConfig) -> None:
    write_triplets(tiny_config)
    rendering.write_shard(tiny_config, 0)
    table = pq.read_table(RunFolder(tiny_config.out).shard("pairs", 0))
    pairs = as_arrays(table).astype(np.float32)
    similar = np.einsum("ncd,mcd->nmc", pairs, pairs).min(-1)[np.triu_indices(len(pairs), 1)]
    limit = float(np.sort(similar)[-3]) - 1e-4  # so much alike are three
    dataset = replace(tiny_config.dataset, max_duplicate_similarity=limit, test_fraction=0.0)
    config = replace(tiny_config, dataset=dataset)
    counts = write_dataset(config)
    kept = [key for key, repeats in zip(keys_of(table), plainly(pairs, limit), strict=True) if not repeats]
    assert sorted(written(config)) == sorted(kept)
    assert counts["near_duplicate"] == len(table) - len(kept) > 0
    assert counts["accepted"] == len(table)
    card = (RunFolder(config.out).dataset / "README.md").read_text()
    assert f"- near_duplicate | {counts['near_duplicate']} |" in card
    assert "both images 0.95 alike" in describe(config)


def test_pairs_without_embeddings_are_no_reason_to_guess(tiny_config: PipelineConfig) -> None:
    write_triplets(tiny_config)
    sidecar = rendering.write_shard(tiny_config, 0)
    path = RunFolder(tiny_config.out).shard("pairs", 0)
    without = pq.read_table(path).drop_columns(["clip_embeddings"])
    store.write_shard(path, without, fingerprint=sidecar.fingerprint, seconds=0.0)
    assert write_dataset(tiny_config)["near_duplicate"] == 0
    config = replace(tiny_config, dataset=replace(tiny_config.dataset, max_duplicate_similarity=0.9))
    with pytest.raises(ValueError, match=r"6 of 6 pairs have no embeddings .* Import them with --score, or"):
        write_dataset(config)
    assert "unknown: not every pair has CLIP's embeddings" in describe(tiny_config)


def test_an_image_rendered_again_has_its_embeddings(tiny_config: PipelineConfig) -> None:
    write_triplets(tiny_config)
    rendering.write_shard(tiny_config, 0)
    path = RunFolder(tiny_config.out).shard("pairs", 0)
    before = pq.read_table(path)
    strict = replace(tiny_config.filtering, thresholds=replace(tiny_config.filtering.thresholds, direction=2.0))
    rendering.refilter(replace(tiny_config, filtering=strict))
    assert len(pq.read_table(path)) == 0
    rendering.refilter(tiny_config)
    again = pq.read_table(path)
    assert again.drop_columns(["clip_embeddings"]).equals(before.drop_columns(["clip_embeddings"]))
    np.testing.assert_allclose(as_arrays(again), as_arrays(before), atol=2e-3)
