"""The unit of work of an evaluation: one editor at one image guidance scale on a slice of the cases.

A part holds its pictures beside its scores, so that a finished one is never edited, scored or judged again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ip2p import store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.evaluation.cases import IMAGE_TYPE, balanced_subset, encode_png
from ip2p.evaluation.domain import Domain, EditCase, Pixels
from ip2p.evaluation.editors import Editor
from ip2p.records import PairScores, hash_to_seed

Scorer = Callable[[Sequence[EditCase], Sequence[Pixels]], list[PairScores]]
"""(cases, edited images) to the four similarities of each."""

CASES_PER_PART = 128
MAX_UNTRAINED_EDITS = 98
"""The untrained baseline scores next to nothing whatever the number of cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which editor, at which scale, on which cases."""

    model: str
    sweep: bool
    image_guidance_scale: float
    index: int
    cases: tuple[int, ...]
    """Numbers of the held-out cases."""

    @property
    def name(self) -> str:
        """`model-1.5-00000`, or `sweep-1.5-00000` for a point of the sweep."""
        return f"{'sweep' if self.sweep else self.model}-{self.image_guidance_scale:g}-{self.index:05d}"

    def path(self, config: PipelineConfig) -> Path:
        """Where the part lies."""
        return store.RunFolder(config.out).evaluation / "parts" / f"{self.name}.parquet"


def plan_parts(config: PipelineConfig, cases: Sequence[EditCase]) -> list[Part]:
    """All parts of an evaluation: the three editors, then the sweep on the same few cases at every scale."""
    knobs = config.evaluation
    few = balanced_subset(cases, min(MAX_UNTRAINED_EDITS, len(cases)))
    swept = balanced_subset(cases, min(knobs.num_sweep_edits, len(cases)))
    everything = list(range(len(cases)))
    parts: list[Part] = []
    for name, some in (("model", everything), ("copy", everything), ("untrained", few)):
        parts += _slices(name, False, knobs.image_guidance_scale, some)
    for scale in knobs.image_guidance_scales:
        parts += _slices("model", True, scale, swept)
    return parts


def _slices(model: str, sweep: bool, scale: float, numbers: Sequence[int]) -> Iterator[Part]:
    for index, start in enumerate(range(0, len(numbers), CASES_PER_PART)):
        some = tuple(numbers[start : start + CASES_PER_PART])
        yield Part(model=model, sweep=sweep, image_guidance_scale=scale, index=index, cases=some)


def fingerprint_part(config: PipelineConfig, part: Part, case_hashes: Sequence[str], editor: str) -> str:
    """Hash of all that decides a part's rows: the cases' content, the editor's weights, the settings."""
    knobs = config.evaluation
    asked = (knobs.guidance_scale, knobs.num_inference_steps, knobs.seed, knobs.domain)
    return fingerprint(part, [case_hashes[number] for number in part.cases], editor, *asked, config.scoring)


def noise_seed(config: PipelineConfig, number: int) -> int:
    """Seed of a case's noise: the same for every editor and every scale."""
    return hash_to_seed(config.evaluation.seed, "case", number)


def write_part(
    config: PipelineConfig,
    part: Part,
    cases: Sequence[EditCase],
    *,
    fingerprint: str,
    editor: Editor,
    score: Scorer,
    domain: Domain | None,
    progress: Callable[[int], object],
) -> store.Sidecar:
    """Edits, scores and judges the part's cases and writes them; `progress` is told of every batch."""
    started, rows, size = time.monotonic(), [], config.evaluation.batch_size
    for start in range(0, len(part.cases), size):
        numbers = part.cases[start : start + size]
        some = [cases[number] for number in numbers]
        seeds = [noise_seed(config, number) for number in numbers]
        images = editor(
            [case.original_image for case in some],
            [case.edit_prompt for case in some],
            seeds,
            part.image_guidance_scale,
        )
        scores = score(some, images)
        for number, seed, case, image, found in zip(numbers, seeds, some, images, scores, strict=True):
            about = {"model": part.model, "sweep": part.sweep, "case": number, "seed": seed}
            scales = (config.evaluation.guidance_scale, part.image_guidance_scale)
            rows.append(about | _row(case, image, found, scales, domain))
        progress(len(numbers))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    seconds = time.monotonic() - started
    return store.write_shard(
        part.path(config), table, fingerprint=fingerprint, seconds=seconds, counts={"edits": len(rows)}
    )


def _row(
    case: EditCase, image: Pixels, scores: PairScores, scales: tuple[float, float], domain: Domain | None
) -> dict[str, Any]:
    judged = domain.judge_case(case, image) if domain else None
    described = bool(case.original_prompt and case.edited_prompt)
    return {
        "edit_type": case.edit_type,
        "original_prompt": case.original_prompt,
        "edit_prompt": case.edit_prompt,
        "edited_prompt": case.edited_prompt,
        "guidance_scale": scales[0],
        "image_guidance_scale": scales[1],
        "success": judged and judged.success,
        "done": judged and judged.done,
        "kept": judged and judged.kept,
        "legible": judged and judged.legible,
        "clip_original": scores.original if described else None,
        "clip_edited": scores.edited if described else None,
        "clip_direction": scores.direction if described else None,
        "clip_image": scores.image,
        "edited_image": {"bytes": encode_png(image), "path": None},
    }


_TEXTS = ("edit_type", "original_prompt", "edit_prompt", "edited_prompt")
_FLAGS = ("success", "done", "kept", "legible")
_NUMBERS = ("clip_original", "clip_edited", "clip_direction", "clip_image")
SCHEMA = pa.schema(
    [("model", pa.string()), ("sweep", pa.bool_()), ("case", pa.int64()), ("seed", pa.int64())]
    + [(name, pa.string()) for name in _TEXTS]
    + [("guidance_scale", pa.float64()), ("image_guidance_scale", pa.float64())]
    + [(name, pa.bool_()) for name in _FLAGS]
    + [(name, pa.float64()) for name in _NUMBERS]
    + [("edited_image", IMAGE_TYPE)]
)
