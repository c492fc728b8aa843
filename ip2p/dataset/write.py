"""Writes the accepted pairs of a run, shuffled by hash, as parquet files that appear all at once.

A plan says which pair goes into which file; it is cheap, and made once. The two passes over the pictures are cut into
parts (`dataset.spilling`, `dataset.files`), which a flow hands to its workers and `write_dataset` takes one by one.
Everything lies in a hidden folder until it is renamed; after a kill, what is whole there is not made again.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ip2p import store
from ip2p.config import PipelineConfig, fingerprint
from ip2p.dataset import files, spilling
from ip2p.dataset.card import Counts, describe_rejections, write_card
from ip2p.dataset.duplicates import read_repeats, write_alike, write_embeddings
from ip2p.dataset.further import FOLDER, further_columns
from ip2p.dataset.schema import schema_of
from ip2p.dataset.spilling import PLAN, Plan, read_plan, write_plan
from ip2p.dataset.split import SPLITS, Chosen, index_pairs, side_of, split_places

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LAYOUT = 1
"""Changes when the same pairs would be written differently."""
HIDDEN = ".dataset.partial"
"""Folder of a dataset that is not whole."""
BEGUN, COMPARED = "begun.json", "compared"
"""File in it that says what the dataset is made from, and folder of what is compared to find near-duplicates."""


class Parts(NamedTuple):
    """How many parts each pass has; none if the dataset is done."""

    bundles: int
    groups: int


def write_dataset(config: PipelineConfig) -> Counts:
    """Writes `dataset/` unless it is done; returns counts. ValueError with the way out if no pair was accepted."""
    for number in range(begin_dataset(config)):
        compare_pairs(config, number)
    parts = plan_dataset(config)
    for number in range(parts.bundles):
        gather_pairs(config, number)
    for number in range(parts.groups):
        write_files(config, number)
    return finish_dataset(config)


def begin_dataset(config: PipelineConfig) -> int:
    """Begins or resumes `dataset/` unless it is done; returns the parts in which pairs are compared, if they are."""
    folder, hidden = store.RunFolder(config.out), _hidden(config)
    made_from = _fingerprint(config, folder)
    is_done = _finished(folder.dataset, made_from)
    _remove_leftovers(config.out, None if is_done else made_from)
    if is_done:
        return 0
    store.write_json(hidden / BEGUN, {"fingerprint": made_from})
    if config.dataset.max_duplicate_similarity is None or (hidden / PLAN).exists():
        return 0
    return write_embeddings(hidden / COMPARED, folder.shards("pairs"))


def compare_pairs(config: PipelineConfig, number: int) -> None:
    """Takes a part of the comparison of pairs, unless it is done."""
    if (limit := config.dataset.max_duplicate_similarity) is not None:
        write_alike(_hidden(config) / COMPARED, number, limit)


def plan_dataset(config: PipelineConfig) -> Parts:
    """Plans `dataset/` unless it is done or planned already. ValueError with the way out if no pair was accepted."""
    hidden = _hidden(config)
    if not hidden.exists():
        return Parts(0, 0)
    if not (hidden / PLAN).exists():
        _write_plan(config)
    plan = read_plan(hidden)
    return Parts(len(plan.bundles), plan.num_groups)


def gather_pairs(config: PipelineConfig, number: int) -> None:
    """Takes a part of the first pass, unless it is done."""
    spilling.gather_pairs(_hidden(config), number)


def write_files(config: PipelineConfig, number: int) -> None:
    """Takes a part of the second pass, unless it is done; the first pass must have ended."""
    files.write_group(_hidden(config), number)


@store.summarised("dataset")
def finish_dataset(config: PipelineConfig) -> Counts:
    """Puts the files that the parts wrote into place; returns counts. RuntimeError if one is missing."""
    started, dataset, hidden = time.monotonic(), store.RunFolder(config.out).dataset, _hidden(config)
    if not hidden.exists():
        done: Counts = dict(store.read_json(dataset / MANIFEST)["counts"])
        logger.info("the dataset is done: %d pairs in %d files", done["pairs"], done["files"])
        return done
    plan, result = read_plan(hidden), hidden / spilling.RESULT
    counts, entries = dict(plan.counts), files.read_entries(hidden, plan)
    write_card(config, result, counts)
    counts["seconds"] = round(plan.seconds + files.seconds_of(hidden) + time.monotonic() - started, 3)
    made_from = store.read_json(hidden / BEGUN)["fingerprint"]
    store.write_json(result / MANIFEST, {"fingerprint": made_from, "counts": counts, "files": entries})
    _swap(result, dataset)
    shutil.rmtree(hidden)
    _log(counts)
    return counts


def dataset_state(config: PipelineConfig) -> store.State:
    """Returns the state of `dataset/`, by the shards that are there, without reading its files."""
    folder = store.RunFolder(config.out)
    manifest = store.read_json_or_empty(folder.dataset / MANIFEST)
    if not manifest:
        return "missing"
    return "done" if manifest.get("fingerprint") == _fingerprint(config, folder) else "outdated"


def damaged_files(dataset: Path) -> list[Path]:
    """Reads the files of a dataset and returns those that are missing or differ from their checksums."""
    entries = store.read_json_or_empty(dataset / MANIFEST).get("files", [])
    paths = {dataset / file["path"]: file["sha256"] for file in entries}
    return [path for path, digest in paths.items() if not path.exists() or store.sha256_of(path) != digest]


def _hidden(config: PipelineConfig) -> Path:
    """Returns where the parts lie until the dataset is whole."""
    return config.out / HIDDEN


def _remove_leftovers(root: Path, made_from: str | None) -> None:
    """Clears what a run that was killed left half-swapped, or half-written from something else."""
    hidden = root / HIDDEN
    is_usable = made_from is not None and store.read_json_or_empty(hidden / BEGUN).get("fingerprint") == made_from
    old = store.old_folder(store.RunFolder(root).dataset)
    for folder in (old,) if is_usable else (old, hidden):
        if folder.exists():
            logger.info("removing %s, left by an interrupted run", folder.name)
            shutil.rmtree(folder)
    if is_usable:
        logger.info("the dataset was begun already: what is whole of it is kept")


def _fingerprint(config: PipelineConfig, folder: store.RunFolder) -> str:
    made_of = []
    for stage in ("triplets", "candidates", "pairs"):
        sidecars = (store.read_sidecar(path) for path in folder.shards(stage))
        made_of.append([sidecar.sha256 for sidecar in sidecars if sidecar is not None])
    if further := folder.shards(FOLDER):
        made_of.append([sidecar.sha256 for path in further if (sidecar := store.read_sidecar(path))])
    return fingerprint("dataset", LAYOUT, config.dataset, config.rendering, config.filtering, made_of)


def _finished(dataset: Path, expected: str) -> Counts | None:
    """Returns the counts of a dataset that has the expected fingerprint and whose files are whole."""
    try:
        manifest = store.read_json(dataset / MANIFEST)
        whole = manifest["fingerprint"] == expected and all(
            store.is_whole(dataset / file["path"], file["sha256"], file.get("version", ()), noted_in=dataset / MANIFEST)
            for file in manifest["files"]
        )
        return dict(manifest["counts"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_plan(config: PipelineConfig) -> None:
    started, settings = time.monotonic(), config.dataset
    shards, has_written = store.RunFolder(config.out).shards("pairs"), settings.edit_prompt == "shown"
    limit = settings.max_duplicate_similarity
    repeats = None if limit is None else read_repeats(_hidden(config) / COMPARED, limit)
    chosen, counts = _choose(config, shards, repeats)
    planned, rows = chosen.plan_files(settings.rows_per_shard)
    kept_written = counts.pop("kept_written")
    counts |= {"files": len(planned)} | ({"kept_written": kept_written} if has_written else {})
    further = further_columns(path for path in map(spilling.further_of, shards) if path.exists())
    plan = Plan(
        seconds=time.monotonic() - started,
        counts=counts,
        shards=[path.relative_to(config.out).as_posix() for path in shards],
        bundles=spilling.bundles_of(shards),
        files=planned,
        files_per_group=spilling.files_per_group(len(planned), shards),
        further=list(further),
    )
    write_plan(_hidden(config), plan, rows, schema_of(shards, further, has_written=has_written))


def _choose(config: PipelineConfig, shards: Sequence[Path], repeats: np.ndarray | None) -> tuple[Chosen, Counts]:
    """Chooses the pairs of the dataset, and counts them and, by reason, those that are left out."""
    settings, chosen = config.dataset, Chosen()
    tally, by_type, left_out = Counter[str](), Counter[str](), Counter[str]()
    places = index_pairs(shards, settings.seed)
    unlike = places if repeats is None else compress(places, ~repeats)
    for place, split in split_places(unlike, settings.test_fraction):
        if split is None:
            left_out[side_of(place.captions[0], settings.test_fraction)] += 1
        elif split == "train" and place.lot >= settings.train_share:
            tally["beyond_share"] += 1
        else:
            chosen.add(place, split)
            tally.update((split, "pairs"))
            by_type[place.edit_type] += 1
            tally["kept_written"] += not place.is_shown
    num_repeats, num_unlike = int(repeats.sum()) if repeats is not None else 0, tally["pairs"] + tally["beyond_share"]
    num_unlike += left_out.total()
    if not num_unlike + num_repeats:
        raise ValueError(describe_rejections(config))
    if settings.train_share < 1 and not tally["train"]:
        raise ValueError(
            f"dataset.train_share {settings.train_share:g} leaves none of {num_unlike} pairs to train on. "
            "Take a larger share."
        )
    return chosen, {
        "accepted": num_unlike + num_repeats,
        "near_duplicate": num_repeats,
        "beyond_share": tally["beyond_share"],
        "pairs": tally["pairs"],
        **{split: tally[split] for split in SPLITS},
        "split_conflict": left_out.total(),
        "split_conflict_test": left_out["test"],
        "edit_types": dict(sorted(by_type.items())),
        "kept_written": tally["kept_written"],
    }


def _swap(partial: Path, dataset: Path) -> None:
    store.replace_folder(dataset, partial)


def _log(counts: Counts) -> None:
    logger.info(
        "dataset: %d pairs (train %d, test %d) in %d files; left out: %d whose caption is in the other split, %d alike",
        *(counts[name] for name in ("pairs", *SPLITS, "files", "split_conflict", "near_duplicate")),
    )
    if counts.get("kept_written"):
        logger.info("%d of the pairs keep the written instruction: the judge names none", counts["kept_written"])
    for split in SPLITS:
        if not counts[split]:
            logger.warning("there is no %s split: change dataset.test_fraction or write more triplets", split)
