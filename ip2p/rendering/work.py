"""Renders and scores what a shard of candidates lacks, batch by batch, each pair as it will be stored."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from ip2p import loading
from ip2p.config import PipelineConfig
from ip2p.filtering.judge import judge_candidate, num_accepted_by_triplet
from ip2p.filtering.scorer import Scorer, load_scorer
from ip2p.prompts import read_triplets
from ip2p.records import Candidate, ScoredCandidate
from ip2p.rendering.conditions import fits_text_encoder
from ip2p.rendering.draws import draw_candidates, settings_for
from ip2p.rendering.images import decode_image, encode_image
from ip2p.rendering.needed import CandidateQueue, Key, key_of
from ip2p.rendering.sampler import RenderedPair, render_pairs
from ip2p.rendering.table import EncodedPair, read_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a shard had rendered anew."""

    triplet_ids: Sequence[str] = ()
    """All of the shard, in order; empty where nothing was needed."""
    scored: Sequence[ScoredCandidate] = ()
    images: Mapping[Key, EncodedPair] = field(default_factory=dict)
    too_long: int = 0
    """Candidates that were left out, because a caption does not fit the text encoder."""


def render_needed(
    config: PipelineConfig, known: pa.Table, triplets_path: Path, *, name: str, is_first: bool
) -> Rendered:
    """Of a shard without a table all that is needed, else what triplets with too few accepted pairs still need."""
    unfinished = None if is_first else _unfinished(config, known)
    if unfinished is not None and not unfinished:
        return Rendered()
    triplets = read_triplets(triplets_path)
    chosen = [each for each in triplets if unfinished is None or each.id in unfinished]
    candidates = [candidate for triplet in chosen for candidate in draw_candidates(config.rendering, triplet)]
    fitting = _fitting(config, candidates) if is_first else candidates
    of_those = known.filter(pc.is_in(known["triplet_id"], pa.array([each.id for each in chosen], pa.string())))
    scores = {key_of(each.candidate): each.scores for each in read_rows(of_those)}
    scored, images = [], {}
    for each, pair in _scored_pairs(config, CandidateQueue(fitting, config.filtering, scores), name=name):
        scored.append(each)
        if config.rendering.keep_rejected_images or each.verdict.accepted:
            images[key_of(each.candidate)] = pair
    return Rendered([each.id for each in triplets], scored, images, len(candidates) - len(fitting))


def _unfinished(config: PipelineConfig, known: pa.Table) -> set[str]:
    """Triplets of a judged table that have candidates left and, where the first are taken, too few accepted pairs."""
    kinds = {row["triplet_id"]: row["edit_type"] for row in _types(known)}
    budgets = {kind: settings_for(config.rendering, kind).num_candidates for kind in set(kinds.values())}
    enough = config.filtering.max_pairs_per_triplet if config.filtering.selection == "first" else None
    return {
        triplet_id
        for triplet_id, (num, num_accepted) in num_accepted_by_triplet(known).items()
        if num < budgets[kinds[triplet_id]] and (enough is None or num_accepted < enough)
    }


def _types(known: pa.Table) -> list[dict[str, str]]:
    found: list[dict[str, str]] = known.group_by(["triplet_id", "edit_type"]).aggregate([]).to_pylist()
    return found


def _fitting(config: PipelineConfig, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drops, with a log line each, triplets whose captions the text encoder would cut."""
    if not candidates:
        return []
    pipeline = _load_pipeline(config)
    fits = {
        candidate.triplet.id: fits_text_encoder(pipeline, candidate) for candidate in candidates if _is_first(candidate)
    }
    for candidate in candidates:
        if _is_first(candidate) and not fits[candidate.triplet.id]:
            limit = pipeline.tokenizer.model_max_length
            logger.warning(
                "triplet %s is not rendered: a caption is longer than %d tokens", candidate.triplet.id, limit
            )
    return [candidate for candidate in candidates if fits[candidate.triplet.id]]


def _is_first(candidate: Candidate) -> bool:
    return candidate.spec.candidate == 0


def _scored_pairs(
    config: PipelineConfig, queue: CandidateQueue, *, name: str
) -> Iterator[tuple[ScoredCandidate, EncodedPair]]:
    """Renders, encodes, decodes and scores; the verdicts know of thresholds, not yet of the limit per triplet."""
    batch = queue.take(config.rendering.batch_size)
    if not batch:
        return
    scorer = load_scorer(config.scoring)
    with tqdm(desc=f"render {name}", unit="pair", disable=None) as bar:
        while batch:
            bar.total = queue.num_asked
            pairs = list(encoded_pairs(config, batch))
            scored = _score(config, scorer, batch, pairs)
            yield from zip(scored, pairs, strict=True)
            queue.settle(scored)
            bar.update(len(batch))
            batch = queue.take(config.rendering.batch_size)


def _score(
    config: PipelineConfig, scorer: Scorer, batch: Sequence[Candidate], pairs: Sequence[EncodedPair]
) -> list[ScoredCandidate]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        originals, edited = (list(pool.map(decode_image, [pair[side] for pair in pairs])) for side in (0, 1))
    scores = scorer.score([candidate.triplet for candidate in batch], originals, edited)
    return [
        ScoredCandidate(candidate=candidate, scores=each, verdict=judge_candidate(candidate, each, config.filtering))
        for candidate, each in zip(batch, scores, strict=True)
    ]


def encoded_pairs(config: PipelineConfig, candidates: Sequence[Candidate]) -> Iterator[EncodedPair]:
    """Renders; the codec works on other threads, so that the next batch does not wait for it."""
    rendering = config.rendering

    def encode(pair: RenderedPair) -> EncodedPair:
        original, edited = (
            encode_image(pixels, rendering.image_format, rendering.image_quality)
            for pixels in (pair.original, pair.edited)
        )
        return original, edited

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        encoded = [pool.submit(encode, pair) for pair in render_pairs(_load_pipeline(config), candidates, rendering)]
        yield from (each.result() for each in encoded)


def _load_pipeline(config: PipelineConfig) -> Any:
    rendering = config.rendering
    return loading.load_text_to_image(
        rendering.model,
        revision=rendering.revision,
        variant=rendering.variant,
        dtype=rendering.dtype,
        device=rendering.device,
    )
