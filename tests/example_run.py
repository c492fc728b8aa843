"""A run folder with every part that the report can show, from drawn scenes and invented scores."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ip2p import store
from ip2p.config import FilteringConfig, PipelineConfig, Thresholds
from ip2p.evaluation import metrics
from ip2p.evaluation.precision import as_precision
from ip2p.filtering import judge_table
from ip2p.images import IMAGE_TYPE, encode_png
from ip2p.prompts import Generation, triplets_table
from ip2p.prompts.format import Reason
from ip2p.records import Candidate, EditTriplet, PairScores, RenderSpec, ScoredCandidate, Verdict
from ip2p.rendering.table import candidates_table
from ip2p.shapes.language import EDIT_TYPES, SceneEdit, draw_caption, draw_edit
from ip2p.shapes.scene import render

HOSTILE = "<script>alert('x')</script>"
SCALES = (1.0, 1.4, 1.8, 2.2)
JUDGE = {"model": "ViT-B-32/laion2b", "same_as_filter": False, "filter": "ViT-L-14/openai"}
CHANCES = {"model": 0.9, "copy": 0.0, "untrained": 0.03, "sdedit 0.5": 0.35}
"""How often an invented editor does as it is told."""


def synthetic_config(out: Path) -> PipelineConfig:
    """A run of 120 triplets with two candidates each; its thresholds reject about half."""
    thresholds = Thresholds(original=0.2, edited=0.2, direction=0.15, image=0.6)
    return PipelineConfig(out=out, filtering=FilteringConfig(thresholds=thresholds, max_pairs_per_triplet=1))


def write_synthetic_run(config: PipelineConfig) -> PipelineConfig:
    """Writes every part of a run folder."""
    rng, run = random.Random(0), store.RunFolder(config.out)
    edits = [draw_edit(rng, edit_type=EDIT_TYPES[index % 7]) for index in range(120)]
    triplets = [_triplet(rng, edit) for edit in edits]
    triplets[0] = replace(triplets[0], edit_prompt=HOSTILE)
    _write_triplets(run, triplets)
    verdicts = _write_candidates(config, run, rng, edits, triplets)
    _write_training(run, rng)
    _write_evaluation(run, rng)
    stages = {"prompts": 41.2, "rendering": 184.0, "dataset": 2.1, "training": 372.5, "evaluation": 96.0}
    summary: dict[str, dict[str, Any]] = {stage: {"seconds": seconds} for stage, seconds in stages.items()}
    accepted = [row for row in verdicts if row["accepted"]]
    for name, rows in {"oracle_precision": accepted, "oracle_precision_all": verdicts}.items():
        summary["dataset"] |= as_precision(name, metrics.summarise(rows, EDIT_TYPES))
    store.write_json(run.root / "summary.json", summary)
    return config


def _triplet(rng: random.Random, edit: SceneEdit) -> EditTriplet:
    return EditTriplet(
        original_prompt=draw_caption(rng, edit.original),
        edit_prompt=edit.edit_prompt,
        edited_prompt=draw_caption(rng, edit.edited),
        edit_type=edit.edit_type,
    )


def _write_triplets(run: store.RunFolder, triplets: list[EditTriplet]) -> None:
    rows = [Generation(each.original_prompt, "", each, "") for each in triplets]
    times: dict[Reason, int] = {"unparsable": 5, "no_op": 3, "duplicate": 2}
    lost = [reason for reason, num in times.items() for _ in range(num)]
    rows += [Generation(f"caption {index}", f"{HOSTILE} {index}", None, reason) for index, reason in enumerate(lost)]
    store.write_shard(run.shard("triplets", 0), triplets_table(rows), fingerprint="x", seconds=4.0)


def _write_candidates(
    config: PipelineConfig,
    run: store.RunFolder,
    rng: random.Random,
    edits: list[SceneEdit],
    triplets: list[EditTriplet],
) -> list[dict[str, Any]]:
    """Returns the oracle's verdicts."""
    scored, pictures = [], []
    for edit, triplet in zip(edits, triplets, strict=True):
        for number in range(2):
            good = rng.random() < 0.7
            step = rng.gauss(0.45, 0.15) if good else rng.gauss(0.12, 0.12)
            same = rng.gauss(0.85, 0.06) if good else rng.gauss(0.65, 0.12)
            found = PairScores(original=rng.gauss(0.3, 0.04), edited=rng.gauss(0.28, 0.05), direction=step, image=same)
            spec = RenderSpec(triplet_id=triplet.id, candidate=number, seed=number, guidance_scale=3.0, p2p=0.5)
            scored.append(
                ScoredCandidate(candidate=Candidate(triplet=triplet, spec=spec), scores=found, verdict=Verdict())
            )
            pictures.append((render(edit.original), render(edit.edited if good else edit.original), good))
    rows = judge_table(candidates_table(scored), config.filtering).to_pylist()
    store.write_shard(run.shard("candidates", 0), pa.Table.from_pylist(rows), fingerprint="x", seconds=9.0)
    table = pa.Table.from_pylist(rows)
    for side, name in enumerate(("original_image", "edited_image")):
        table = table.append_column(name, image_column([some[side] for some in pictures]))
    store.write_shard(run.shard("pairs", 0), table, fingerprint="x", seconds=0.0)
    verdicts = [
        {name: row[name] for name in ("triplet_id", "candidate", "edit_type", "accepted")}
        | {"success": good, "done": good, "kept": True, "legible": True}
        for row, (_, _, good) in zip(rows, pictures, strict=True)
    ]
    judged = run.evaluation / "oracle" / "part-00000.parquet"
    store.write_shard(judged, pa.Table.from_pylist(verdicts), fingerprint="x", seconds=0.0)
    return verdicts


