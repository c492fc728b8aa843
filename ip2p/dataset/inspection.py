"""Describes a run's candidates as plain text: funnel, scores, draws, duplicates, examples of every reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.dataset.duplicates import find_all_alike, read_embeddings, repeats_among
from ip2p.filtering import REASONS, count_values, measure_acceptance
from ip2p.scoring import SCORE_COLUMNS, SCORES
from ip2p.scoring.reliability import read_reliability

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_EXAMPLES, MOST_EXAMPLES = 3, 200
"""Examples of each reason, and rows that they are chosen from."""
DRIFT = "frame_drift"
DRIFTS = (0.005, 0.01, 0.02)
SIMILARITIES = (0.999, 0.99, 0.98, 0.95)
MOST_COMPARED = 20_000
_TEXTS = ("original_prompt", "edit_prompt", "edited_prompt")
_COLUMNS = ("triplet_id", "candidate", *_TEXTS, "accepted", "reason")


@dataclass(slots=True)
class Candidates:
    """What is told of a run's candidates: eight bytes of each and every score, and the texts of each triplet once."""

    reasons: Counter[str]
    accepted: np.ndarray
    scores: Mapping[str, np.ndarray]
    """Values by score, NaN if one was not measured; without scores that no candidate has."""
    triplets: pa.Table
    examples: Mapping[str, pa.Table]
    """The first rows of every reason."""

    def values(self, name: str, *, accepted: bool) -> np.ndarray:
        """Returns the values of a score that were measured, of accepted or rejected candidates."""
        values = self.scores[name]
        return np.asarray(values[np.isfinite(values) & (self.accepted == accepted)])


def describe(config: PipelineConfig) -> str:
    """Returns the text. ValueError if the run has no candidates."""
    folder = store.RunFolder(config.out)
    paths = folder.shards("candidates")
    if not paths:
        raise ValueError(f"{config.out} has no candidates. Run `ip2p dataset` into that folder first.")
    candidates = _read(paths)
    parts = [
        ("Funnel", _funnel(config, candidates)),
        ("Scores", _scores(candidates)),
        ("Judges, right against wrong instructions", _judges(config.out)),
        ("Frame drift, of what did not change", _drift(candidates)),
        ("Accepted, by what was drawn", _acceptance(config, paths)),
        ("Duplicates", _duplicates(candidates.triplets)),
        ("Pairs that repeat an earlier one", _repeats(folder)),
        ("Examples", _examples(candidates)),
    ]
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in parts)


def _read(paths: Sequence[Path]) -> Candidates:
    """Reads a shard at a time; an older one lacks scores added later."""
    reasons, examples = Counter[str](), defaultdict[str, list[pa.Table]](list)
    accepted: list[np.ndarray] = []
    scores: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    triplets: list[pa.Table] = []
    for path in paths:
        present = set(pq.read_schema(path).names)
        table = pq.read_table(path, columns=[*_COLUMNS, *(column for column in SCORE_COLUMNS if column in present)])
        triplets.append(_once(table.select(["triplet_id", *_TEXTS])))
        accepted.append(pc.fill_null(table["accepted"], False).to_numpy())
        for name, score in SCORES.items():
            is_present = score.column in present
            scores[name].append(table[score.column].to_numpy() if is_present else np.full(len(table), np.nan))
        for reason, num in count_values(table["reason"]).items():
            if (left := MOST_EXAMPLES - reasons[reason]) > 0:
                examples[reason].append(table.filter(pc.equal(table["reason"], reason)).slice(0, left))
            reasons[reason] += num
    return Candidates(
        reasons=reasons,
        accepted=np.concatenate(accepted),
        scores={name: whole for name, parts in scores.items() if np.isfinite(whole := np.concatenate(parts)).any()},
        triplets=_once(pa.concat_tables(triplets)),
        examples={name: pa.concat_tables(tables, promote_options="default") for name, tables in examples.items()},
    )


def _once(texts: pa.Table) -> pa.Table:
    """Returns one row of each triplet, in the order of the first."""
    first = texts.group_by("triplet_id", use_threads=False).aggregate([(name, "min") for name in _TEXTS])
    return first.rename_columns({f"{name}_min": name for name in _TEXTS})


