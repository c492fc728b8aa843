"""The rendering stage: a shard of triplets becomes the table of all its candidates and the images of those accepted.

Scores depend on the triplets, `rendering` and `scoring`; verdicts and kept images also on `filtering`. So a change of
`filtering` alone judges the table again and renders only what is newly accepted and was not kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ip2p import loading, store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.filtering.clip_scores import PairScorer
from ip2p.filtering.judge import count_verdicts, judge, judge_all, thresholds_for
from ip2p.prompts import read_triplets
from ip2p.records import Candidate, EditTriplet, ScoredCandidate, as_row, from_row
from ip2p.rendering.draws import draw_candidates
from ip2p.rendering.images import decode_image, encode_image
from ip2p.rendering.sampler import fits_text_encoder, is_guided, render_pairs
from ip2p.store import RunFolder, Sidecar

logger = logging.getLogger(__name__)

Key = tuple[str, int]
"""(triplet id, candidate number)."""
EncodedPair = tuple[bytes, bytes]
"""The original's and the edited image's file contents."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("triplet_id", "original_prompt", "edit_prompt", "edited_prompt", "edit_type", "source")
        ),
        ("candidate", pa.int64()),
        ("seed", pa.int64()),
        *((name, pa.float64()) for name in ("guidance_scale", "p2p", "cross_p2p", "shared_steps")),
        *((name, pa.float64()) for name in ("clip_original", "clip_edited", "clip_direction", "clip_image")),
        ("accepted", pa.bool_()),
        ("reason", pa.string()),
    ]
)
PAIR_SCHEMA = SCHEMA.append(pa.field("original_image", IMAGE_TYPE)).append(pa.field("edited_image", IMAGE_TYPE))


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
    previous = _scores_on_disk(shard)
    if previous is not None:
        return _rejudge(config, shard, previous)
    return _render(config, shard, read_triplets(triplets_path))


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
    return {"shards": len(sidecars), **sum_counts(sidecars), "seconds": round(seconds, 3)}


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


def _render(config: PipelineConfig, shard: Shard, triplets: Sequence[EditTriplet]) -> Sidecar:
    started = time.monotonic()
    candidates = [candidate for triplet in triplets for candidate in draw_candidates(config.rendering, triplet)]
    scored: list[ScoredCandidate] = []
    images: dict[Key, EncodedPair] = {}
    too_long = 0
    if candidates:
        fitting = _fitting(config, candidates)
        too_long = len(candidates) - len(fitting)
        by_cost = sorted(fitting, key=lambda candidate: is_guided(candidate.spec))
        for each, pair in _scored_pairs(config, by_cost, name=shard.candidates.stem):
            scored.append(each)
            if config.rendering.keep_rejected_images or each.verdict.accepted:
                images[_key(each)] = pair
        places = {_candidate_key(candidate): place for place, candidate in enumerate(fitting)}
        scored.sort(key=lambda each: places[_key(each)])
    seconds = time.monotonic() - started
    rate = len(scored) / seconds if seconds else 0.0
    logger.info(
        "%s: rendered and scored %d pairs in %.1f s (%.2f a second)", shard.candidates.stem, len(scored), seconds, rate
    )
    judged = judge_all(scored, config.filtering)
    return _write(config, shard, judged, images, seconds=seconds, too_long=too_long)


