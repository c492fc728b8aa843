"""The rendering stage: a shard of triplets becomes the table of all its candidates and the images of those accepted.

Scores depend on the triplets, `rendering` and `scoring`; verdicts and kept images also on `filtering`. So a change of
`filtering` alone judges the table again and renders only what is newly accepted and was not kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ip2p import loading, store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.filtering.clip_scores import PairScorer
from ip2p.filtering.judge import count_verdicts, judge_all, judge_candidate
from ip2p.prompts import read_triplets
from ip2p.records import Candidate, EditTriplet, ScoredCandidate
from ip2p.rendering.acceptance import measure_acceptance
from ip2p.rendering.conditions import fits_text_encoder
from ip2p.rendering.draws import draw_candidates
from ip2p.rendering.images import decode_image, encode_image
from ip2p.rendering.needed import CandidateQueue, Key, key_of
from ip2p.rendering.sampler import render_pairs
from ip2p.rendering.table import EncodedPair, candidates_table, pairs_table, read_candidates, read_images
from ip2p.store import RunFolder, Sidecar

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shard:
    """Where a shard lies and what it must have been made from."""

    candidates: Path
    pairs: Path
    scores_from: str
    """Fingerprint of all that decides the scores."""
    fingerprint: str
    """Fingerprint of all that decides the shard."""


def write_shard(config: PipelineConfig, number: int) -> Sidecar:
    """Writes `pairs` and, last, `candidates` of a shard; returns at once where both are done."""
    triplets_path = RunFolder(config.out).shard("triplets", number)
    shard = _shard(config, number, triplets_path)
    done = store.finished(shard.candidates, shard.fingerprint)
    if done is not None and store.finished(shard.pairs, shard.fingerprint) is not None:
        return done
    return _work(config, shard, read_triplets(triplets_path), _scores_on_disk(shard))


def refilter(config: PipelineConfig) -> dict[str, int]:
    """Judges every shard anew from its table; returns the counts. Raises ValueError where there is nothing to judge."""
    folder = RunFolder(config.out)
    paths = folder.shards("candidates")
    if not paths:
        raise ValueError(f"{config.out} has no candidates to filter. Run `ip2p dataset` into that folder first.")
    numbers = [int(path.stem.removeprefix("part-")) for path in paths]
    for number in numbers:
        shard = _shard(config, number, folder.shard("triplets", number))
        if _scores_on_disk(shard) is None:
            raise ValueError(f"{shard.candidates} was made with other settings. Run `ip2p dataset` to render it again.")
    return sum_counts([write_shard(config, number) for number in numbers])


def sum_counts(sidecars: Sequence[Sidecar]) -> dict[str, int]:
    """Counts of several shards together."""
    total: dict[str, int] = {}
    for sidecar in sidecars:
        for name, count in sidecar.counts.items():
            total[name] = total.get(name, 0) + count
    return total


def summarise(config: PipelineConfig) -> dict[str, Any]:
    """Counts and seconds of the finished shards, for the run's summary."""
    paths = RunFolder(config.out).shards("candidates")
    sidecars = [sidecar for path in paths if (sidecar := store.read_sidecar(path)) is not None]
    seconds = sum(sidecar.seconds for sidecar in sidecars)
    counts = sum_counts(sidecars)
    per_pair = round(counts["candidates"] / counts["accepted"], 2) if counts.get("accepted") else None
    return {
        "shards": len(sidecars),
        **counts,
        "candidates_per_accepted": per_pair,
        "acceptance": measure_acceptance(paths, config.rendering),
        "seconds": round(seconds, 3),
    }


def _shard(config: PipelineConfig, number: int, triplets_path: Path) -> Shard:
    triplets = store.read_sidecar(triplets_path)
    if triplets is None or not triplets_path.exists():
        raise RuntimeError(f"{triplets_path} is not finished. Run the prompt stage first.")
    rendering = config.rendering
    scores_from = fingerprint(triplets.sha256, replace(rendering, keep_rejected_images=False), config.scoring)
    folder = RunFolder(config.out)
    return Shard(
        candidates=folder.shard("candidates", number),
        pairs=folder.shard("pairs", number),
        scores_from=scores_from,
        fingerprint=fingerprint(scores_from, config.filtering, rendering.keep_rejected_images),
    )


def _scores_on_disk(shard: Shard) -> Sidecar | None:
    sidecar = _intact(shard.candidates)
    return sidecar if sidecar is not None and sidecar.extra.get("scores_from") == shard.scores_from else None


def _intact(path: Path) -> Sidecar | None:
    """The sidecar of a shard that is whole, whatever config made it."""
    sidecar = store.read_sidecar(path)
    return None if sidecar is None else store.finished(path, sidecar.fingerprint)


