"""A shard is rendered once; what depends on less than all of the config is redone alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p import rendering, store
from ip2p.config import EditTypeRendering, FilteringConfig, PipelineConfig, Thresholds
from ip2p.images import open_picture
from ip2p.models import loading
from ip2p.models.pipelines import load_text_to_image
from ip2p.records import EditTriplet
from ip2p.rendering import draw_spec
from ip2p.rendering.table import from_row
from ip2p.scoring import SCORE_COLUMNS
from ip2p.scoring.scorer import PairScorer
from ip2p.store import RunFolder

TRIPLETS = [
    EditTriplet(
        original_prompt="a small red circle on a white background",
        edit_prompt="make the circle blue",
        edited_prompt="a small blue circle on a white background",
        edit_type="colour",
        source="test",
    ),
    EditTriplet(
        original_prompt="a large green square on a black background",
        edit_prompt="remove the square",
        edited_prompt="an empty black background",
        edit_type="remove",
        source="test",
    ),
    EditTriplet(
        original_prompt="an empty white background",
        edit_prompt="make the background black",
        edited_prompt="an empty black background",
        edit_type="background",
        source="test",
    ),
]
STRICT = FilteringConfig(thresholds=Thresholds(original=-1, edited=-1, direction=2, image=-1))


def write_triplets(config: PipelineConfig, triplets: list[EditTriplet] = TRIPLETS, number: int = 0) -> None:
    rows = [
        {
            "triplet_id": each.id,
            "original_prompt": each.original_prompt,
            "edit_prompt": each.edit_prompt,
            "edited_prompt": each.edited_prompt,
            "edit_type": each.edit_type,
            "source": each.source,
            "caption": each.original_prompt,
            "generation": "",
            "reason": "",
        }
        for each in triplets
    ]
    rows.append({**rows[0], "edit_prompt": "never", "reason": "unparsable"})
    path = RunFolder(config.out).shard("triplets", number)
    store.write_shard(path, pa.Table.from_pylist(rows), fingerprint="triplets", seconds=0.0)


def table(config: PipelineConfig, stage: str, number: int = 0) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(RunFolder(config.out).shard(stage, number)).to_pylist()
    return rows


def stamp(config: PipelineConfig) -> dict[str, tuple[int, bytes]]:
    found = sorted(path for path in config.out.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


@pytest.fixture
def config(tiny_config: PipelineConfig) -> PipelineConfig:
    write_triplets(tiny_config)
    return tiny_config


@pytest.fixture
def renders(config: PipelineConfig) -> Any:
    """Numbers of UNet rows that were computed, one entry per forward pass."""
    settings = config.rendering
    pipeline = load_text_to_image(
        settings.model, revision=None, variant=None, dtype=settings.dtype, device=settings.device
    )
    seen: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    yield seen
    hook.remove()


def test_every_candidate_is_in_the_table_with_its_spec_scores_and_verdict(config: PipelineConfig) -> None:
    sidecar = rendering.write_shard(config, 0)
    rows = table(config, "candidates")
    assert sidecar.rows == len(rows) == 6
    assert sidecar.counts == {"candidates": 6, "accepted": 6}
    scored = [from_row(row) for row in rows]
    assert [each.candidate.triplet for each in scored] == [triplet for triplet in TRIPLETS for _ in range(2)]
    for row, each in zip(rows, scored, strict=True):
        assert each.candidate.spec == draw_spec(config.rendering, each.candidate.triplet, row["candidate"])


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_the_scores_are_those_of_the_stored_pixels(config: PipelineConfig, image_format: Any) -> None:
    config = replace(config, rendering=replace(config.rendering, image_format=image_format, image_quality=60))
    rendering.write_shard(config, 0)
    scorer = PairScorer(loading.load_clip(config.scoring.clip_model, None, device="cpu"), batch_size=8)
    rows = table(config, "pairs")
    assert len(rows) == 6
    for row in rows:
        assert row["original_image"]["path"].endswith(image_format)
        images = [[open_picture(row[f"{side}_image"]["bytes"])] for side in ("original", "edited")]
        scored = from_row(row)
        (found,) = scorer.score([scored.candidate.triplet], *images)
        assert found.original == pytest.approx(scored.scores.original, abs=1e-5)
        assert found.edited == pytest.approx(scored.scores.edited, abs=1e-5)
        assert found.image == pytest.approx(scored.scores.image, abs=1e-5)


def test_a_finished_shard_is_left_alone(config: PipelineConfig, renders: list[int]) -> None:
    first = rendering.write_shard(config, 0)
    before, done = stamp(config), len(renders)
    assert done
    assert rendering.write_shard(config, 0) == first
    assert stamp(config) == before
    assert len(renders) == done


def test_only_accepted_images_are_kept_unless_asked(config: PipelineConfig) -> None:
    strict = replace(config, filtering=STRICT)
    sidecar = rendering.write_shard(strict, 0)
    assert sidecar.counts == {"candidates": 6, "accepted": 0, "low_direction": 6}
    assert table(strict, "pairs") == []
    assert pq.read_schema(RunFolder(strict.out).shard("pairs", 0)).field("original_image").type.num_fields == 2
    keeping = replace(strict, rendering=replace(strict.rendering, keep_rejected_images=True))
    rendering.write_shard(keeping, 0)
    rows = table(keeping, "pairs")
    assert [row["reason"] for row in rows] == ["low_direction"] * 6
    assert all(open_picture(row["edited_image"]["bytes"]).size == (64, 64) for row in rows)


def test_stricter_filtering_judges_the_table_and_renders_nothing(config: PipelineConfig, renders: list[int]) -> None:
    rendering.write_shard(config, 0)
    before, done = table(config, "candidates"), len(renders)
    images = {(row["triplet_id"], row["candidate"]): row["edited_image"] for row in table(config, "pairs")}
    strict = replace(config, filtering=replace(config.filtering, max_pairs_per_triplet=1))
    sidecar = rendering.write_shard(strict, 0)
    assert sidecar.counts == {"candidates": 6, "accepted": 3, "over_limit": 3}
    after = table(strict, "candidates")
    drop = ("accepted", "reason")
    assert [{k: v for k, v in row.items() if k not in drop} for row in after] == [
        {k: v for k, v in row.items() if k not in drop} for row in before
    ]
    for row in table(strict, "pairs"):
        assert row["edited_image"] == images[row["triplet_id"], row["candidate"]]
    for number in range(3):
        both = after[2 * number : 2 * number + 2]
        (kept,) = [row for row in both if row["accepted"]]
        assert kept["clip_direction"] == max(row["clip_direction"] for row in both)
    assert len(renders) == done


def test_looser_filtering_renders_the_newly_accepted_alone_and_ends_as_if_it_had_been_so(
    config: PipelineConfig, renders: list[int]
) -> None:
    rendering.write_shard(config, 0)
    expected = {(row["triplet_id"], row["candidate"]): row for row in table(config, "pairs")}
    one = replace(config, filtering=replace(config.filtering, max_pairs_per_triplet=1))
    rendering.write_shard(one, 0)
    renders.clear()
    sidecar = rendering.write_shard(config, 0)
    assert sum(renders) == 3 * 4 * config.rendering.num_inference_steps
    assert sidecar.counts["accepted"] == 6
    for row in table(config, "pairs"):
        wanted = expected[row["triplet_id"], row["candidate"]]
        again = {name: pytest.approx(wanted[name], abs=1e-3) for name in SCORE_COLUMNS if name in wanted}
        stored = dict.fromkeys(("original_image", "edited_image", "clip_embeddings"))
        assert row | stored == wanted | again | stored
        for side in ("original_image", "edited_image"):
            found, image = (np.asarray(open_picture(each[side]["bytes"])).astype(int) for each in (row, wanted))
            assert np.abs(found - image).max() <= 1


def test_a_changed_rendering_or_scoring_or_triplets_shard_renders_again(
    config: PipelineConfig, renders: list[int]
) -> None:
    rendering.write_shard(config, 0)
    steps = replace(config, rendering=replace(config.rendering, num_inference_steps=3))
    lossy = replace(config, rendering=replace(config.rendering, image_format="jpeg"))
    for changed in (steps, lossy):
        renders.clear()
        rendering.write_shard(changed, 0)
        assert renders
    renders.clear()
    write_triplets(config, TRIPLETS[:1])
    assert rendering.write_shard(lossy, 0).counts["candidates"] == 2
    assert renders


def test_batch_size_and_device_do_not_make_a_shard_stale(config: PipelineConfig, renders: list[int]) -> None:
    rendering.write_shard(config, 0)
    renders.clear()
    rendering.write_shard(replace(config, rendering=replace(config.rendering, batch_size=1)), 0)
    assert not renders


def test_the_batch_size_does_not_change_what_is_rendered(config: PipelineConfig) -> None:
    rendering.write_shard(config, 0)
    single = replace(config, out=config.out.parent / "single", rendering=replace(config.rendering, batch_size=1))
    write_triplets(single)
    rendering.write_shard(single, 0)
    for one, two in zip(table(config, "pairs"), table(single, "pairs"), strict=True):
        first, second = (np.asarray(open_picture(row["edited_image"]["bytes"])).astype(int) for row in (one, two))
        assert np.abs(first - second).max() <= 1
        assert one["clip_image"] == pytest.approx(two["clip_image"], abs=1e-3)


def test_pairs_without_guidance_do_not_pay_for_those_with_it(config: PipelineConfig, renders: list[int]) -> None:
    guided = EditTypeRendering(guidance_scale=(2.0, 3.0))
    settings = replace(config.rendering, guidance_scale=(1.0, 1.0), per_edit_type={"colour": guided})
    rendering.write_shard(replace(config, rendering=settings), 0)
    rows = {True: 4, False: 2}  # two sides, and under guidance two halves
    scored = [from_row(row) for row in table(config, "candidates")]
    assert [each.candidate.triplet for each in scored] == [triplet for triplet in TRIPLETS for _ in range(2)]
    needed = sum(rows[each.candidate.spec.guidance_scale > 1] for each in scored)
    assert sum(renders) == needed * settings.num_inference_steps


@pytest.fixture
def choosy(config: PipelineConfig) -> PipelineConfig:
    """Accepts about half of the candidates, the first two of a triplet's eight."""
    many = replace(config, rendering=replace(config.rendering, num_candidates=8))
    rendering.write_shard(many, 0)
    direction = float(np.median([row["clip_direction"] for row in table(many, "candidates")]))
    thresholds = Thresholds(original=-1, edited=-1, direction=direction, image=-1)
    filtering = FilteringConfig(thresholds=thresholds, max_pairs_per_triplet=2, selection="first")
    return replace(many, filtering=filtering)


