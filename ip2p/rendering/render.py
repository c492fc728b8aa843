"""Renders and scores the candidates that a shard lacks, batch by batch; scores are those of the stored pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from ip2p.config import PipelineConfig, RenderingConfig
from ip2p.filtering import OVER_LIMIT, has_place, judge_batch, num_places_by_triplet, passes_first_look
from ip2p.images import open_picture
from ip2p.p2p.sampler import is_guided
from ip2p.picture_judge import PictureJudge
from ip2p.prompts import read_triplets
from ip2p.records import Candidate, PairScores, ScoredCandidate
from ip2p.rendering.backends import Failure, Pictures, backend_of
from ip2p.rendering.candidates import CandidateQueue, Key, draw_candidates, key_of, settings_for
from ip2p.rendering.judging import ScoredPair, ask_about_pairs
from ip2p.rendering.table import EncodedPair
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
    """Renders, encodes, decodes, scores and judges what the queue hands out.

    With a first look, candidates that pass it wait until they fill a batch. A batch is guided as a whole or not at all.
    """
    size, promising = config.rendering.batch_size, list[Candidate]()
    batch = queue.take(size)
    if not batch:
        return
    scorer = load_scorer(config.scoring)
    with tqdm(desc=f"render {name}", unit="pair", disable=None) as bar:
        while batch or promising:
            bar.total = queue.num_queued
            passed, results = _look(config, scorer, batch, pictures)
            promising += passed
            first_is_guided = bool(promising) and is_guided(promising[0].spec)
            ready = [candidate for candidate in promising if is_guided(candidate.spec) == first_is_guided][:size]
            if len(ready) == size or not batch or config.rendering.first_look_steps is None:
                promising = [candidate for candidate in promising if candidate not in ready]
                new = _score(config, scorer, ready, list(make_pairs(config, ready, pictures)))
                results += ask_about_pairs(config, judge, new)
            yield from results
            queue.settle(result for result, _ in results)
            bar.update(len(results))
            batch = queue.take(size)


def _look(
    config: PipelineConfig, scorer: Scorer, batch: Sequence[Candidate], pictures: Pictures
) -> tuple[list[Candidate], list[ScoredPair]]:
    """Takes a first look of few steps, if set; returns the candidates that pass it and the results of the others."""
    steps = config.rendering.first_look_steps
    if steps is None or not batch:
        return list(batch), []
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
    outcomes: Sequence[EncodedPair | Failure],
    *,
    first_look: bool = False,
) -> list[ScoredPair]:
    """Scores and judges the pairs of a batch; a failure is judged as such."""
    pairs = {place: each for place, each in enumerate(outcomes) if isinstance(each, EncodedPair)}
    triplets = [batch[place].triplet for place in pairs]
    measured, embeddings = scorer.score(triplets, *_decoded(list(pairs.values()))) if pairs else ([], [])
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
    size = config.rendering.batch_size
    scorer, pairs = load_scorer(config.scoring), make_pairs(config, candidates, pictures)
    blocks = (candidates[start : start + size] for start in range(0, len(candidates), size))
    scored = (_score(config, scorer, block, list(islice(pairs, len(block)))) for block in blocks)
    return [pair for block in scored for pair in ask_about_pairs(config, judge, block)]


def _decoded(pairs: Sequence[EncodedPair]) -> tuple[list[Image.Image], list[Image.Image]]:
    """Returns the original and the edited images."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        originals = list(pool.map(open_picture, [pair.original for pair in pairs]))
        return originals, list(pool.map(open_picture, [pair.edited for pair in pairs]))


def make_pairs(
    config: PipelineConfig, candidates: Sequence[Candidate], pictures: Pictures
) -> Iterator[EncodedPair | Failure]:
    """Yields what the backend makes of each candidate, in order; a candidate that lacks its picture fails."""
    backend = backend_of(config.rendering).keeping(config.out / "pairs" / ANSWERS)
    lacks = [backend.needs_pictures and candidate.triplet.picture not in pictures for candidate in candidates]
    usable = [candidate for candidate, is_lacking in zip(candidates, lacks, strict=True) if not is_lacking]
    made = backend.make_pairs(config.rendering, usable, pictures) if usable else iter(())
    return (Failure("no picture") if is_lacking else next(made) for is_lacking in lacks)
