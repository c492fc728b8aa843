"""Exports pairs in the layout of another trainer, so that the folder appears whole or not at all.

Pairs are read and written one after another, whatever holds them: the dataset of a run, parquet files, an image folder
or the hub. Pictures are written as they are stored, unless they are not upright RGB. Rows that cannot be used are left
out and counted.
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ip2p import __version__, store
from ip2p.dataset.layouts import Export, Layout, Sample
from ip2p.images import encode_mask, plain_file
from ip2p.sources.columns import FURTHER_PICTURES, PICTURES, SIDES, map_columns
from ip2p.sources.location import Location, dataset_in, locate
from ip2p.sources.pairs import TEXTS
from ip2p.sources.rows import Row, Table, open_table, split_names

logger = logging.getLogger(__name__)

NOTE = "export.json"
"""The file that says what a folder is an export of; it is written last."""
AT_ONCE = 32
"""Rows whose pictures are checked at a time."""
Counts = dict[str, Any]


def export_dataset(
    source: str, layout: Layout, out: Path, *, split: str | None = None, revision: str | None = None
) -> Counts:
    """Writes all pairs of a source, or those of a split, into a folder; returns counts by split and by reason.

    ValueError if the source holds no usable pair, or if the folder holds anything but an earlier export.
    """
    location = locate(source, what="dataset")
    _check_source(location)
    tables = _open_splits(location, split, revision)
    with new_folder(out) as folder:
        reasons, columns, counts = Counter[str](), set[str](), dict[str, int]()
        for name, table in tables.items():
            tally = _Tally(columns)
            layout.write_split(tally.follow(_samples(table, location.word, reasons, name)), folder / name)
            counts[name] = tally.num
            if not tally.num:
                shutil.rmtree(folder / name, ignore_errors=True)
        counts = {name: num for name, num in counts.items() if num}
        if not counts:
            raise ValueError(f"{source} has no usable pair: {_list(reasons) or 'it is empty'}.")
        final = out.resolve()
        layout.write_config(Export(folder=folder, final=final, counts=counts, columns=frozenset(columns)))
        store.write_json(
            folder / NOTE, {"layout": layout.name, "ip2p": __version__, "splits": counts, "left_out": dict(reasons)}
        )
    return {**counts, **reasons}


class _Tally:
    """Counts the samples that pass, and notes their columns of pictures."""

    def __init__(self, columns: set[str]) -> None:
        self.num, self.columns = 0, columns

    def follow(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Yields the samples."""
        for sample in samples:
            self.num += 1
            self.columns.update(sample.pictures)
            yield sample


def _check_source(location: Location) -> None:
    """Raises a ValueError if a run has no dataset yet: its other parquet files are no dataset."""
    is_run = location.kind == "path" and (location.path / "config.json").is_file()
    if is_run and (location.path / "triplets").is_dir() and dataset_in(location.path) == location.path:
        raise ValueError(f"{location.word} has no dataset yet. Run `ip2p dataset` into that folder first.")


def _open_splits(location: Location, split: str | None, revision: str | None) -> dict[str, Table]:
    """Opens the named split, or every split that a source has. ValueError if there is none."""
    if split is not None:
        return {split: open_table(location, split=split, revision=revision)}
    if location.kind == "hub":
        from datasets import get_dataset_split_names

        names: Sequence[str] = get_dataset_split_names(location.word, revision=revision)
        return {name: open_table(location, split=name, revision=revision) for name in names}
    return {name: open_table(location, split=name) for name in split_names(location)}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a hidden folder to fill, which takes the place of `out` at the end. ValueError if `out` is not ours."""
    if out.is_dir() and any(out.iterdir()) and not (out / NOTE).is_file():
        raise ValueError(f"{out} is not empty and holds no export. Give another folder with --out.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file. Give another folder with --out.")
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    lock_path = out.with_name(f".{out.name}.lock")
    lock = store.lock_file(lock_path)
    if lock is None:
        raise ValueError(f"another process exports into {out}. Wait for it, or give another folder with --out.")
    try:
        for leftover in (partial, store.old_folder(out)):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        yield partial
        store.replace_folder(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock_path.unlink(missing_ok=True)
        lock.release()


def _samples(table: Table, word: str, reasons: Counter[str], split: str) -> Iterator[Sample]:
    """Yields the usable rows of a table, numbered; their pictures are checked in parallel."""
    mapping = map_columns(table.names, None, where=word)
    rows = table.read(table.names)
    number = 0
    with ThreadPoolExecutor() as pool, tqdm(total=len(table), desc=split, unit="pair", disable=None) as bar:
        while chunk := list(itertools.islice(rows, AT_ONCE)):
            for row, content in zip(chunk, pool.map(lambda row: _contents_of(row, mapping), chunk), strict=True):
                bar.update()
                if isinstance(content, ValueError):
                    reasons[str(content).partition(":")[0]] += 1
                    if reasons.total() <= 3:
                        logger.warning("left out %s: %s", row.where, content)
                    continue
                yield Sample(number, content, _texts_of(row, mapping), _further_of(row, mapping))
                number += 1


def _contents_of(row: Row, mapping: Mapping[str, str]) -> dict[str, bytes] | ValueError:
    """Returns the pictures of a row by our columns, or why it cannot be used."""
    try:
        if row.wording(mapping["edit_prompt"]) is None:
            raise ValueError("no instruction")
        pictures = {side: row.content(mapping[side]) for side in SIDES}
        if not all(pictures.values()):
            raise ValueError("no image")
        pictures |= {name: row.content(mapping[name]) for name in FURTHER_PICTURES if name in mapping}
        pictures.setdefault("reference_image_2", row.content(mapping["original_image"], 1))
        return {
            name: encode_mask(content) if name == "mask_image" else plain_file(content)[0]
            for name, content in pictures.items()
            if content
        }
    except ValueError as error:
        return error


def _texts_of(row: Row, mapping: Mapping[str, str]) -> dict[str, str]:
    texts = {name: row.text(mapping[name]) for name in TEXTS if name in mapping}
    texts["edit_prompt"] = (row.wording(mapping["edit_prompt"]) or "").strip()
    has_captions = texts.get("original_prompt") and texts.get("edited_prompt")
    if not texts.get("group") and not has_captions and (source := row.text("source")):
        texts["group"] = source  # such pairs are split by the picture that they come from
    return texts


def _further_of(row: Row, mapping: Mapping[str, str]) -> dict[str, Any]:
    """Returns the plain values of a row's other columns: no pictures, and nothing that is missing."""
    taken = {*mapping.values(), *TEXTS, *PICTURES}
    values = {name: value for name, value in row.values.items() if name not in taken}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int)


def _list(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