def accepted_of(config: PipelineConfig) -> list[tuple[str, int]]:
    return [(row["triplet_id"], row["candidate"]) for row in table(config, "candidates") if row["accepted"]]


def elsewhere(config: PipelineConfig, name: str) -> PipelineConfig:
    moved = replace(config, out=config.out.parent / name)
    write_triplets(moved)
    return moved


@pytest.mark.slow
def test_a_triplet_stops_at_its_last_needed_pair_whatever_the_batch(choosy: PipelineConfig) -> None:
    every = table(choosy, "candidates")
    expected, rendered = [], 0
    for triplet in TRIPLETS:
        rows = [row for row in every if row["triplet_id"] == triplet.id]
        good = [row["candidate"] for row in rows if row["clip_direction"] >= choosy.filtering.thresholds.direction]
        expected += [(triplet.id, number) for number in good[:2]]
        rendered += good[1] + 1 if len(good) > 1 else 8
    assert rendered < 24
    for size in (1, 3, 16):
        fresh = elsewhere(replace(choosy, rendering=replace(choosy.rendering, batch_size=size)), f"size {size}")
        sidecar = rendering.write_shard(fresh, 0)
        assert accepted_of(fresh) == expected
        assert sidecar.counts["candidates"] == rendered
    assert rendering.summarise(fresh)["candidates_per_accepted"] == round(rendered / len(expected), 2)