def _fitting(config: PipelineConfig, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drops, with a log line each, triplets whose captions the text encoder would cut."""
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
    config: PipelineConfig, candidates: Sequence[Candidate], *, name: str
) -> Iterator[tuple[ScoredCandidate, EncodedPair]]:
    """Renders, encodes, decodes and scores; the verdicts know of thresholds, not yet of the limit per triplet."""
    clip = loading.load_clip(config.scoring.clip_model, config.scoring.clip_pretrained, device=config.scoring.device)
    scorer = PairScorer(clip, batch_size=config.scoring.batch_size)
    size = config.rendering.batch_size
    with tqdm(total=len(candidates), desc=f"render {name}", unit="pair", disable=None) as bar:
        for start in range(0, len(candidates), size):
            batch = candidates[start : start + size]
            pairs = list(_encoded_pairs(config, batch))
            originals, edited = ([decode_image(pair[side]) for pair in pairs] for side in (0, 1))
            scores = scorer.score([candidate.triplet for candidate in batch], originals, edited)
            for candidate, each, pair in zip(batch, scores, pairs, strict=True):
                verdict = judge(each, thresholds_for(config.filtering, candidate.triplet.edit_type))
                yield ScoredCandidate(candidate=candidate, scores=each, verdict=verdict), pair
            bar.update(len(batch))


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


def _rejudge(config: PipelineConfig, shard: Shard, previous: Sidecar) -> Sidecar:
    started = time.monotonic()
    scored = [from_row(row) for row in pq.read_table(shard.candidates).to_pylist()]
    judged = judge_all(scored, config.filtering)
    wanted = [each.candidate for each in judged if config.rendering.keep_rejected_images or each.verdict.accepted]
    images = _images_on_disk(shard)
    missing = [candidate for candidate in wanted if _candidate_key(candidate) not in images]
    for candidate, pair in zip(missing, _encoded_pairs(config, missing) if missing else (), strict=True):
        images[_candidate_key(candidate)] = pair
    logger.info("%s: judged %d candidates anew, rendered %d again", shard.candidates.stem, len(judged), len(missing))
    seconds = previous.seconds + time.monotonic() - started
    return _write(config, shard, judged, images, seconds=seconds, too_long=previous.counts.get("too_long", 0))


def _images_on_disk(shard: Shard) -> dict[Key, EncodedPair]:
    sidecar = _intact(shard.pairs)
    if sidecar is None or sidecar.extra.get("scores_from") != shard.scores_from:
        return {}
    columns = ["triplet_id", "candidate", "original_image", "edited_image"]
    rows = pq.read_table(shard.pairs, columns=columns).to_pylist()
    return {
        (row["triplet_id"], row["candidate"]): (row["original_image"]["bytes"], row["edited_image"]["bytes"])
        for row in rows
    }


def _write(
    config: PipelineConfig,
    shard: Shard,
    judged: Sequence[ScoredCandidate],
    images: dict[Key, EncodedPair],
    *,
    seconds: float,
    too_long: int,
) -> Sidecar:
    """Writes the images first: a table of candidates on disk vouches for its pairs."""
    counts = count_verdicts(judged) | ({"too_long": too_long} if too_long else {})
    kept = [each for each in judged if config.rendering.keep_rejected_images or each.verdict.accepted]
    suffix = config.rendering.image_format
    pairs = pa.Table.from_pylist([_pair_row(each, images[_key(each)], suffix) for each in kept], schema=PAIR_SCHEMA)
    table = pa.Table.from_pylist([as_row(each) for each in judged], schema=SCHEMA)
    known: dict[str, Any] = {"fingerprint": shard.fingerprint, "seconds": seconds, "counts": counts}
    known["extra"] = {"scores_from": shard.scores_from}
    store.write_shard(shard.pairs, pairs, **known)
    logger.info("%s: %s", shard.candidates.stem, ", ".join(f"{count} {name}" for name, count in counts.items()))
    return store.write_shard(shard.candidates, table, **known)


def _pair_row(scored: ScoredCandidate, pair: EncodedPair, suffix: str) -> dict[str, Any]:
    name = f"{scored.candidate.spec.triplet_id}-{scored.candidate.spec.candidate}"
    original, edited = (
        {"bytes": content, "path": f"{name}-{side}.{suffix}"}
        for content, side in zip(pair, ("original", "edited"), strict=True)
    )
    return {**as_row(scored), "original_image": original, "edited_image": edited}


def _key(scored: ScoredCandidate) -> Key:
    return _candidate_key(scored.candidate)


def _candidate_key(candidate: Candidate) -> Key:
    return candidate.spec.triplet_id, candidate.spec.candidate
