"""Who is shown of many, in how many bytes, and with which band."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.spatial import ConvexHull

from ip2p.evaluation.cases import EditJudgement
from ip2p.report import facts, reading
from ip2p.report.charts import band_of, convex_hull, curve_points, tradeoff_chart
from ip2p.report.facts import HeldOutEdit, Pair, Place, is_number, read_figures
from ip2p.report.pictures import LARGEST_SIDE, Album, inline, read_pictures


def edit(
    case: int, success: bool | None, direction: float | None, image: float | None, edit_type: str | None = None
) -> HeldOutEdit:
    """A held-out edit with its scores."""
    scores = {"clip_direction": direction, "clip_image": image}
    return HeldOutEdit(
        place=Place(Path("edits.parquet"), case),
        edit_type=edit_type or f"{case % 2}",
        key=f"/{case}",
        case=case,
        scores={name: score for name, score in scores.items() if is_number(score)},
        judgement=None if success is None else EditJudgement(done=success, kept=success, legible=True),
    )


def pair(triplet_id: str, edit_type: str) -> Pair:
    """An accepted pair."""
    return Pair(
        place=Place(Path("pairs.parquet"), 0),
        edit_type=edit_type,
        key=f"{triplet_id}/0",
        accepted=True,
        reason="",
        scores={},
    )


def test_the_oracle_ranks_before_clip() -> None:
    rows = [edit(0, False, 0.9, 0.9), edit(1, True, 0.1, 0.1), edit(2, True, 0.5, 0.5), edit(3, False, 0.2, 0.2)]
    assert [row.case for row in facts.rank_edits(rows)] == [2, 1, 0, 3]


def test_without_an_oracle_copying_the_input_and_drawing_another_picture_both_rank_below_an_edit() -> None:
    rows = [edit(number, None, 0.3, 0.8) for number in range(4)]
    copied, other, good = edit(4, None, 0.0, 1.0), edit(5, None, 0.6, 0.1), edit(6, None, 0.5, 0.9)
    order = [row.case for row in facts.rank_edits([*rows, copied, other, good])]
    assert order[0] == 6 and {4, 5} <= set(order[1:])


def test_edits_that_nothing_tells_apart_have_no_best() -> None:
    assert facts.rank_edits([edit(number, None, None, None) for number in range(3)]) == []
    assert len(facts.rank_edits([edit(0, None, None, 0.5), edit(1, None, math.nan, 0.4)])) == 2


def test_the_easiest_type_does_not_fill_every_place() -> None:
    rows = [edit(number, True, 0.5, 0.5, "easy" if number < 5 else "hard") for number in range(6)]
    assert [row.edit_type for row in facts.first_of_each(rows, 8, 2)] == ["easy", "easy", "hard"]


def test_turns_take_from_every_group_before_any_has_a_second() -> None:
    rows = [pair(f"{number}", f"{number % 5 if number < 50 else 9}") for number in range(51)]
    chosen = facts.take_turns(rows, lambda row: row.edit_type, 11)
    assert sorted(row.edit_type for row in chosen[:6]) == ["0", "1", "2", "3", "4", "9"]
    assert sorted(row.edit_type for row in chosen[6:]) == ["0", "1", "2", "3", "4"]
    assert facts.take_turns(rows[::-1], lambda row: row.edit_type, 11) == chosen


def test_shards_are_taken_from_all_over_the_run() -> None:
    assert reading.spread(range(100), 4) == [0, 25, 50, 75]
    assert reading.spread([1, 2], 4) == [1, 2]


def test_fewer_rows_are_looked_into_where_pictures_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    pq.write_table(pa.table({"image": [rng.randbytes(1000) for _ in range(200)]}), tmp_path / "part.parquet")
    assert reading.num_readable(tmp_path / "part.parquet", 1) == 200
    monkeypatch.setattr(reading, "MOST_BYTES", 100_000)
    assert 80 <= reading.num_readable(tmp_path / "part.parquet", 1) <= 100
    assert 40 <= reading.num_readable(tmp_path / "part.parquet", 2) <= 50


def encoded(pixels: Any, form: str = "PNG") -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def noise(side: int, seed: int = 0) -> Any:
    """A picture that no codec makes small."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_small_pictures_keep_every_pixel_and_large_ones_become_thumbnails() -> None:
    import base64

    small, large = inline(encoded(noise(64))), inline(encoded(noise(800)))
    assert small and large
    shown = Image.open(io.BytesIO(base64.b64decode(small.uri.split(",")[1])))
    np.testing.assert_array_equal(np.asarray(shown), noise(64))
    assert (small.width, small.pixelated, large.width, large.pixelated) == (128, True, LARGEST_SIDE, False)
    assert inline(b"no picture") is None


def test_an_album_holds_no_more_bytes_than_it_may_and_counts_the_rest() -> None:
    picture = inline(encoded(noise(64)))
    assert picture
    album = Album(5 * len(picture.uri))
    assert [album.takes(picture, picture) for _ in range(4)] == [True, True, False, False]
    assert album.num_left_out == 2 and album.bytes_left == len(picture.uri)


def test_pictures_are_read_from_their_rows_across_row_groups(tmp_path: Path) -> None:
    images = [encoded(noise(8, number)) for number in range(100)]
    images[41] = b"broken"
    cells = [{"bytes": image, "path": None} for image in images]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", row_group_size=30)
    places = [Place(tmp_path / "a.parquet", index) for index in (99, 0, 41, 30, 29)]
    found = read_pictures(places, "image")
    assert found[2] is None
    for place, shown in zip(places, found, strict=True):
        if place.index != 41:
            assert shown is not None and shown == inline(images[place.index])
    assert read_pictures([Place(tmp_path / "gone.parquet", 0)], "image") == [None]


def test_the_hull_is_the_one_of_a_geometry_library() -> None:
    points = [tuple(point) for point in np.random.default_rng(1).normal(size=(60, 2)).tolist()]
    hull = convex_hull(points)
    assert set(hull) == {points[index] for index in ConvexHull(np.array(points)).vertices}


def test_a_band_reaches_exactly_as_far_as_the_intervals() -> None:
    point = {"clip_direction": 0.5, "clip_direction_interval": [0.4, 0.65]}
    point |= {"clip_image": 0.8, "clip_image_interval": [0.7, 0.95]}
    (outline,) = band_of(curve_points([read_figures(point)]))
    xs, ys = zip(*outline, strict=True)
    assert (min(xs), max(xs), min(ys), max(ys)) == pytest.approx((0.4, 0.65, 0.7, 0.95))


def test_points_that_lack_a_figure_are_not_drawn() -> None:
    whole: dict[str, float | None] = {"clip_direction": 0.5, "clip_image": 0.8, "strength": 0.5}
    curves = {"a": [whole, {**whole, "clip_image": None}], "b": [{**whole, "clip_direction": math.nan}]}
    chart = tradeoff_chart({name: [read_figures(point) for point in points] for name, points in curves.items()})
    assert chart is not None and chart.svg.count("<title>") == 1 and "at strength 0.5" in chart.svg
    assert tradeoff_chart({"b": []}) is None
