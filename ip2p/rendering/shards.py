"""The rendering stage: turns a shard of triplets into a table of all candidates and the images of the accepted ones.

Scores depend on the triplets, `rendering` and `scoring`; verdicts and kept images also on `filtering`. So a change of
`filtering` alone judges the table again and renders only what is newly accepted and was not kept.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.filtering import (
    HAVE_PLACE,
    NOT_RENDERED,
    OPEN,
    check_thresholds,
    count_shown,
    count_verdicts,
    judge_table,
    may_pass_now,
    measure_acceptance,
)
from ip2p.picture_judge import PictureJudge
from ip2p.prompts import num_shards
from ip2p.prompts.pictures import read_pictures
from ip2p.records import ScoredCandidate
from ip2p.rendering.backends import Pictures, backend_of
from ip2p.rendering.candidates import Key, key_of
from ip2p.rendering.judging import ask_about_table, ask_what_is_shown, judge_of
from ip2p.rendering.render import Rendered, render_again, render_needed
from ip2p.rendering.table import (
    IMAGES_SCHEMA,
    OPTIONAL_COLUMNS,
    PAIR_SCHEMA,
    SCHEMA,
    EncodedPair,
    candidates_table,
    images_table,
    in_order_of,
    lacks_images,
    read_rows,
    with_images,
    with_new_scores,
)
from ip2p.sources.content import later_contents, models_of, note
from ip2p.store import RunFolder, Sidecar

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shard:
    """The files of a shard, and the fingerprints of what it must have been made from."""

    triplets: Path
    candidates: Path
    pairs: Path
    scores_from: str
    """Fingerprint of everything that decides the scores."""
    fingerprint: str
    """Fingerprint of everything that decides the shard."""


def write_shard(config: PipelineConfig, number: int) -> Sidecar:
    """Writes `pairs` and, last, `candidates` of a shard; returns at once if both are done and none is open."""
    check_thresholds(config.filtering)
    note(config.out, models_of(config, "rendering"))
    shard = _shard(config, number)
    done = store.finished(shard.candidates, shard.fingerprint)
    if done is not None and not _num_open(done) and store.finished(shard.pairs, shard.fingerprint) is not None:
        return done
    previous = _previous(shard)
    if previous is None and not config.rendering.model:
        raise ValueError(f"{shard.pairs} is damaged, and imported pairs cannot be rendered again. Import them again.")
    return _work(config, shard, previous)


def shard_states(config: PipelineConfig) -> list[store.State]:
    """Returns the state of every shard, by the triplets that are there, without reading one."""
    states: list[store.State] = []
    for number in range(num_shards(config)):
        try:
            shard = _shard(config, number)
        except RuntimeError:  # it has no triplets yet
            states.append("missing")
        else:
            is_open = _num_open(store.read_sidecar(shard.candidates))
            states.append("outdated" if is_open else store.state_of(shard.candidates, shard.fingerprint))
    return states


def _num_open(sidecar: Sidecar | None) -> int:
    return 0 if sidecar is None else sidecar.counts.get(OPEN, 0)


def keep_shard(
    config: PipelineConfig,
    number: int,
    scored: Sequence[ScoredCandidate],
    images: Mapping[Key, EncodedPair],
    *,
    is_scored: bool,
) -> Sidecar:
    """Writes imported pairs as if they were rendered here; accepts all of them if they have no scores."""
    started, shard = time.monotonic(), _shard(config, number)
    table, stored = candidates_table(scored), images_table(images)
    if is_scored:
        table = judge_table(table, config.filtering)
        judge = judge_of(config, shard.candidates)
        table = ask_about_table(config, judge, table, stored)
        table = ask_what_is_shown(config, judge, table, stored)
    return _write(shard, table, with_images(table, stored), seconds=time.monotonic() - started, too_long=0)


def refilter(config: PipelineConfig) -> dict[str, int]:
    """Judges every shard anew from its table; returns the counts. ValueError if there is nothing to judge."""
    folder = RunFolder(config.out)
    paths = folder.shards("candidates")
    if not paths:
        raise ValueError(f"{config.out} has no candidates to filter. Run `ip2p dataset` into that folder first.")
    numbers = [int(path.stem.removeprefix("part-")) for path in paths]
    for number in numbers:
        shard = _shard(config, number)
        if _up_to_date(shard) is None:
            raise ValueError(f"{shard.candidates} was made with other settings. Run `ip2p dataset` to render it again.")
    counts: Counter[str] = Counter()
    for number in numbers:
        counts.update(write_shard(config, number).counts)
    return dict(counts)


@store.summarised("rendering")
def summarise(config: PipelineConfig) -> dict[str, Any]:
    """Returns counts and seconds of the finished shards, for the run's summary."""
    counts = store.summarise_shards(config.out, "candidates")
    per_pair = round(counts["candidates"] / counts["accepted"], 2) if counts.get("accepted") else None
    tables = RunFolder(config.out).shards("candidates")
    rewrites = {"shown": count_shown(tables)} if config.filtering.vlm_rewrite else {}
    acceptance = measure_acceptance(tables, config.rendering)
    return {**counts, "candidates_per_accepted": per_pair, **rewrites, "acceptance": acceptance}


