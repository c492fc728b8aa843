"""Renders and scores what a shard of candidates lacks, batch by batch, each pair as it will be stored."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from ip2p.config import PipelineConfig
from ip2p.filtering import OVER_LIMIT, judge_batch, num_accepted_by_triplet, passes_first_look
from ip2p.images import encode_image, open_picture
from ip2p.models import loading
from ip2p.p2p.sampler import RenderedPair, fits_text_encoder, is_guided, render_pairs
from ip2p.prompts import read_triplets
from ip2p.records import Candidate, ScoredCandidate
from ip2p.rendering.candidates import CandidateQueue, Key, draw_candidates, key_of, settings_for
from ip2p.rendering.table import EncodedPair
from ip2p.scoring import load_pair_scorer, load_scorer
from ip2p.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

ScoredPair = tuple[ScoredCandidate, EncodedPair]


@dataclass(frozen=True, slots=True)
class Rendered:
    """What was rendered anew for a shard."""

    triplet_ids: Sequence[str] = ()
    """All triplets of the shard, in order; empty if nothing was needed."""
    scored: Sequence[ScoredCandidate] = ()
    images: Mapping[Key, EncodedPair] = field(default_factory=dict)
    """Images to keep; the limit per triplet may still drop some."""
    too_long: int = 0
    """Candidates left out, because a caption does not fit the text encoder."""


def render_needed(
    config: PipelineConfig, judged: pa.Table | None, triplets_path: Path, *, name: str, again: Set[str] = frozenset()
) -> Rendered:
    """Renders what the triplets of a shard need beyond the candidates that are judged; all of it if that is None.

    `again` names triplets whose candidates are missing from `judged` since they must be rendered again.
    """
    unfinished = None if judged is None else _unfinished(config, judged) | again
    if unfinished is not None and not unfinished:
        return Rendered()
    triplets = read_triplets(triplets_path)
    candidates = [
        candidate
        for triplet in triplets
        if unfinished is None or triplet.id in unfinished
        for candidate in draw_candidates(config.rendering, triplet)
    ]
    fitting = _fitting(config, candidates) if judged is None else candidates
    queue = CandidateQueue(fitting, config.filtering, {} if judged is None else _settled(judged))
    scored, images = [], {}
    for result, pair in _scored_pairs(config, queue, name=name):
        scored.append(result)
        if result.verdict.accepted or (config.rendering.keep_rejected_images and not result.scores.first_look):
            images[key_of(result.candidate)] = pair
    return Rendered([triplet.id for triplet in triplets], scored, images, len(candidates) - len(fitting))


def _settled(judged: pa.Table) -> dict[Key, bool]:
    """Says of each candidate of a judged table whether its scores pass."""
    triplet_ids, numbers, reasons = (judged[name].to_pylist() for name in ("triplet_id", "candidate", "reason"))
    keys = zip(triplet_ids, numbers, strict=True)
    return {key: reason in ("", OVER_LIMIT) for key, reason in zip(keys, reasons, strict=True)}


def _unfinished(config: PipelineConfig, judged: pa.Table) -> set[str]:
    """Returns triplets with candidates left and, if the first are taken, too few accepted pairs."""
    enough = config.filtering.max_pairs_per_triplet if config.filtering.selection == "first" else None
    edit_types = dict(zip(judged["triplet_id"].to_pylist(), judged["edit_type"].to_pylist(), strict=True))
    budgets = {kind: settings_for(config.rendering, kind).num_candidates for kind in set(edit_types.values())}
    return {
        triplet_id
        for triplet_id, (num, num_accepted) in num_accepted_by_triplet(judged).items()
        if num < budgets[edit_types[triplet_id]] and (enough is None or num_accepted < enough)
    }


def _fitting(config: PipelineConfig, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drops triplets whose captions the text encoder would cut, with a log line each."""
    if not candidates:
        return []
    pipeline = _load_pipeline(config)
    firsts = [candidate for candidate in candidates if candidate.spec.candidate == 0]
    fits = {candidate.triplet.id: fits_text_encoder(pipeline, candidate) for candidate in firsts}
    limit = pipeline.tokenizer.model_max_length
    for candidate in firsts:
        if not fits[candidate.triplet.id]:
            logger.warning(
                "triplet %s is not rendered: a caption is longer than %d tokens", candidate.triplet.id, limit
            )
    return [candidate for candidate in candidates if fits[candidate.triplet.id]]


