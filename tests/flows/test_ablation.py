"""The ablations at tiny size: what each variant trains on, what is taken over, and that nothing is done twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.ablation import ablation_flow
from flows.pipeline import pipeline_flow
from ip2p import ablation, uses
from ip2p.config import EditTypeRendering, PipelineConfig, Thresholds
from ip2p.config.files import read_config
from ip2p.records import hash_to_unit
from ip2p.store import RunFolder, read_json, read_summary

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows")]


@pytest.fixture(scope="session")
def filtered_run(
    finished_run: PipelineConfig, forked_training: None, tmp_path_factory: pytest.TempPathFactory
) -> PipelineConfig:
    """A finished run whose filter rejects half of the candidates, made from the scores of another."""
    tables = [pq.read_table(path) for path in RunFolder(finished_run.out).shards("candidates")]
    median = float(np.median(np.concatenate([table["clip_direction"].to_numpy() for table in tables])))
    filtering = dataclasses.replace(
        finished_run.filtering, thresholds=Thresholds(original=-1.0, edited=-1.0, direction=median, image=-1.0)
    )
    config = dataclasses.replace(finished_run, out=tmp_path_factory.mktemp("ablation") / "run", filtering=filtering)
    ablation.take_over(finished_run.out, config.out, editor=False)
    uses.write_config(config)
    pipeline_flow(config)
    uses.record_completion(config, "pipeline")
    return config


@pytest.fixture(scope="session")
def ablated(filtered_run: PipelineConfig) -> PipelineConfig:
    """The ablation of that run, gone through once."""
    config = dataclasses.replace(filtered_run, out=filtered_run.out.parent / "ablation")
    before = _times(filtered_run.out)
    ablation_flow(config, filtered_run.out)
    assert _times(filtered_run.out) == before
    return config


def _times(root: Path) -> dict[Path, int]:
    return {path.relative_to(root): path.stat().st_mtime_ns for path in root.rglob("*.*") if path.name != "run.log"}


def _train(out: Path) -> list[dict[str, Any]]:
    columns = ["triplet_id", "candidate", "p2p", "cross_p2p", "shared_steps"]
    files = sorted((out / "dataset" / "data").glob("train-*.parquet"))
    return [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]


def _candidates(out: Path) -> Iterator[dict[str, Any]]:
    for path in RunFolder(out).shards("candidates"):
        yield from pq.read_table(path).to_pylist()


def _test_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "dataset" / "data").glob("test-*.parquet")}


def test_the_whole_is_the_run_itself_and_not_trained_again(
    ablated: PipelineConfig, filtered_run: PipelineConfig
) -> None:
    full = ablated.out / "full"
    assert (full / "training/loss.jsonl").read_bytes() == (filtered_run.out / "training/loss.jsonl").read_bytes()
    weights = Path("model/unet/diffusion_pytorch_model.safetensors")
    assert (full / weights).samefile(filtered_run.out / weights)
    assert not (full / "training/cache").exists() and not list(full.glob("training/checkpoint-*"))
    assert read_summary(full)["training"] == read_summary(filtered_run.out)["training"]
    shards = [path.name for path in RunFolder(full).shards("pairs")]
    assert all((full / "pairs" / name).samefile(filtered_run.out / "pairs" / name) for name in shards)


def test_a_tenth_is_those_of_the_whole_with_the_lowest_hashes_and_the_same_test_split(ablated: PipelineConfig) -> None:
    full, tenth = _train(ablated.out / "full"), _train(ablated.out / "tenth")
    expected = [row for row in full if hash_to_unit("share", row["triplet_id"]) < 0.1]
    assert 0 < len(tenth) < len(full) and tenth == expected
    assert _test_files(ablated.out / "tenth") == _test_files(ablated.out / "full")
    assert read_summary(ablated.out / "tenth")["dataset"]["beyond_share"] == len(full) - len(tenth)


def test_without_the_filter_the_first_candidates_of_every_triplet_are_used(ablated: PipelineConfig) -> None:
    full, everything = (list(_candidates(ablated.out / name)) for name in ("full", "unfiltered"))
    specs = ("triplet_id", "candidate", "seed", "p2p")
    assert [[row[name] for name in specs] for row in full] == [[row[name] for name in specs] for row in everything]
    for before, after in zip(full, everything, strict=True):
        scores = [[row[name] for name in ("clip_direction", "clip_image")] for row in (before, after)]
        if before["accepted"]:  # its pictures were kept
            assert scores[0] == scores[1]
        assert scores[0] == pytest.approx(scores[1], abs=2e-3)  # rendered again in another batch and scored again
    assert all(row["accepted"] for row in everything) and sum(row["accepted"] for row in full) == len(full) // 2
    assert len(_train(ablated.out / "unfiltered")) > len(_train(ablated.out / "full"))


def test_fixed_shares_are_rendered_anew_on_the_same_triplets(ablated: PipelineConfig) -> None:
    full, fixed = (list(_candidates(ablated.out / name)) for name in ("full", "fixed-p"))
    assert {row["p2p"] for row in fixed} == {0.5} and len({row["p2p"] for row in full}) == len(full)
    assert [(row["triplet_id"], row["seed"]) for row in fixed] == [(row["triplet_id"], row["seed"]) for row in full]
    triplets = [RunFolder(ablated.out / name).shard("triplets", 0) for name in ("full", "fixed-p")]
    assert triplets[0].samefile(triplets[1])


def test_all_take_as_many_steps_on_the_same_held_out_edits(ablated: PipelineConfig) -> None:
    for column in ("original_image", "edit_prompt"):
        cases = [
            pq.read_table(ablated.out / name / "evaluation/cases.parquet")[column].to_pylist()
            for name in ablation.VARIANTS
        ]
        assert cases[0] and all(each == cases[0] for each in cases)
    assert {read_summary(ablated.out / name)["training"]["steps"] for name in ablation.VARIANTS} == {2}


def test_one_page_shows_all_with_their_pairs_and_what_differs(ablated: PipelineConfig) -> None:
    page = (ablated.out / "index.html").read_text()
    assert "4 runs compared" in page and "training pairs" in page
    assert all(f">{name}</th>" in page for name in ablation.VARIANTS)
    assert all(knob in page for knob in ("dataset.train_share", "filtering.thresholds.direction", "rendering.p2p"))


def test_every_variant_is_a_run_that_can_be_gone_on_with(ablated: PipelineConfig) -> None:
    for name in ablation.VARIANTS:
        saved = read_config(ablated.out / name / "config.json")
        assert uses.is_complete(saved, "pipeline")


def test_a_second_ablation_does_no_work_and_a_deleted_result_is_made_again_alone(
    ablated: PipelineConfig, filtered_run: PipelineConfig
) -> None:
    before = _times(ablated.out)
    ablation_flow(ablated, filtered_run.out)
    changed = {path for path, time in _times(ablated.out).items() if before.get(path) != time}
    assert changed == {Path("index.html")}
    (ablated.out / "tenth/evaluation/parts/model-edit-t7.5-i1.5-00000.parquet").unlink()
    ablation_flow(ablated, filtered_run.out)
    changed = {path for path, time in _times(ablated.out).items() if before.get(path) != time}
    again = Path("tenth/evaluation/parts/model-edit-t7.5-i1.5-00000.parquet")
    assert again in changed and not any(path.parts[0] in ("full", "unfiltered", "fixed-p") for path in changed)
    assert not any(path.suffix == ".safetensors" for path in changed)


def test_a_variant_that_a_kill_left_half_taken_over_goes_on(
    filtered_run: PipelineConfig, ablated: PipelineConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(filtered_run, out=tmp_path)
    ablation.take_over(filtered_run.out, tmp_path / "unfiltered", editor=False)
    pairs = RunFolder(tmp_path / "unfiltered").shards("pairs")
    for path in [pairs[0], pairs[1].with_name(f"{pairs[1].name}.json")]:
        path.unlink()
    ablation_flow(config, filtered_run.out, ["unfiltered"])
    assert _train(tmp_path / "unfiltered") == _train(ablated.out / "unfiltered")


def test_only_draws_of_sharing_are_fixed_also_those_of_single_edit_types(tiny_config: PipelineConfig) -> None:
    own = {"add": EditTypeRendering(p2p=(0.0, 0.2)), "size": EditTypeRendering(num_candidates=3)}
    rendering = dataclasses.replace(tiny_config.rendering, per_edit_type=own, shared_steps=(0.4, 0.6))
    fixed = ablation.fixed_p(dataclasses.replace(tiny_config, rendering=rendering)).rendering
    assert (fixed.p2p, fixed.cross_p2p, fixed.shared_steps) == ((0.5, 0.5), (0.0, 0.0), (0.5, 0.5))
    assert fixed.per_edit_type == {"add": EditTypeRendering(p2p=(0.1, 0.1)), "size": own["size"]}
    assert fixed.guidance_scale == rendering.guidance_scale


def test_without_the_filter_only_unwanted_and_flat_pictures_are_left_out(tiny_config: PipelineConfig) -> None:
    strict = Thresholds(direction=0.3, max_image=0.9, ssim=0.1, dino=0.2, contrast=0.01, max_nsfw=0.5)
    filtering = dataclasses.replace(
        tiny_config.filtering, thresholds=strict, per_edit_type={"add": Thresholds(contrast=0.01, max_nsfw=0.5)}
    )
    opened = ablation.unfiltered(dataclasses.replace(tiny_config, filtering=filtering)).filtering
    assert opened.per_edit_type == {} and opened.selection == "first"
    assert opened.thresholds == Thresholds(
        original=-1.0, edited=-1.0, direction=-1.0, image=-1.0, contrast=0.01, max_nsfw=0.5
    )


def test_epochs_become_the_steps_that_the_whole_took(filtered_run: PipelineConfig, tmp_path: Path) -> None:
    training = dataclasses.replace(filtered_run.training, max_train_steps=None, num_train_epochs=3)
    config = dataclasses.replace(filtered_run, training=training)
    assert ablation.vary(config, "tenth", filtered_run.out).training.max_train_steps == 2
    assert ablation.vary(config, "full", filtered_run.out).training == training
    with pytest.raises(ValueError, match="was not trained to its end"):
        ablation.vary(config, "tenth", tmp_path)


def test_the_config_of_a_variant_names_what_differs_and_nothing_else(ablated: PipelineConfig) -> None:
    full, tenth = (read_json(ablated.out / name / "config.json") for name in ("full", "tenth"))
    differing = {name for name in full if full[name] != tenth[name]} - {"environment"}  # which tells of the checkout
    assert differing == {"out", "dataset", "evaluation"}
    assert tenth["dataset"] == full["dataset"] | {"train_share": 0.1}
