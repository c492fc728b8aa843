"""Renders and scores the candidates that a shard lacks, batch by batch; scores are those of the stored pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from ip2p.comparing import composite
from ip2p.config import PipelineConfig, RenderingConfig
from ip2p.filtering import OVER_LIMIT, has_place, judge_batch, num_places_by_triplet, passes_first_look
from ip2p.images import Array, encode_image, open_picture, open_pixels
from ip2p.p2p.sampler import is_guided
from ip2p.picture_judge import PictureJudge
from ip2p.prompts import read_triplets
from ip2p.records import Candidate, PairScores, ScoredCandidate
from ip2p.rendering.backends import Failure, Pictures, backend_of
from ip2p.rendering.candidates import CandidateQueue, Key, draw_candidates, even_size, key_of, settings_for
from ip2p.rendering.judging import ScoredPair, ask_about_pairs
from ip2p.rendering.table import DrawnPair, EncodedPair
from ip2p.scoring.scorer import Scorer, load_scorer

ANSWERS = "answers"
"""The folder beside the pairs for what a backend must not ask for twice."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Candidates rendered anew for a shard."""

    triplet_ids: Sequence[str] = ()
    """All triplets of the shard, in order; empty if nothing was needed."""
    scored: Sequence[ScoredCandidate] = ()
    images: Mapping[Key, EncodedPair] = field(default_factory=dict)
    """Images to keep; the limit per triplet may still drop some."""
    too_long: int = 0
    """Candidates left out because a caption does not fit the text encoder."""


def render_needed(
    config: PipelineConfig,
    judged: pa.Table | None,
    triplets_path: Path,
    pictures: Callable[[], Pictures],
    *,
    name: str,
    again: Set[str] = frozenset(),
    judge: PictureJudge | None = None,
) -> Rendered:
    """Renders the candidates that a shard's triplets need beyond those in `judged`; all of them if that is None.

    `again` names triplets with candidates that are missing from `judged` since they must be rendered again; `pictures`
    reads the shard's pictures once they are needed.
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
    fitting = _fitting(config.rendering, candidates) if judged is None else candidates
    queue = CandidateQueue(fitting, config.filtering, {} if judged is None else _settled(judged))
    scored, images = [], {}
    for result, pair in _scored_pairs(config, queue, pictures(), judge, name=name):
        scored.append(result)
        if pair is None or result.scores.first_look:
            continue
        if has_place(result.verdict.reason) or config.rendering.keep_rejected_images:
            images[key_of(result.candidate)] = pair
    return Rendered([triplet.id for triplet in triplets], scored, images, len(candidates) - len(fitting))


def _settled(judged: pa.Table) -> dict[Key, bool]:
    """Maps each candidate of a judged table to whether its scores pass."""
    columns = (judged[name].to_pylist() for name in ("triplet_id", "candidate", "reason"))
    rows = zip(*columns, strict=True)
    return {(triplet_id, number): has_place(reason) or reason == OVER_LIMIT for triplet_id, number, reason in rows}


def _unfinished(config: PipelineConfig, judged: pa.Table) -> set[str]:
    """Returns triplets with candidates left and, if the first are taken, too few accepted pairs."""
    enough = config.filtering.max_pairs_per_triplet if config.filtering.selection == "first" else None
    edit_types = dict(zip(judged["triplet_id"].to_pylist(), judged["edit_type"].to_pylist(), strict=True))
    budgets = {kind: settings_for(config.rendering, kind).num_candidates for kind in set(edit_types.values())}
    return {
        triplet_id
        for triplet_id, (num, num_accepted) in num_places_by_triplet(judged).items()
        if num < budgets[edit_types[triplet_id]] and (enough is None or num_accepted < enough)
    }


def _fitting(config: RenderingConfig, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drops triplets whose texts the backend would not read whole, with a warning each."""
    too_long = backend_of(config).too_long(config, candidates) if candidates else ()
    return [candidate for candidate in candidates if candidate.triplet.id not in too_long]