@pytest.mark.slow
def test_changed_thresholds_go_on_from_the_table_and_accept_what_a_fresh_run_would(
    choosy: PipelineConfig, renders: list[int]
) -> None:
    run = elsewhere(choosy, "run")
    rendering.write_shard(run, 0)
    directions = sorted(row["clip_direction"] for row in table(choosy, "candidates"))
    for number, place in enumerate((18, 3, 12)):
        between = sum(directions[place : place + 2]) / 2
        thresholds = replace(choosy.filtering.thresholds, direction=between)
        changed = replace(run, filtering=replace(choosy.filtering, thresholds=thresholds))
        fresh = elsewhere(changed, f"fresh {number}")
        before = {(row["triplet_id"], row["candidate"]) for row in table(run, "candidates")}
        kept = {(row["triplet_id"], row["candidate"]) for row in table(run, "pairs")}
        renders.clear()
        rendering.write_shard(changed, 0)
        work = sum(renders)
        rendering.write_shard(fresh, 0)
        after = {(row["triplet_id"], row["candidate"]) for row in table(run, "candidates")}
        needed = {(row["triplet_id"], row["candidate"]) for row in table(fresh, "candidates")}
        assert accepted_of(run) == accepted_of(fresh)
        assert after == before | needed
        again = {key for key in accepted_of(run) if key in before - kept}
        assert work == (len(needed - before) + len(again)) * 4 * run.rendering.num_inference_steps


