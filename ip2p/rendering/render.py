"""Renders and scores what a shard of candidates lacks, batch by batch, each pair as it will be stored."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from tqdm import tqdm

from ip2p.config import PipelineConfig
from ip2p.filtering import judge_candidate, num_accepted_by_triplet, passes_first_look
from ip2p.images import encode_image, open_picture
from ip2p.models import loading
from ip2p.p2p.sampler import RenderedPair, fits_text_encoder, is_guided, render_pairs
from ip2p.prompts import read_triplets
from ip2p.records import Candidate, ScoredCandidate
from ip2p.rendering.candidates import CandidateQueue, Key, draw_candidates, key_of, settings_for
from ip2p.rendering.table import EncodedPair, read_rows
from ip2p.scoring import Scorer, load_pair_scorer, load_scorer

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
    config: PipelineConfig, known: pa.Table, triplets_path: Path, *, name: str, is_first: bool, again: Set[str]
) -> Rendered:
    """Of a shard without a table all that is needed, else what triplets with too few accepted pairs still need.

    Triplets named in `again` lack candidates that they had.
    """
    unfinished = None if is_first else _unfinished(config, known) | again
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
        if pair is not None and (config.rendering.keep_rejected_images or each.verdict.accepted):
            images[key_of(each.candidate)] = replace(pair, embeddings=each.scores.embeddings)
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
) -> Iterator[tuple[ScoredCandidate, EncodedPair | None]]:
    """Renders, encodes, decodes and scores; what a first look drops has no pair.

    The verdicts know of thresholds, not yet of the limit per triplet.
    """
    size, promising = config.rendering.batch_size, list[Candidate]()
    batch = queue.take(size)
    if not batch:
        return
    scorer = load_scorer(config.scoring)
    with tqdm(desc=f"render {name}", unit="pair", disable=None) as bar:
        while batch or promising:
            bar.total = queue.num_asked
            passed, dropped = _look(config, scorer, batch)
            yield from ((each, None) for each in dropped)
            queue.settle(dropped)
            promising += passed
            now = _alike(promising)[:size]
            if len(now) == size or not batch or config.rendering.first_look_steps is None:
                promising = [each for each in promising if each not in now]
                pairs = list(encoded_pairs(config, now))
                scored = _score(config, scorer, now, pairs)
                yield from zip(scored, pairs, strict=True)
                queue.settle(scored)
                bar.update(len(now))
            bar.update(len(dropped))
            batch = queue.take(size)


def _look(
    config: PipelineConfig, scorer: Scorer, batch: Sequence[Candidate]
) -> tuple[list[Candidate], list[ScoredCandidate]]:
    """Those that a first look leaves in the running, and the others; it is one of few steps, if it is asked for."""
    steps = config.rendering.first_look_steps
    if steps is None or not batch:
        return list(batch), []
    quick = replace(config, rendering=replace(config.rendering, first_look_steps=None, num_inference_steps=steps))
    scored = _score(config, scorer, batch, list(encoded_pairs(quick, batch)), first_look=True)
    passed = [passes_first_look(each.candidate, each.scores, config.filtering) for each in scored]
    return list(compress(batch, passed)), [each for each, good in zip(scored, passed, strict=True) if not good]


def _alike(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that are guided as the first is: a batch computes the unconditional half for all or for none."""
    return [each for each in candidates if is_guided(each.spec) == is_guided(candidates[0].spec)]


def _score(
    config: PipelineConfig,
    scorer: Scorer,
    batch: Sequence[Candidate],
    pairs: Sequence[EncodedPair],
    *,
    first_look: bool = False,
) -> list[ScoredCandidate]:
    originals, edited = _decoded(pairs)
    scores = scorer.score([candidate.triplet for candidate in batch], originals, edited)
    scores = [replace(each, first_look=first_look) for each in scores]
    return [
        ScoredCandidate(candidate=candidate, scores=each, verdict=judge_candidate(candidate, each, config.filtering))
        for candidate, each in zip(batch, scores, strict=True)
    ]


def render_again(config: PipelineConfig, candidates: Sequence[Candidate]) -> Iterator[EncodedPair]:
    """Pairs that were scored before but whose images were not kept, with CLIP's embeddings."""
    if not candidates:
        return
    scorer, size = load_pair_scorer(config.scoring), config.rendering.batch_size
    pairs = encoded_pairs(config, candidates)
    while block := list(islice(pairs, size)):
        originals, edited = _decoded(block)
        for pair, embeddings in zip(block, scorer.embed(originals, edited), strict=True):
            yield replace(pair, embeddings=embeddings)


def _decoded(pairs: Sequence[EncodedPair]) -> tuple[list[Image.Image], list[Image.Image]]:
    """The original and the edited images."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        originals = list(pool.map(open_picture, [pair.original for pair in pairs]))
        return originals, list(pool.map(open_picture, [pair.edited for pair in pairs]))


def encoded_pairs(config: PipelineConfig, candidates: Sequence[Candidate]) -> Iterator[EncodedPair]:
    """Renders; the codec works on other threads, so that the next batch does not wait for it."""
    rendering = config.rendering

    def encode(pair: RenderedPair) -> EncodedPair:
        original, edited = (
            encode_image(pixels, rendering.image_format, rendering.image_quality)
            for pixels in (pair.original, pair.edited)
        )
        return EncodedPair(original, edited)

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