def _work(config: PipelineConfig, shard: Shard, triplets: Sequence[EditTriplet], previous: Sidecar | None) -> Sidecar:
    """Renders and scores what is needed and not on disk, judges all there is, renders kept pairs that lack images."""
    started = time.monotonic()
    keep_all, name = config.rendering.keep_rejected_images, shard.candidates.stem
    candidates = [candidate for triplet in triplets for candidate in draw_candidates(config.rendering, triplet)]
    known = read_candidates(shard.candidates) if previous else {}
    images = _images_on_disk(shard) if previous else {}
    fitting = _known_to_fit(candidates, known) if previous else _fitting(config, candidates)
    queue = CandidateQueue(fitting, config.filtering, {key: each.scores for key, each in known.items()})
    num_known = len(known)
    for each, pair in _scored_pairs(config, queue, name=name):
        known[key_of(each.candidate)] = each
        if keep_all or each.verdict.accepted:
            images[key_of(each.candidate)] = pair
    judged = judge_all([known[key] for candidate in fitting if (key := key_of(candidate)) in known], config.filtering)
    wanted = [each.candidate for each in judged if keep_all or each.verdict.accepted]
    missing = [candidate for candidate in wanted if key_of(candidate) not in images]
    for candidate, pair in zip(missing, _encoded_pairs(config, missing) if missing else (), strict=True):
        images[key_of(candidate)] = pair
    seconds, num_new = time.monotonic() - started, len(known) - num_known
    rate = num_new / seconds if seconds else 0.0
    logger.info("%s: rendered and scored %d pairs in %.1f s (%.2f a second)", name, num_new, seconds, rate)
    if previous is not None:
        logger.info("%s: judged %d candidates anew, rendered %d again", name, num_known, len(missing))
        seconds += previous.seconds
    return _write(config, shard, judged, images, seconds=seconds, too_long=len(candidates) - len(fitting))


def _known_to_fit(candidates: Sequence[Candidate], known: Mapping[Key, ScoredCandidate]) -> list[Candidate]:
    """Drops triplets without any row: what fitted the text encoder has one."""
    rendered = {triplet_id for triplet_id, _ in known}
    return [candidate for candidate in candidates if candidate.triplet.id in rendered]


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
    clip = loading.load_clip(config.scoring.clip_model, config.scoring.clip_pretrained, device=config.scoring.device)
    scorer = PairScorer(clip, batch_size=config.scoring.batch_size)
    with tqdm(desc=f"render {name}", unit="pair", disable=None) as bar:
        while batch:
            bar.total = queue.num_asked
            pairs = list(_encoded_pairs(config, batch))
            scored = _score(config, scorer, batch, pairs)
            yield from zip(scored, pairs, strict=True)
            queue.settle(scored)
            bar.update(len(batch))
            batch = queue.take(config.rendering.batch_size)


def _score(
    config: PipelineConfig, scorer: PairScorer, batch: Sequence[Candidate], pairs: Sequence[EncodedPair]
) -> list[ScoredCandidate]:
    originals, edited = ([decode_image(pair[side]) for pair in pairs] for side in (0, 1))
    scores = scorer.score([candidate.triplet for candidate in batch], originals, edited)
    return [
        ScoredCandidate(candidate=candidate, scores=each, verdict=judge_candidate(candidate, each, config.filtering))
        for candidate, each in zip(batch, scores, strict=True)
    ]


def _encoded_pairs(config: PipelineConfig, candidates: Sequence[Candidate]) -> Iterator[EncodedPair]:
    rendering = config.rendering
    for pair in render_pairs(_load_pipeline(config), candidates, rendering):
        original, edited = (
            encode_image(pixels, rendering.image_format, rendering.image_quality)
            for pixels in (pair.original, pair.edited)
        )
        yield original, edited


def _load_pipeline(config: PipelineConfig) -> Any:
    rendering = config.rendering
    return loading.load_text_to_image(
        rendering.model,
        revision=rendering.revision,
        variant=rendering.variant,
        dtype=rendering.dtype,
        device=rendering.device,
    )


def _images_on_disk(shard: Shard) -> dict[Key, EncodedPair]:
    sidecar = _intact(shard.pairs)
    if sidecar is None or sidecar.extra.get("scores_from") != shard.scores_from:
        return {}
    return read_images(shard.pairs)


def _write(
    config: PipelineConfig,
    shard: Shard,
    judged: Sequence[ScoredCandidate],
    images: Mapping[Key, EncodedPair],
    *,
    seconds: float,
    too_long: int,
) -> Sidecar:
    """Writes the images first: a table of candidates on disk vouches for its pairs."""
    counts = count_verdicts(judged) | ({"too_long": too_long} if too_long else {})
    kept = [each for each in judged if config.rendering.keep_rejected_images or each.verdict.accepted]
    known: dict[str, Any] = {"fingerprint": shard.fingerprint, "seconds": seconds, "counts": counts}
    known["extra"] = {"scores_from": shard.scores_from}
    store.write_shard(shard.pairs, pairs_table(kept, images, config.rendering.image_format), **known)
    logger.info("%s: %s", shard.candidates.stem, ", ".join(f"{count} {name}" for name, count in counts.items()))
    return store.write_shard(shard.candidates, candidates_table(judged), **known)