def test_threads_that_share_the_models_write_what_one_thread_writes(config: PipelineConfig) -> None:
    threaded = replace(config, out=config.out.parent / "threaded")
    for number in range(4):
        for each in (config, threaded):
            write_triplets(each, TRIPLETS[: 1 + number % 3], number)
    for number in range(4):
        rendering.write_shard(config, number)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: rendering.write_shard(threaded, number), range(4)))
    for number in range(4):
        for one, two in zip(table(config, "pairs", number), table(threaded, "pairs", number), strict=True):
            assert one["edited_image"] == two["edited_image"]


def test_killed_between_images_and_table_the_shard_is_not_done_and_ends_the_same(config: PipelineConfig) -> None:
    rendering.write_shard(config, 0)
    expected = table(config, "candidates")
    path = RunFolder(config.out).shard("candidates", 0)
    store.sidecar_path(path).unlink()
    rendering.write_shard(config, 0)
    assert table(config, "candidates") == expected


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("batch_size", [2, 4])
@pytest.mark.parametrize("selection", ["best", "first"])
@pytest.mark.slow
def test_a_flipped_byte_in_a_shard_of_pairs_heals_to_the_bit(
    config: PipelineConfig, selection: Any, batch_size: int
) -> None:
    settings = replace(config.rendering, num_candidates=5, guidance_scale=(0.5, 3.0), batch_size=batch_size)
    one = replace(config.filtering, max_pairs_per_triplet=1, selection=selection)
    config = replace(config, rendering=settings, filtering=one)
    rendering.write_shard(config, 0)
    places = [RunFolder(config.out).shard(stage, 0) for stage in ("candidates", "pairs")]
    expected = [path.read_bytes() for path in places]
    flip_a_byte(places[1])
    rendering.write_shard(config, 0)
    assert [path.read_bytes() for path in places] == expected


def test_damaged_pairs_that_were_imported_are_to_be_imported_again(config: PipelineConfig) -> None:
    imported = replace(config, rendering=replace(config.rendering, model=""))
    rendering.keep_shard(imported, 0, [], {}, is_scored=False)
    flip_a_byte(RunFolder(imported.out).shard("pairs", 0))
    with pytest.raises(ValueError, match=r"part-00000.parquet is damaged, and imported .* Import them again"):
        rendering.write_shard(imported, 0)