def _scored_pairs(
    config: PipelineConfig, queue: CandidateQueue, pictures: Pictures, judge: PictureJudge | None, *, name: str
) -> Iterator[ScoredPair]:
    """Renders, stores, scores and judges what the queue hands out."""
    first = queue.take(config.rendering.batch_size)
    if not first:
        return
    batches = _overlapped if config.rendering.first_look_steps is None else _looked_at
    with tqdm(desc=f"render {name}", unit="pair", disable=None) as bar:
        for results in batches(config, load_scorer(config.scoring), queue, first, pictures, judge):
            yield from results
            queue.settle(result for result, _ in results)
            bar.total = queue.num_queued
            bar.update(len(results))


def _overlapped(
    config: PipelineConfig,
    scorer: Scorer,
    queue: CandidateQueue,
    batch: Sequence[Candidate],
    pictures: Pictures,
    judge: PictureJudge | None,
) -> Iterator[list[ScoredPair]]:
    """Yields the results of `batch` and of those after it; the caller settles them.

    One batch is stored, scored and judged on another thread while the next is made, if verdicts cannot change that one.
    """
    scoring: Future[list[ScoredPair]] | None = None
    num_scored = 0
    with ThreadPoolExecutor(1, "scoring") as thread:
        while batch or scoring is not None:
            results = list(make_pairs(config, batch, pictures))
            if scoring is not None:
                yield scoring.result()
            scoring, num_scored = None, len(batch)
            if batch:
                scoring = thread.submit(copy_context().run, _finish, config, scorer, batch, results, judge)
            batch = queue.take(config.rendering.batch_size, num_unsettled=num_scored)


def _looked_at(
    config: PipelineConfig,
    scorer: Scorer,
    queue: CandidateQueue,
    batch: Sequence[Candidate],
    pictures: Pictures,
    judge: PictureJudge | None,
) -> Iterator[list[ScoredPair]]:
    """Yields the same with a first look: candidates that pass it wait until they fill a batch.

    A batch is guided as a whole or not at all.
    """
    size, promising = config.rendering.batch_size, list[Candidate]()
    while batch or promising:
        passed, results = _look(config, scorer, batch, pictures)
        promising += passed
        first_is_guided = bool(promising) and is_guided(promising[0].spec)
        ready = [candidate for candidate in promising if is_guided(candidate.spec) == first_is_guided][:size]
        if len(ready) == size or not batch:
            promising = [candidate for candidate in promising if candidate not in ready]
            results += _finish(config, scorer, ready, list(make_pairs(config, ready, pictures)), judge)
        yield results
        batch = queue.take(size)


def _finish(
    config: PipelineConfig,
    scorer: Scorer,
    batch: Sequence[Candidate],
    outcomes: Sequence[DrawnPair | EncodedPair | Failure],
    judge: PictureJudge | None,
) -> list[ScoredPair]:
    """Stores, scores and judges the pairs of a batch, and asks the judge of the filter about them."""
    return ask_about_pairs(config, judge, _score(config, scorer, batch, outcomes))


def _look(
    config: PipelineConfig, scorer: Scorer, batch: Sequence[Candidate], pictures: Pictures
) -> tuple[list[Candidate], list[ScoredPair]]:
    """Takes a first look of few steps; returns the candidates that pass it and the results of the others."""
    steps = config.rendering.first_look_steps
    if steps is None or not batch:
        return [], []
    few_steps = replace(config.rendering, first_look_steps=None, num_inference_steps=steps)
    quick = replace(config, rendering=few_steps)
    results = _score(config, scorer, batch, list(make_pairs(quick, batch, pictures)), first_look=True)
    passes = passes_first_look(batch, [result.scores for result, _ in results], config.filtering)
    passes = [good and not result.scores.failure for good, (result, _) in zip(passes, results, strict=True)]
    passed = [candidate for candidate, good in zip(batch, passes, strict=True) if good]
    return passed, [result for result, good in zip(results, passes, strict=True) if not good]