def _funnel(config: PipelineConfig, candidates: Candidates) -> Iterator[str]:
    for name, count in store.summarise_shards(config.out, "triplets").items():
        if name not in ("shards", "seconds"):
            yield f"{name:<22} {count:>9}"
    num = candidates.reasons.total()
    yield f"{'candidates':<22} {num:>9}"
    for reason, count in candidates.reasons.most_common():
        words = f"  {REASONS[reason]}" if reason in REASONS else ""
        yield f"{reason or 'accepted':<22} {count:>9}  {count / num:6.1%}{words}"
    rows = store.read_summary(config.out).get("dataset", {})
    for name in ("train", "test", "split_conflict", "near_duplicate", "beyond_share", "kept_written"):
        if name in rows:
            yield f"{'dataset: ' + name:<22} {rows[name]:>9}"


def _scores(candidates: Candidates) -> Iterator[str]:
    yield f"{'quantiles':<26}" + "".join(f"{quantile:>8.0%}" for quantile in QUANTILES)
    for name in candidates.scores:
        for side in ("accepted", "rejected"):
            values = candidates.values(name, accepted=side == "accepted")
            quantiles = np.quantile(values, QUANTILES) if len(values) else []
            numbers = "".join(f"{value:>8.3f}" for value in quantiles) or f"{'–':>8}"
            yield f"{name + ', ' + side:<26}{numbers}"


def _judges(out: Path) -> Iterator[str]:
    measured = read_reliability(out)
    yield from (f"{name:<16} {reliability}" for name, reliability in measured.items())
    if not measured:
        yield "not measured; `ip2p dataset judges` measures it"


def _drift(candidates: Candidates) -> Iterator[str]:
    """Describes how far the pictures of accepted pairs were moved, grown or turned, as shares of the shorter side."""
    values = candidates.values(DRIFT, accepted=True) if DRIFT in candidates.scores else np.empty(0)
    if not values.size:
        yield "not measured; --scoring.frame measures it"
        return
    yield f"{'measured':<22} {len(values):>9} of {int(candidates.accepted.sum())}"
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


def _duplicates(triplets: pa.Table) -> Iterator[str]:
    """Reports captions and instructions that several triplets share."""
    for name in _TEXTS:
        counts = pc.value_counts(triplets[name])
        most = counts[int(np.argmax(counts.field("counts")))].as_py()
        yield (
            f"{name:<18} {len(counts)} distinct of {len(triplets)}; "
            f"the most frequent, {most['counts']} times: {most['values']}"
        )


def _repeats(folder: store.RunFolder) -> Iterator[str]:
    """Counts the pairs that each `dataset.max_duplicate_similarity` would drop from the first `MOST_COMPARED`."""
    try:
        by_shard = list(read_embeddings(folder.shards("pairs"), MOST_COMPARED))
    except ValueError:
        yield "unknown: not every pair has CLIP's embeddings"
        return
    if not by_shard:
        return
    embeddings = np.concatenate(by_shard)
    alike = find_all_alike(embeddings, min(SIMILARITIES))
    for limit in SIMILARITIES:
        num = int(repeats_among(len(embeddings), alike, limit).sum())
        yield f"both images {limit:g} alike {num:>7} of {len(embeddings)}  {num / len(embeddings):6.1%}"


def _examples(candidates: Candidates) -> Iterator[str]:
    for reason in sorted(candidates.examples):
        rows = candidates.examples[reason]
        step = max(1, len(rows) // NUM_EXAMPLES)
        for row in rows.take(pa.array(range(0, len(rows), step))).slice(0, NUM_EXAMPLES).to_pylist():
            values = ((name, row.get(SCORES[name].column)) for name in candidates.scores)
            numbers = ", ".join(f"{name} {value:.3f}" for name, value in values if value is not None)
            words = " | ".join(filter(None, (row["original_prompt"], row["edit_prompt"], numbers)))
            yield f"{reason or 'accepted'}: {words}"
