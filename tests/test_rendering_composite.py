"""With `rendering.composite`, all of a pair but its change is the original's, whatever backend made it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ip2p import rendering
from ip2p.comparing import composite
from ip2p.config import PipelineConfig, RenderingConfig
from ip2p.images import Array, encode_png, open_pixels
from ip2p.records import Candidate
from ip2p.rendering.backends import Failure, MakesPairs, Pictures, backends
from ip2p.rendering.table import DrawnPair, EncodedPair
from ip2p.store import RunFolder
from tests.test_rendering_candidates import write_triplets


def drawn(seed: int, height: int = 48) -> tuple[Array, Array]:
    """A ground, and the same a little lighter with a red square on it."""
    chance = np.random.default_rng(seed)
    original = chance.integers(90, 110, (48, 64, 3)).astype(np.uint8)
    edited = original[:height] + np.uint8(2)
    edited[10:25, 20:40] = (220, 30, 30)
    return original, edited


class Drawing(MakesPairs):
    """Draws pixels, files, two sizes and a failure in turns."""

    name = "p2p"
    needs_pictures = False

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[DrawnPair | EncodedPair | Failure]:
        for each in candidates:
            number = each.spec.candidate
            original, edited = drawn(each.spec.seed, height=48 - 8 * (number == 2))
            if number == 3:
                yield Failure("no answer")
            elif number == 1:
                yield EncodedPair(encode_png(original), encode_png(edited))
            else:
                yield DrawnPair(original, edited)


def stored_pairs(config: PipelineConfig) -> dict[tuple[int, int], tuple[Array, Array]]:
    """The pictures of a shard's pairs, by seed and number."""
    rendering.write_shard(config, 0)
    rows = pq.read_table(RunFolder(config.out).shards("pairs")[0]).to_pylist()
    sides = ("original_image", "edited_image")
    return {
        (row["seed"], row["candidate"]): (open_pixels(row[sides[0]]["bytes"]), open_pixels(row[sides[1]]["bytes"]))
        for row in rows
    }


def test_what_did_not_change_is_the_originals(
    tiny_config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends(), "p2p", Drawing())
    settings = replace(tiny_config.rendering, num_candidates=4, keep_rejected_images=True)
    plain, joined = (
        replace(tiny_config, out=tmp_path / name, rendering=replace(settings, composite=name == "joined"))
        for name in ("plain", "joined")
    )
    for config in (plain, joined):
        write_triplets(config)
    before, after = stored_pairs(plain), stored_pairs(joined)
    assert before.keys() == after.keys() and {number for _, number in after} == {0, 1, 2}
    for key, (original, edited) in before.items():
        assert (after[key][0] == original).all()
        if key[1] == 2:
            assert (after[key][1] == edited).all()  # of another size
            continue
        assert (after[key][1] == composite(original, edited)).all()
        assert (after[key][1][40:] == original[40:]).all() and (edited[40:] != original[40:]).all()
        assert (after[key][1][12:23, 22:38] == (220, 30, 30)).all()
