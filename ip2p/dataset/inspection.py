"""Describes a run's candidates as plain text: funnel, scores, draws, duplicates, examples of every reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.dataset.duplicates import find_near_duplicates, read_embeddings
from ip2p.filtering import REASONS, count_values, measure_acceptance
from ip2p.scoring import SCORE_COLUMNS, SCORES, Score
from ip2p.scoring.reliability import read_reliability

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_EXAMPLES = 3
DRIFTS = (0.005, 0.01, 0.02)
SIMILARITIES = (0.999, 0.99, 0.98, 0.95)
MOST_COMPARED = 20_000
_TEXTS = ("original_prompt", "edit_prompt", "edited_prompt")
_COLUMNS = ("triplet_id", "candidate", *_TEXTS, "accepted", "reason")


def describe(config: PipelineConfig) -> str:
    """Returns the text. ValueError if the run has no candidates."""
    folder = store.RunFolder(config.out)
    paths = folder.shards("candidates")
    if not paths:
        raise ValueError(f"{config.out} has no candidates. Run `ip2p dataset` into that folder first.")
    table = pa.concat_tables([_read(path) for path in paths], promote_options="default")
    scores = {name: score for name, score in SCORES.items() if _values(table, score).size}
    parts = [
        ("Funnel", _funnel(config, table)),
        ("Scores", _scores(table, scores)),
        ("Judges, right against wrong instructions", _judges(config.out)),
        ("Frame drift, of what did not change", _drift(table)),
        ("Accepted, by what was drawn", _acceptance(config, paths)),
        ("Duplicates", _duplicates(table)),
        ("Pairs that repeat an earlier one", _repeats(folder)),
        ("Examples", _examples(table, scores)),
    ]
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in parts)


def _read(path: Path) -> pa.Table:
    """Reads a shard with the scores that it has: an older one lacks those added later."""
    present = set(pq.read_schema(path).names)
    return pq.read_table(path, columns=[*_COLUMNS, *(column for column in SCORE_COLUMNS if column in present)])


def _values(table: pa.Table, score: Score) -> np.ndarray:
    """Returns the values of a score that were measured."""
    values = table[score.column].to_numpy() if score.column in table.column_names else np.empty(0)
    return np.asarray(values[np.isfinite(values)])


def _funnel(config: PipelineConfig, table: pa.Table) -> Iterator[str]:
    for name, count in store.summarise_shards(config.out, "triplets").items():
        if name not in ("shards", "seconds"):
            yield f"{name:<22} {count:>9}"
    yield f"{'candidates':<22} {len(table):>9}"
    for reason, count in sorted(count_values(table["reason"]).items(), key=lambda item: -item[1]):
        words = f"  {REASONS[reason]}" if reason in REASONS else ""
        yield f"{reason or 'accepted':<22} {count:>9}  {count / len(table):6.1%}{words}"
    rows = store.read_summary(config.out).get("dataset", {})
    for name in ("train", "test", "split_conflict", "near_duplicate", "beyond_share", "kept_written"):
        if name in rows:
            yield f"{'dataset: ' + name:<22} {rows[name]:>9}"


def _scores(table: pa.Table, scores: Mapping[str, Score]) -> Iterator[str]:
    yield f"{'quantiles':<26}" + "".join(f"{quantile:>8.0%}" for quantile in QUANTILES)
    sides = {"accepted": table.filter(table["accepted"]), "rejected": table.filter(pc.invert(table["accepted"]))}
    for name, score in scores.items():
        for side, rows in sides.items():
            values = _values(rows, score)
            quantiles = np.quantile(values, QUANTILES) if len(values) else []
            numbers = "".join(f"{value:>8.3f}" for value in quantiles) or f"{'–':>8}"
            yield f"{name + ', ' + side:<26}{numbers}"


def _judges(out: Path) -> Iterator[str]:
    measured = read_reliability(out)
    yield from (f"{name:<16} {reliability}" for name, reliability in measured.items())
    if not measured:
        yield "not measured; `ip2p dataset judges` measures it"


def _drift(table: pa.Table) -> Iterator[str]:
    """Describes how far the pictures of accepted pairs were moved, grown or turned, as shares of the shorter side."""
    accepted = table.filter(table["accepted"])
    values = _values(accepted, SCORES["frame_drift"])
    if not values.size:
        yield "not measured; --scoring.frame measures it"
        return
    yield f"{'measured':<22} {len(values):>9} of {len(accepted)}"
    yield f"{'median':<22} {np.median(values):>9.4f}"
    yield f"{'95 %':<22} {np.quantile(values, 0.95):>9.4f}"
    for limit in DRIFTS:
        yield f"{f'beyond {limit:g}':<22} {(values > limit).mean():>9.1%}"


def _acceptance(config: PipelineConfig, paths: Sequence[Path]) -> Iterator[str]:
    for name, parts in measure_acceptance(paths, config.rendering).items():
        for part in parts:
            if part["candidates"]:
                value = part.get("name", f"{part.get('low', 0):g} to {part.get('high', 0):g}")
                yield f"{name:<16} {value:<18} {part['rate']:6.1%} of {part['candidates']}"


def _duplicates(table: pa.Table) -> Iterator[str]:
    """Reports captions and instructions that several triplets share."""
    first = table.group_by("triplet_id").aggregate([(name, "min") for name in _TEXTS])
    for name in _TEXTS:
        counts = count_values(first[f"{name}_min"])
        most, num = max(counts.items(), key=lambda item: item[1])
        yield f"{name:<18} {len(counts)} distinct of {len(first)}; the most frequent, {num} times: {most}"


def _repeats(folder: store.RunFolder) -> Iterator[str]:
    """Counts the pairs that each `dataset.max_duplicate_similarity` would drop from the first `MOST_COMPARED`."""
    shards, places = folder.shards("pairs"), []
    for number, path in enumerate(shards):
        accepted = pq.read_table(path, columns=["accepted"])["accepted"].to_pylist()
        places += [(number, row) for row, is_accepted in enumerate(accepted) if is_accepted]
    try:
        embeddings = read_embeddings(shards, places[:MOST_COMPARED])
    except ValueError:
        yield "unknown: not every pair has CLIP's embeddings"
        return
    for limit in SIMILARITIES if len(embeddings) else ():
        num = int(find_near_duplicates(embeddings, limit).sum())
        yield f"both images {limit:g} alike {num:>7} of {len(embeddings)}  {num / len(embeddings):6.1%}"


def _examples(table: pa.Table, scores: Mapping[str, Score]) -> Iterator[str]:
    for reason in sorted(count_values(table["reason"])):
        rows = table.filter(pc.equal(table["reason"], reason)).slice(0, 200)
        step = max(1, len(rows) // NUM_EXAMPLES)
        for row in rows.take(pa.array(range(0, len(rows), step))).slice(0, NUM_EXAMPLES).to_pylist():
            measured = {name: row[score.column] for name, score in scores.items() if row[score.column] is not None}
            numbers = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
            words = " | ".join(filter(None, (row["original_prompt"], row["edit_prompt"], numbers)))
            yield f"{reason or 'accepted'}: {words}"