def _score(
    config: PipelineConfig,
    scorer: Scorer,
    batch: Sequence[Candidate],
    outcomes: Sequence[DrawnPair | EncodedPair | Failure],
    *,
    first_look: bool = False,
) -> list[ScoredPair]:
    """Encodes, scores and judges the pairs of a batch; a failure is judged as such."""
    pairs, images = _stored(
        config.rendering, {place: each for place, each in enumerate(outcomes) if not isinstance(each, Failure)}
    )
    triplets = [batch[place].triplet for place in pairs]
    measured, embeddings = scorer.score(triplets, *images) if pairs else ([], [])
    scored = {place: replace(values, first_look=first_look) for place, values in zip(pairs, measured, strict=True)}
    kept = {
        place: replace(pair, embeddings=both) for (place, pair), both in zip(pairs.items(), embeddings, strict=True)
    }
    scores = [
        PairScores.of_failure(each.reason) if isinstance(each, Failure) else scored[place]
        for place, each in enumerate(outcomes)
    ]
    verdicts = judge_batch(batch, scores, config.filtering)
    return [
        (ScoredCandidate(candidate=candidate, scores=values, verdict=verdict), kept.get(place))
        for place, (candidate, values, verdict) in enumerate(zip(batch, scores, verdicts, strict=True))
    ]


def render_again(
    config: PipelineConfig, candidates: Sequence[Candidate], pictures: Pictures, judge: PictureJudge | None = None
) -> list[ScoredPair]:
    """Renders and scores candidates whose images were not kept."""
    scorer, scored, left = load_scorer(config.scoring), list[ScoredPair](), list(candidates)
    while left:
        block = left[: even_size(len(left), config.rendering.batch_size)]
        scored += _finish(config, scorer, block, list(make_pairs(config, block, pictures)), judge)
        left = left[len(block) :]
    return scored


def _stored(
    config: RenderingConfig, drawn: Mapping[int, DrawnPair | EncodedPair]
) -> tuple[dict[int, EncodedPair], tuple[list[Image.Image], list[Image.Image]]]:
    """Encodes what is pixels; returns the files by place, and the original and the edited images that they hold."""

    def encoded(image: Array | bytes) -> bytes:
        return image if isinstance(image, bytes) else encode_image(image, config.image_format, config.image_quality)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        originals = list(pool.map(encoded, [pair.original for pair in drawn.values()]))
        edited = list(pool.map(encoded, [pair.edited for pair in drawn.values()]))
        files = dict(zip(drawn, map(EncodedPair, originals, edited), strict=True))
        return files, (list(pool.map(open_picture, originals)), list(pool.map(open_picture, edited)))


def make_pairs(
    config: PipelineConfig, candidates: Sequence[Candidate], pictures: Pictures
) -> Iterator[DrawnPair | EncodedPair | Failure]:
    """Yields what the backend makes of each candidate, in order; a candidate that lacks its picture fails.

    With `rendering.composite`, what did not change is the original's.
    """
    backend = backend_of(config.rendering).keeping(config.out / "pairs" / ANSWERS)
    lacks = [backend.needs_pictures and candidate.triplet.picture not in pictures for candidate in candidates]
    usable = [candidate for candidate, is_lacking in zip(candidates, lacks, strict=True) if not is_lacking]
    results = backend.make_pairs(config.rendering, usable, pictures) if usable else iter(())
    outcomes = (Failure("no picture") if is_lacking else next(results) for is_lacking in lacks)
    return map(_composited, outcomes) if config.rendering.composite else outcomes


def _composited(made: DrawnPair | EncodedPair | Failure) -> DrawnPair | EncodedPair | Failure:
    """Leaves a pair of two sizes as it is: nothing of it lies in one place."""
    if isinstance(made, Failure):
        return made
    original, edited = (
        open_pixels(image) if isinstance(image, bytes) else image for image in (made.original, made.edited)
    )
    return DrawnPair(made.original, composite(original, edited)) if original.shape == edited.shape else made
