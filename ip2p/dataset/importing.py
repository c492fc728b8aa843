"""Imports other people's pairs into a run folder, so that they are scored, filtered and trained on like our own.

Every row becomes a triplet and a candidate; unusable rows are counted by reason. If a source has no captions, its
pictures are identified by their group, so that no picture lies in two splits.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.dataset.further import FOLDER as FURTHER
from ip2p.dataset.further import write_further
from ip2p.images import check_shapes, encode_mask, encode_png, fit_picture, open_picture, plain_file, read_size
from ip2p.prompts import Generation, name_edit_type, triplets_table
from ip2p.records import (
    LATER_COLUMNS,
    Candidate,
    EditTriplet,
    PairScores,
    RenderSpec,
    ScoredCandidate,
    Verdict,
    content_hash,
)
from ip2p.rendering import keep_shard
from ip2p.rendering.candidates import key_of
from ip2p.rendering.table import EncodedPair
from ip2p.scoring.scorer import Scorer
from ip2p.sources.pairs import SourceRow

logger = logging.getLogger(__name__)

ROWS_PER_SHARD = 1000
SizedFile = tuple[bytes, tuple[int, int]]
"""A picture file and its (width, height)."""
UNSCORED = PairScores(original=math.nan, edited=math.nan, direction=math.nan, image=math.nan)


@dataclass(frozen=True, slots=True)
class Imported:
    """A usable row."""

    candidate: Candidate
    images: tuple[bytes, bytes]
    further: dict[str, bytes]
    """A second reference and a mask, if the row has them."""


@store.summarised("prompts")
def import_rows(
    config: PipelineConfig, rows: Iterator[SourceRow], name: str, scorer: Scorer | None = None
) -> dict[str, int]:
    """Writes the shards of a run from rows of a source called `name`; returns counts by reason.

    Without a `scorer` all pairs are accepted and their scores are NaN.
    """
    folder, total, seen = store.RunFolder(config.out), Counter[str](), Counter[str]()
    blocks = iter(lambda: list(itertools.islice(rows, ROWS_PER_SHARD)), [])
    number = -1
    for number, block in enumerate(tqdm(blocks, desc="import", unit="shard", disable=None)):
        started = time.monotonic()
        usable, reasons = _take(block, config, name, seen)
        total.update({"rows": len(block), "imported": len(usable), **reasons})
        path = folder.shard("triplets", number)
        _write_triplets(path, [pair.candidate.triplet for pair in usable], reasons, started)
        scored, embeddings = _score(usable, scorer)
        images = {
            key_of(pair.candidate): EncodedPair(*pair.images, both)
            for pair, both in zip(usable, embeddings, strict=True)
        }
        further = {key_of(pair.candidate): pair.further for pair in usable}
        write_further(folder.shard(FURTHER, number), further)
        keep_shard(config, number, scored, images, is_scored=scorer is not None)
    for stage in ("triplets", "candidates", "pairs", FURTHER):
        folder.drop_shards_from(stage, number + 1)
    if not total["imported"]:
        why = ", ".join(f"{count} {reason}" for reason, count in total.items() if reason not in ("rows", "imported"))
        raise ValueError(f"{name} has no usable row: {why or 'it is empty'}.")
    return dict(total)


def _take(
    block: Sequence[SourceRow], config: PipelineConfig, name: str, seen: Counter[str]
) -> tuple[list[Imported], Counter[str]]:
    usable, reasons = [], Counter[str]()
    for row in block:
        try:
            usable.append(_import_row(row, config, name, seen, reasons))
        except ValueError as error:
            reasons[str(error).partition(":")[0]] += 1
            if reasons.total() <= 3:
                logger.warning("left out a row of %s: %s", name, error)
    return usable, reasons


def _import_row(
    row: SourceRow, config: PipelineConfig, name: str, seen: Counter[str], reasons: Counter[str]
) -> Imported:
    if not row.edit_prompt:
        raise ValueError("no instruction")
    if not row.original_image or not row.edited_image:
        raise ValueError("no image")
    before, after = plain_file(row.original_image), plain_file(row.edited_image)
    original, edited = _as_one_size(before, after)
    further = _keep_further(row, tuple(map(min, before[1], after[1])), reasons)
    group = row.group or content_hash(row.original_image)
    triplet = EditTriplet(
        original_prompt=row.original_prompt,
        edit_prompt=row.edit_prompt,
        edited_prompt=row.edited_prompt,
        edit_type=row.edit_type or name_edit_type(row.edit_prompt, config.prompts.edit_type_rules),
        source=f"{name}/{group}",
    )
    has_captions = bool(row.original_prompt and row.edited_prompt)
    triplet_id = triplet.id if has_captions else content_hash(triplet.id, triplet.source)
    settings: dict[str, Any] = {"seed": 0, "guidance_scale": math.nan, "p2p": math.nan, **row.spec}
    spec = RenderSpec(triplet_id=triplet_id, candidate=seen[triplet_id], **settings)
    seen[triplet_id] += 1
    return Imported(Candidate(triplet=triplet, spec=spec), (original, edited), further)


def _keep_further(row: SourceRow, size: tuple[int, ...], reasons: Counter[str]) -> dict[str, bytes]:
    """Returns the second reference and the mask, cropped like the pair; one that cannot be used is counted."""
    kept = {}
    for column, content in row.further.items():
        try:
            kept[column] = _fit_mask(content, size) if column == "mask_image" else plain_file(content)[0]
        except ValueError as error:
            reasons[f"pair without its {column}"] += 1
            logger.warning("left out a %s: %s", column, error)
    return kept


def _fit_mask(content: bytes, size: tuple[int, ...]) -> bytes:
    """Returns a mask as a grey PNG of (width, height), cropped by the trainer's rule. ValueError for another shape."""
    width, height = size
    marked = encode_mask(content)
    check_shapes(read_size(marked), (width, height))
    if read_size(marked) == (width, height):
        return marked
    return encode_mask(encode_png(fit_picture(open_picture(marked), (width, height))))


