"""Asks the vision-language judge about the candidates of a shard that all other scores let pass.

If set, it is then asked which instruction the accepted ones show.

A candidate whose question had no answer stays open: it keeps its images and its place, and is asked about again at the
next run. Answers are in a journal beside the shard before they are used; scores and words are in the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ip2p.config import PipelineConfig
from ip2p.filtering import OPEN, judge_batch, judge_table
from ip2p.images import open_picture
from ip2p.picture_judge import EditScores, PictureJudge
from ip2p.records import ScoredCandidate
from ip2p.rendering.candidates import key_of
from ip2p.rendering.table import EncodedPair, read_images, read_rows, with_new_scores

ScoredPair = tuple[ScoredCandidate, EncodedPair | None]
"""A result and its images; None if there are none."""


def judge_of(config: PipelineConfig, candidates: Path) -> PictureJudge | None:
    """Returns the judge of a shard; None if the filter has none."""
    vlm = config.filtering.vlm
    return PictureJudge(vlm, candidates.with_suffix(".vlm.jsonl")) if vlm.model else None


def ask_about_pairs(
    config: PipelineConfig, judge: PictureJudge | None, pairs: Sequence[ScoredPair]
) -> list[ScoredPair]:
    """Asks about the open ones of pairs that were just scored, and judges those again that have an answer."""
    unjudged = [(result, pair) for result, pair in pairs if pair is not None and result.verdict.reason == OPEN]
    if judge is None or not unjudged:
        return list(pairs)
    answered = {key_of(result.candidate): result for result in _ask(config, judge, unjudged)}
    return [(answered.get(key_of(result.candidate), result), pair) for result, pair in pairs]


def ask_about_table(config: PipelineConfig, judge: PictureJudge | None, table: pa.Table, images: pa.Table) -> pa.Table:
    """Asks about the rows without scores by the judge that have images, and judges the table again."""
    if judge is None or not (pairs := _open_pairs(table, images, judge, are_scored=False)):
        return table
    answered = _ask(config, judge, pairs)
    return judge_table(with_new_scores(table, answered), config.filtering)


def ask_what_is_shown(
    config: PipelineConfig, judge: PictureJudge | None, table: pa.Table, images: pa.Table
) -> pa.Table:
    """Asks which instruction the rows show that lack but this to be accepted, and judges the table again."""
    if judge is None or not (pairs := _open_pairs(table, images, judge, are_scored=True)):
        return table
    texts = judge.write_what_it_can([(pair.original, pair.edited) for _, pair in pairs])
    answered = [
        replace(result, scores=replace(result.scores, shown_judge=judge.shown_identity, shown_prompt=text))
        for (result, _), text in zip(pairs, texts, strict=True)
        if text is not None
    ]
    return judge_table(with_new_scores(table, answered), config.filtering) if answered else table


def _open_pairs(
    table: pa.Table, images: pa.Table, judge: PictureJudge, *, are_scored: bool
) -> list[tuple[ScoredCandidate, EncodedPair]]:
    """Returns the open rows that have images, of those that the judge has scored or of those that it has not."""
    results = read_rows(table.filter(pc.equal(table["reason"], OPEN)))
    results = [result for result in results if (result.scores.vlm_judge == judge.identity) == are_scored]
    kept = read_images(images, {key_of(result.candidate) for result in results})
    return [(result, kept[key]) for result in results if (key := key_of(result.candidate)) in kept]


def _ask(
    config: PipelineConfig, judge: PictureJudge, pairs: Sequence[tuple[ScoredCandidate, EncodedPair]]
) -> list[ScoredCandidate]:
    """Adds scores and words to the pairs that have an answer, with a new verdict."""
    edits = []
    for result, pair in pairs:
        original, edited = (np.asarray(open_picture(content)) for content in (pair.original, pair.edited))
        edits.append((result.candidate.triplet.edit_prompt, original, edited))
    answers = judge.score_what_it_can(edits)
    return [
        result if scores is None else _with_answer(config, judge, result, scores)
        for (result, _), scores in zip(pairs, answers, strict=True)
    ]


def _with_answer(
    config: PipelineConfig, judge: PictureJudge, result: ScoredCandidate, given: EditScores
) -> ScoredCandidate:
    numbers = {"vlm_followed": given.followed, "vlm_kept": given.kept, "vlm_quality": given.quality}
    further = {name: math.nan if number is None else number for name, number in numbers.items()}
    scores = replace(
        result.scores,
        further={**result.scores.further, **further},
        vlm_judge=judge.identity,
        vlm_answer=given.answer,
    )
    (verdict,) = judge_batch([result.candidate], [scores], config.filtering)
    return replace(result, scores=scores, verdict=verdict)
