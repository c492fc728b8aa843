"""While a batch is stored and scored, the next is made; results, errors and threads are as without that."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ip2p import rendering
from ip2p.config import PipelineConfig, RenderingConfig, Thresholds
from ip2p.config.filtering import Selection
from ip2p.records import Candidate
from ip2p.rendering.backends import MakesPairs, Pictures, backends
from ip2p.rendering.candidates import CandidateQueue
from ip2p.rendering.table import DrawnPair
from ip2p.scoring.scorer import PairScorer
from ip2p.store import RunFolder
from tests.test_rendering_candidates import write_triplets

PATIENCE = 120.0
"""Seconds to wait for what must come; no test waits for what must not."""


class Drawing(MakesPairs):
    """Draws pairs of noise without a model, and tells of every batch."""

    name = "p2p"
    needs_pictures = False

    def __init__(self, fails_at: int | None = None, dtype: Any = np.uint8) -> None:
        self.num_batches, self.fails_at, self.dtype = 0, fails_at, dtype
        self.is_at_the_second = threading.Event()

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[DrawnPair]:
        self.num_batches += bool(candidates)
        if self.num_batches == 2:
            self.is_at_the_second.set()
        if self.num_batches == self.fails_at:
            raise RuntimeError("the device is lost")
        for each in candidates:
            noise = np.random.default_rng(each.spec.seed).integers(0, 256, (2, 48, 48, 3)).astype(self.dtype)
            yield DrawnPair(noise[0], noise[1])


@pytest.fixture
def config(tiny_config: PipelineConfig) -> PipelineConfig:
    """Three triplets with three candidates each, in batches of two."""
    write_triplets(tiny_config)
    return replace(tiny_config, rendering=replace(tiny_config.rendering, num_candidates=3, batch_size=2))


def use(monkeypatch: pytest.MonkeyPatch, backend: Drawing) -> Drawing:
    monkeypatch.setitem(backends(), "p2p", backend)
    return backend


def scoring_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("scoring")]


def test_the_next_batch_is_made_while_one_is_scored(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, embed = use(monkeypatch, Drawing()), PairScorer.embed_images

    def embed_once_the_next_is_made(self: PairScorer, images: Any) -> Any:
        assert backend.is_at_the_second.wait(PATIENCE), "the second batch waits for the scores of the first"
        return embed(self, images)

    monkeypatch.setattr(PairScorer, "embed_images", embed_once_the_next_is_made)
    assert rendering.write_shard(config, 0).counts["candidates"] == 9
    assert backend.num_batches == 5
    assert not scoring_threads()


@pytest.mark.parametrize("selection", ["best", "first"])
def test_a_shard_is_to_the_byte_what_it_is_batch_after_batch(
    config: PipelineConfig, selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Drawing())
    limits = Thresholds(original=-1, edited=-1, direction=0, image=-1)
    filtering = replace(config.filtering, thresholds=limits, selection=selection, max_pairs_per_triplet=1)
    config = replace(config, filtering=filtering)
    rendering.write_shard(config, 0)
    take = CandidateQueue.take

    def take_once_all_is_settled(self: CandidateQueue, num: int, *, num_unsettled: int = 0) -> list[Candidate]:
        return [] if num_unsettled else take(self, num)

    monkeypatch.setattr(CandidateQueue, "take", take_once_all_is_settled)
    plain = replace(config, out=config.out.with_name("plain"))
    write_triplets(plain)
    rendering.write_shard(plain, 0)
    for stage in ("candidates", "pairs"):
        one, other = (RunFolder(each.out).shard(stage, 0).read_bytes() for each in (config, plain))
        assert one == other


def test_an_error_of_the_scoring_ends_the_shard(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Drawing(dtype=np.complex64))  # no codec takes it
    with pytest.raises(TypeError, match="Cannot handle this data type"):
        rendering.write_shard(config, 0)
    assert not scoring_threads()
    assert not RunFolder(config.out).shard("candidates", 0).exists()


def test_an_error_of_the_making_ends_the_shard(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Drawing(fails_at=2))
    with pytest.raises(RuntimeError, match="the device is lost"):
        rendering.write_shard(config, 0)
    assert not scoring_threads()
    assert not RunFolder(config.out).shard("candidates", 0).exists()