def test_what_is_rendered_again_for_another_filter_is_scored_again(config: PipelineConfig) -> None:
    settings = replace(config.rendering, num_candidates=5, batch_size=3)
    one = replace(config, rendering=settings, filtering=replace(config.filtering, max_pairs_per_triplet=1))
    rendering.write_shard(one, 0)
    before = {(row["triplet_id"], row["candidate"]): row for row in table(one, "candidates")}
    wrong = [{**row, "clip_image": row["clip_image"] - 0.5} for row in before.values()]
    path = RunFolder(one.out).shard("candidates", 0)
    sidecar = store.read_sidecar(path)
    assert sidecar is not None
    falsified = pa.Table.from_pylist(wrong, schema=pq.read_schema(path))
    store.write_shard(path, falsified, fingerprint=sidecar.fingerprint, seconds=0.0, extra=sidecar.extra)
    kept = {(row["triplet_id"], row["candidate"]) for row in table(one, "pairs")}
    rendering.write_shard(replace(one, filtering=config.filtering), 0)
    rows = table(one, "candidates")
    assert [(row["triplet_id"], row["candidate"]) for row in rows] == list(before)
    for row in rows:
        key = row["triplet_id"], row["candidate"]
        lowered = 0.5 if key in kept or not row["accepted"] else 0.0
        assert row["clip_image"] == pytest.approx(before[key]["clip_image"] - lowered, abs=1e-3)


def test_a_caption_that_the_text_encoder_would_cut_is_counted_and_not_rendered(
    config: PipelineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    long = replace(TRIPLETS[0], edited_prompt="red " * 40)
    write_triplets(config, [long, TRIPLETS[1]])
    sidecar = rendering.write_shard(config, 0)
    assert sidecar.counts == {"candidates": 2, "accepted": 2, "too_long": 2}
    assert f"triplet {long.id} is not rendered: a caption is longer than 32 tokens" in caplog.text


def test_a_shard_without_triplets_is_finished_and_empty(config: PipelineConfig, renders: list[int]) -> None:
    path = RunFolder(config.out).shard("triplets", 0)
    store.write_shard(path, pq.read_table(path).slice(3), fingerprint="triplets", seconds=0.0)
    assert rendering.write_shard(config, 0).counts == {"candidates": 0, "accepted": 0}
    assert table(config, "pairs") == []
    assert not renders


def test_missing_triplets_are_an_error_of_state(tiny_config: PipelineConfig) -> None:
    with pytest.raises(RuntimeError, match=r"part-00007.parquet is not finished. Run the prompt stage first."):
        rendering.write_shard(tiny_config, 7)


def test_refilter_judges_all_shards_and_sums_their_counts(config: PipelineConfig, renders: list[int]) -> None:
    write_triplets(config, TRIPLETS[:1], number=1)
    for number in (0, 1):
        rendering.write_shard(config, number)
    renders.clear()
    assert rendering.refilter(replace(config, filtering=STRICT)) == {"candidates": 8, "accepted": 0, "low_direction": 8}
    assert not renders
    summary = rendering.summarise(config)
    assert summary["candidates"] == 8
    assert summary["low_direction"] == 8
    assert summary["shards"] == 2
    assert summary["seconds"] > 0


def test_refilter_refuses_an_empty_run_and_one_made_with_other_settings(config: PipelineConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no candidates to filter"):
        rendering.refilter(replace(config, out=tmp_path / "elsewhere"))
    rendering.write_shard(config, 0)
    with pytest.raises(ValueError, match="made with other settings"):
        rendering.refilter(replace(config, rendering=replace(config.rendering, seed=5)))


def test_an_unknown_model_folder_is_named(config: PipelineConfig) -> None:
    wrong = replace(config, rendering=replace(config.rendering, model="./no/such/folder"))
    with pytest.raises(ValueError, match="rendering.model ./no/such/folder does not exist"):
        rendering.write_shard(wrong, 0)