def _shard(config: PipelineConfig, number: int) -> Shard:
    folder, rendering = RunFolder(config.out), config.rendering
    path = folder.shard("triplets", number)
    triplets = store.read_sidecar(path)
    if triplets is None or not path.exists():
        raise RuntimeError(f"{path} is not finished. Run the prompt stage first.")
    settings = replace(rendering, keep_rejected_images=False), config.scoring
    scores_from = fingerprint(triplets.sha256, *settings, *later_contents(config.out, models_of(config, "rendering")))
    return Shard(
        triplets=path,
        candidates=folder.shard("candidates", number),
        pairs=folder.shard("pairs", number),
        scores_from=scores_from,
        fingerprint=fingerprint(scores_from, config.filtering, rendering.keep_rejected_images),
    )


def _up_to_date(shard: Shard) -> Sidecar | None:
    """Returns the sidecar of candidates that are whole and have the scores of these settings, whatever their filter."""
    sidecar = store.read_sidecar(shard.candidates)
    if sidecar is None or sidecar.extra.get("scores_from") != shard.scores_from:
        return None
    return store.finished(shard.candidates, sidecar.fingerprint)


def _previous(shard: Shard) -> Sidecar | None:
    """Returns the sidecar of candidates that can be judged anew; None if they or their pairs are damaged.

    A shard without its pairs is rendered as a whole, since pixels are the same to the bit only in the same batches.
    """
    sidecar = _up_to_date(shard)
    return sidecar if sidecar is not None and store.finished(shard.pairs, sidecar.fingerprint) is not None else None


def _work(config: PipelineConfig, shard: Shard, previous: Sidecar | None) -> Sidecar:
    """Judges what is on disk, renders and scores kept pairs that lack images and what is needed beside, and writes."""
    started, name, pictures = time.monotonic(), shard.candidates.stem, cache(partial(_pictures, config, shard))
    held, again, images = None, frozenset[str](), IMAGES_SCHEMA.empty_table()
    judge = judge_of(config, shard.candidates)
    if previous is not None:
        held, again = _read_held(config, shard)
        images = pq.read_table(shard.pairs, schema=PAIR_SCHEMA, columns=IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA)
        held, images = _with_missing_images(config, held, images, pictures, judge, name=name)
    new = render_needed(config, held, shard.triplets, pictures, name=name, again=again, judge=judge)
    images = pa.concat_tables([images, images_table(new.images)])
    table = ask_what_is_shown(config, judge, _merge(config, held, new), images)
    pairs = with_images(table.filter(_is_kept(config, table)), images)
    seconds, too_long = time.monotonic() - started, new.too_long
    if previous is None or new.scored:
        rate = len(new.scored) / seconds if seconds else 0.0
        logger.info("%s: rendered and scored %d pairs in %.1f s (%.2f a second)", name, len(new.scored), seconds, rate)
    if previous is not None:
        seconds, too_long = previous.seconds + seconds, previous.counts.get("too_long", 0)
    return _write(shard, table, pairs, seconds=seconds, too_long=too_long)


def _pictures(config: PipelineConfig, shard: Shard) -> Pictures:
    """Reads the pictures that a shard's triplets name; none for a backend that renders both sides."""
    if not backend_of(config.rendering).needs_pictures:
        return {}
    return read_pictures(config.out, int(shard.triplets.stem.removeprefix("part-")))


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
    """Marks candidates whose images are stored: the accepted and the open ones, or all that were rendered in full."""
    if config.rendering.keep_rejected_images:
        is_preview, failed = pc.fill_null(table["first_look"], False), pc.equal(table["reason"], NOT_RENDERED)
        return pc.invert(pc.or_(is_preview, failed))
    return pc.is_in(table["reason"], pa.array(HAVE_PLACE))


def _with_missing_images(
    config: PipelineConfig,
    table: pa.Table,
    images: pa.Table,
    pictures: Callable[[], Pictures],
    judge: PictureJudge | None,
    *,
    name: str,
) -> tuple[pa.Table, pa.Table]:
    """Renders kept candidates whose images were not kept, until each has its images; returns the table and all images.

    They are rendered in other batches than before, so they are scored and judged again too: what is stored is what was
    scored. A verdict that this changes may let another candidate in. The open ones that have images are asked about.
    """
    num_judged, num_again = len(table), 0
    table = ask_about_table(config, judge, table, images)
    while missing := read_rows(lacks_images(table.filter(_is_kept(config, table)), images)):
        scored = render_again(config, [row.candidate for row in missing], pictures(), judge)
        rendered = images_table({key_of(result.candidate): pair for result, pair in scored if pair is not None})
        images = pa.concat_tables([images, rendered])
        table = judge_table(with_new_scores(table, [result for result, _ in scored]), config.filtering)
        num_again += len(missing)
    logger.info("%s: judged %d candidates anew, rendered %d again", name, num_judged, num_again)
    return table, images


def _write(shard: Shard, table: pa.Table, pairs: pa.Table, *, seconds: float, too_long: int) -> Sidecar:
    """Writes the images first: a table of candidates on disk vouches for its pairs."""
    counts = count_verdicts(table) | ({"too_long": too_long} if too_long else {})
    write = partial(
        store.write_shard,
        fingerprint=shard.fingerprint,
        seconds=seconds,
        counts=counts,
        extra={"scores_from": shard.scores_from},
        optional=OPTIONAL_COLUMNS,
    )
    write(shard.pairs, pairs)
    logger.info("%s: %s", shard.candidates.stem, ", ".join(f"{count} {name}" for name, count in counts.items()))
    return write(shard.candidates, table)