def image_column(pictures: list[Any]) -> pa.Array:
    """Pictures as PNGs in a column."""
    return pa.array([{"bytes": encode_png(np.asarray(picture)), "path": None} for picture in pictures], IMAGE_TYPE)


def _write_training(run: store.RunFolder, rng: random.Random) -> None:
    run.training.mkdir(parents=True, exist_ok=True)
    losses = {step: 0.05 + 0.3 * 0.99 ** (step / 3) + abs(rng.gauss(0, 0.015)) for step in range(10, 1210, 10)}
    lines = [{"step": step, "loss": loss} for step, loss in losses.items()]
    (run.training / "loss.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 12')


def _write_evaluation(run: store.RunFolder, rng: random.Random) -> None:
    edits = [draw_edit(rng, edit_type=EDIT_TYPES[index % 7]) for index in range(140)]
    texts = [{"edit_type": edit.edit_type, "edit_prompt": edit.edit_prompt} for edit in edits]
    cases = pa.Table.from_pylist([{"case": number, **words} for number, words in enumerate(texts)])
    cases = cases.append_column("original_image", image_column([render(edit.original) for edit in edits]))
    store.write_shard(run.evaluation / "cases.parquet", cases, fingerprint="x", seconds=0.0)
    made = {name: [_record(name, 1.5, number, edit, rng) for number, edit in enumerate(edits)] for name in CHANCES}
    halves = (made["model"][:70], made["model"][70:])
    names = [f"model-edit-t7.5-i1.5-{number:05d}" for number in range(2)]
    for name, rows in zip(names, halves, strict=True):
        table = _table(rows)
        for folder, some in (("edits", table), ("parts", table.drop_columns(["edited_image"]))):
            store.write_shard(run.evaluation / folder / f"{name}.parquet", some, fingerprint="x", seconds=1.0)
    told = [{name: value for name, value in row.items() if name != "picture"} for row in made["model"]]
    scores = pa.Table.from_pylist([{"model": "model", "kind": "edit", "seed": row["case"], **row} for row in told])
    store.write_shard(run.evaluation / "scores.parquet", scores, fingerprint="x", seconds=0.0)
    store.write_json(run.evaluation / "figures.json", {**_figures(made, edits, rng), "parts": names, "seconds": 96.0})
    _write_grids(run, edits[:3])


def _figures(made: dict[str, list[dict[str, Any]]], edits: list[SceneEdit], rng: random.Random) -> dict[str, Any]:
    told = {name: metrics.summarise(rows, EDIT_TYPES) for name, rows in made.items()}
    swept = [_record("model", scale, number, edits[number], rng) for scale in SCALES for number in range(40)]
    strengths = [_record("sdedit 0.5", scale, number, edits[number], rng) for scale in SCALES for number in range(40)]
    curve, other = metrics.curve(swept), metrics.curve(strengths)
    for point in other:
        point["strength"] = point.pop("image_guidance_scale") / 4
    paired = {"n": 140, "won": 80, "lost": 3, "p": 1e-9, "difference": 0.21, "low": 0.15, "high": 0.27}
    return {
        **told.pop("model"),
        "baselines": told,
        "judge": JUDGE,
        "curve": curve,
        "curves": {"trained editor": curve, "sdedit": other},
        "paired": {"sdedit 0.5": paired},
    }


def _record(model: str, scale: float, number: int, edit: SceneEdit, rng: random.Random) -> dict[str, Any]:
    more = scale - 1.5
    done = rng.random() < CHANCES[model] - 0.02 * EDIT_TYPES.index(edit.edit_type) - 0.25 * more
    kept = model == "copy" or rng.random() < 0.85 + 0.15 * more
    return {
        "case": number,
        "edit_type": edit.edit_type,
        "original_prompt": "a scene",
        "edit_prompt": edit.edit_prompt,
        "edited_prompt": "another scene",
        "image_guidance_scale": scale,
        "success": done and kept,
        "done": done,
        "kept": kept,
        "legible": True,
        "no_op": not done and kept,
        "clip_original": 0.3,
        "clip_edited": 0.28,
        "clip_direction": rng.gauss(0.4 * CHANCES[model] - 0.15 * more, 0.1),
        "clip_image": rng.gauss(0.82 + 0.09 * more, 0.04),
        "lpips_kept": abs(rng.gauss(0.2, 0.05)),
        "picture": render(edit.edited if done else edit.original),
    }


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    pictures = [row["picture"] for row in rows]
    plain = [{"model": "model"} | {name: value for name, value in row.items() if name != "picture"} for row in rows]
    return pa.Table.from_pylist(plain).append_column("edited_image", image_column(pictures))


def _write_grids(run: store.RunFolder, edits: list[SceneEdit]) -> None:
    rows, before, after = [], [], []
    for number, edit in enumerate(edits):
        for text in (1.5, 3.0, 7.5):
            for image in SCALES:
                told = {"case": number, "guidance_scale": text, "image_guidance_scale": image}
                rows.append(told | {"edit_prompt": edit.edit_prompt})
                before.append(render(edit.original))
                after.append(render(edit.edited if text > image else edit.original))
    table = pa.Table.from_pylist(rows).append_column("original_image", image_column(before))
    table = table.append_column("edited_image", image_column(after))
    store.write_shard(run.evaluation / "grids.parquet", table, fingerprint="x", seconds=0.0)
