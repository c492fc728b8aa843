"""The rendering stage: a shard of triplets becomes the table of all its candidates and the images of those accepted.

Scores depend on the triplets, `rendering` and `scoring`; verdicts and kept images also on `filtering`. So a change of
`filtering` alone judges the table again and renders only what is newly accepted and was not kept.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.filtering import check_thresholds, count_verdicts, judge_table, may_pass_now, measure_acceptance
from ip2p.records import ScoredCandidate
from ip2p.rendering.candidates import Key, key_of
from ip2p.rendering.render import Rendered, render_again, render_needed
from ip2p.rendering.table import (
    IMAGES_SCHEMA,
    PAIR_SCHEMA,
    SCHEMA,
    EncodedPair,
    candidates_table,
    images_table,
    in_order_of,
    lacks_images,
    read_rows,
    with_images,
)
from ip2p.store import RunFolder, Sidecar

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shard:
    """Where a shard lies, and the fingerprints of what it must have been made from."""

    candidates: Path
    pairs: Path
    scores_from: str
    """Fingerprint of everything that decides the scores."""
    fingerprint: str
    """Fingerprint of everything that decides the shard."""


def write_shard(config: PipelineConfig, number: int) -> Sidecar:
    """Writes `pairs` and, last, `candidates` of a shard; returns at once if both are done."""
    check_thresholds(config.filtering)
    triplets_path = RunFolder(config.out).shard("triplets", number)
    shard = _shard(config, number, triplets_path)
    done = store.finished(shard.candidates, shard.fingerprint)
    if done is not None and store.finished(shard.pairs, shard.fingerprint) is not None:
        return done
    return _work(config, shard, triplets_path, _scores_on_disk(shard))


def keep_shard(
    config: PipelineConfig,
    number: int,
    scored: Sequence[ScoredCandidate],
    images: Mapping[Key, EncodedPair],
    *,
    is_scored: bool,
) -> Sidecar:
    """Writes pairs that come from elsewhere as if they were rendered here; if they have no scores, accepts all."""
    started = time.monotonic()
    shard = _shard(config, number, RunFolder(config.out).shard("triplets", number))
    table = candidates_table(scored)
    table = judge_table(table, config.filtering) if is_scored else table
    pairs = with_images(table, images_table(images))
    return _write(shard, table, pairs, seconds=time.monotonic() - started, too_long=0)


def refilter(config: PipelineConfig) -> dict[str, int]:
    """Judges every shard anew from its table; returns the counts. ValueError if there is nothing to judge."""
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
    """Adds up the counts of several shards."""
    total: Counter[str] = Counter()
    for sidecar in sidecars:
        total.update(sidecar.counts)
    return dict(total)


@store.summarised("rendering")
def summarise(config: PipelineConfig) -> dict[str, Any]:
    """Returns counts and seconds of the finished shards, for the run's summary."""
    paths = RunFolder(config.out).shards("candidates")
    counts = store.summarise_shards(config.out, "candidates")
    per_pair = round(counts["candidates"] / counts["accepted"], 2) if counts.get("accepted") else None
    return {
        **counts,
        "candidates_per_accepted": per_pair,
        "acceptance": measure_acceptance(paths, config.rendering),
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
    """Returns the sidecar of a shard that is whole, whatever config made it."""
    sidecar = store.read_sidecar(path)
    return None if sidecar is None else store.finished(path, sidecar.fingerprint)


def _work(config: PipelineConfig, shard: Shard, triplets_path: Path, previous: Sidecar | None) -> Sidecar:
    """Renders and scores what is needed and not on disk, judges all of it, and renders kept pairs that lack images."""
    started, name = time.monotonic(), shard.candidates.stem
    held, again = _read_held(config, shard) if previous else (None, frozenset[str]())
    new = render_needed(config, held, triplets_path, name=name, again=again)
    table = _merge(config, held, new)
    kept = table.filter(_is_kept(config, table))
    images = pa.concat_tables([_images_on_disk(shard, previous), images_table(new.images)])
    missing = [row.candidate for row in read_rows(lacks_images(kept, images))]
    rendered_again = zip(map(key_of, missing), render_again(config, missing), strict=True)
    images = pa.concat_tables([images, images_table(dict(rendered_again))])
    seconds = time.monotonic() - started
    if previous is None or new.scored:
        rate = len(new.scored) / seconds if seconds else 0.0
        logger.info("%s: rendered and scored %d pairs in %.1f s (%.2f a second)", name, len(new.scored), seconds, rate)
    if previous is None or held is None:
        return _write(shard, table, with_images(kept, images), seconds=seconds, too_long=new.too_long)
    logger.info("%s: judged %d candidates anew, rendered %d again", name, len(held), len(missing))
    seconds, too_long = previous.seconds + seconds, previous.counts.get("too_long", 0)
    return _write(shard, table, with_images(kept, images), seconds=seconds, too_long=too_long)


def _read_held(config: PipelineConfig, shard: Shard) -> tuple[pa.Table, frozenset[str]]:
    """Returns the candidates on disk, judged anew, and the triplets of those left out, which now need a full look."""
    table = pq.read_table(shard.candidates, schema=SCHEMA)
    outdated = may_pass_now(table, config.filtering)
    again = frozenset(table.filter(outdated)["triplet_id"].to_pylist())
    return judge_table(table.filter(pc.invert(outdated)), config.filtering), again


def _merge(config: PipelineConfig, held: pa.Table | None, new: Rendered) -> pa.Table:
    """Adds new candidates to those on disk, in order, and judges them together."""
    table = SCHEMA.empty_table() if held is None else held
    if not new.scored:
        return table
    table = in_order_of(new.triplet_ids, pa.concat_tables([table, candidates_table(new.scored)]))
    return judge_table(table, config.filtering)


def _is_kept(config: PipelineConfig, table: pa.Table) -> pa.ChunkedArray:
    """Says which candidates' images are stored: those of accepted ones, or of all that were rendered in full."""
    if config.rendering.keep_rejected_images:
        return pc.invert(pc.fill_null(table["first_look"], False))
    return table["accepted"]


def _images_on_disk(shard: Shard, previous: Sidecar | None) -> pa.Table:
    sidecar = _intact(shard.pairs) if previous else None
    if sidecar is None or sidecar.extra.get("scores_from") != shard.scores_from:
        return IMAGES_SCHEMA.empty_table()
    return pq.read_table(shard.pairs, schema=PAIR_SCHEMA, columns=IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA)


def _write(shard: Shard, table: pa.Table, pairs: pa.Table, *, seconds: float, too_long: int) -> Sidecar:
    """Writes the images first: a table of candidates on disk vouches for its pairs."""
    counts = count_verdicts(table) | ({"too_long": too_long} if too_long else {})
    sidecar: dict[str, Any] = {"fingerprint": shard.fingerprint, "seconds": seconds, "counts": counts}
    sidecar["extra"] = {"scores_from": shard.scores_from}
    store.write_shard(shard.pairs, pairs, **sidecar)
    logger.info("%s: %s", shard.candidates.stem, ", ".join(f"{count} {name}" for name, count in counts.items()))
    return store.write_shard(shard.candidates, table, **sidecar)