def _scored_pairs(config: PipelineConfig, queue: CandidateQueue, *, name: str) -> Iterator[ScoredPair]:
    """Renders, encodes, decodes and scores what the queue asks for, with the verdicts of the thresholds.

    With a first look, candidates that pass it wait until they fill a batch.
    """
    size, promising = config.rendering.batch_size, list[Candidate]()
    batch = queue.take(size)
    if not batch:
        return
    scorer = load_scorer(config.scoring)
    with tqdm(desc=f"render {name}", unit="pair", disable=None) as bar:
        while batch or promising:
            bar.total = queue.num_asked
            passed, results = _look(config, scorer, batch)
            promising += passed
            ready = _like_the_first(promising)[:size]
            if len(ready) == size or not batch or config.rendering.first_look_steps is None:
                promising = [candidate for candidate in promising if candidate not in ready]
                results += _score(config, scorer, ready, list(encoded_pairs(config, ready)))
            yield from results
            queue.settle(result for result, _ in results)
            bar.update(len(results))
            batch = queue.take(size)


def _look(
    config: PipelineConfig, scorer: Scorer, batch: Sequence[Candidate]
) -> tuple[list[Candidate], list[ScoredPair]]:
    """Takes a first look of few steps, if asked for; returns candidates that pass it and the results of the others."""
    steps = config.rendering.first_look_steps
    if steps is None or not batch:
        return list(batch), []
    quick = replace(config, rendering=replace(config.rendering, first_look_steps=None, num_inference_steps=steps))
    results = _score(config, scorer, batch, list(encoded_pairs(quick, batch)), first_look=True)
    passes = passes_first_look(batch, [result.scores for result, _ in results], config.filtering)
    passed = [candidate for candidate, good in zip(batch, passes, strict=True) if good]
    return passed, [result for result, good in zip(results, passes, strict=True) if not good]


def _like_the_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns those guided as the first is: a batch computes the unconditional half for all or for none."""
    return [candidate for candidate in candidates if is_guided(candidate.spec) == is_guided(candidates[0].spec)]


def _score(
    config: PipelineConfig,
    scorer: Scorer,
    batch: Sequence[Candidate],
    pairs: Sequence[EncodedPair],
    *,
    first_look: bool = False,
) -> list[ScoredPair]:
    scores, embeddings = scorer.score([candidate.triplet for candidate in batch], *_decoded(pairs))
    scores = [replace(each, first_look=first_look) for each in scores]
    verdicts = judge_batch(batch, scores, config.filtering)
    return [
        (ScoredCandidate(candidate=candidate, scores=values, verdict=verdict), replace(pair, embeddings=both))
        for candidate, values, verdict, pair, both in zip(batch, scores, verdicts, pairs, embeddings, strict=True)
    ]


def render_again(config: PipelineConfig, candidates: Sequence[Candidate]) -> Iterator[EncodedPair]:
    """Renders pairs that were scored before but whose images were not kept, with CLIP's embeddings."""
    if not candidates:
        return
    scorer, size = load_pair_scorer(config.scoring), config.rendering.batch_size
    pairs = encoded_pairs(config, candidates)
    while block := list(islice(pairs, size)):
        for pair, embeddings in zip(block, scorer.embed(*_decoded(block)), strict=True):
            yield replace(pair, embeddings=embeddings)


def _decoded(pairs: Sequence[EncodedPair]) -> tuple[list[Image.Image], list[Image.Image]]:
    """Returns the original and the edited images."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        originals = list(pool.map(open_picture, [pair.original for pair in pairs]))
        return originals, list(pool.map(open_picture, [pair.edited for pair in pairs]))


def encoded_pairs(config: PipelineConfig, candidates: Sequence[Candidate]) -> Iterator[EncodedPair]:
    """Renders pairs; the codec works on other threads, so that the next batch does not wait for it."""
    rendering = config.rendering

    def encode(pair: RenderedPair) -> EncodedPair:
        original, edited = (
            encode_image(pixels, rendering.image_format, rendering.image_quality)
            for pixels in (pair.original, pair.edited)
        )
        return EncodedPair(original, edited)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        encoded = [pool.submit(encode, pair) for pair in render_pairs(_load_pipeline(config), candidates, rendering)]
        yield from (future.result() for future in encoded)


def _load_pipeline(config: PipelineConfig) -> Any:
    rendering = config.rendering
    return loading.load_text_to_image(
        rendering.model,
        revision=rendering.revision,
        variant=rendering.variant,
        dtype=rendering.dtype,
        device=rendering.device,
    )