def _as_one_size(original: SizedFile, edited: SizedFile) -> tuple[bytes, bytes]:
    """Crops images of one shape, by the trainer's rule, to the smaller width and height. ValueError for two shapes."""
    check_shapes(original[1], edited[1])
    width, height = map(min, original[1], edited[1])
    first, second = (
        content if size == (width, height) else encode_png(fit_picture(open_picture(content), (width, height)))
        for content, size in (original, edited)
    )
    return first, second


def _write_triplets(path: Path, triplets: Sequence[EditTriplet], reasons: Mapping[str, int], started: float) -> None:
    table = triplets_table([Generation(triplet.original_prompt, "", triplet, "") for triplet in triplets])
    counts = {"captions": len(triplets), "generations": len(triplets), "kept": len(triplets), **reasons}
    digest = content_hash(*(each.id for each in triplets), *(each.source for each in triplets))
    seconds = time.monotonic() - started
    store.write_shard(path, table, fingerprint=digest, seconds=seconds, counts=counts, optional=LATER_COLUMNS)


def _score(usable: Sequence[Imported], scorer: Scorer | None) -> tuple[list[ScoredCandidate], Sequence[bytes | None]]:
    """Returns the candidates with their scores, and CLIP's embeddings of their images; NaN without a scorer."""
    scores: Sequence[PairScores] = [UNSCORED] * len(usable)
    embeddings: Sequence[bytes | None] = [None] * len(usable)
    if scorer is not None and usable:
        originals, edited = ([open_picture(each.images[side]) for each in usable] for side in (0, 1))
        scores, embeddings = scorer.score([each.candidate.triplet for each in usable], originals, edited)
    scored = [
        ScoredCandidate(candidate=pair.candidate, scores=values, verdict=Verdict())
        for pair, values in zip(usable, scores, strict=True)
    ]
    return scored, embeddings
