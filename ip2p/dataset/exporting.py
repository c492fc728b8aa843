"""Exports pairs in the layout of another trainer, so that the folder appears whole or not at all.

Pairs are read and written one after another, whatever holds them: the dataset of a run, parquet files, an image folder
or the hub. Pictures are written as they are stored, unless they are not upright RGB. Rows that cannot be used are left
out and counted.

Until it is whole, an export lies in a hidden folder with a record of how far it is. After a kill, the same export of
the same source goes on from there.
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
from operator import itemgetter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ip2p import __version__, store
from ip2p.config import fingerprint
from ip2p.dataset.layouts import Export, Layout, Sample
from ip2p.images import encode_mask, plain_file
from ip2p.sources.columns import FURTHER_PICTURES, PICTURES, SIDES, map_columns
from ip2p.sources.content import Source, content_of, version_of
from ip2p.sources.location import Location, data_files, dataset_in, locate
from ip2p.sources.pairs import TEXTS
from ip2p.sources.row import Row, Table
from ip2p.sources.rows import open_table, split_names
from ip2p.store.journal import RecordFile

logger = logging.getLogger(__name__)

NOTE = "export.json"
"""The file that says what a folder is an export of; it is written last."""
PROGRESS = ".progress.jsonl"
"""The file that says how far a hidden folder is; its first record says what it is made from."""
AT_ONCE = 32
"""Rows whose pictures are checked at a time."""
MOST_WARNINGS = 3
"""Rows of a split that are named when they are left out."""
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
    content = _content_of(location, revision)
    made_from = fingerprint(layout.name, __version__, source, list(tables), content) if content else None
    with new_folder(out, made_from) as folder:
        splits = {
            name: _Split(name, table, location.word, RecordFile(folder / PROGRESS), layout.num_whole(folder / name))
            for name, table in tables.items()
        }
        for name, each in splits.items():
            layout.write_split(each.samples(), folder / name)
            if not each.num:
                shutil.rmtree(folder / name, ignore_errors=True)
        counts = {name: each.num for name, each in splits.items() if each.num}
        reasons = sum((each.reasons for each in splits.values()), Counter[str]())
        if not counts:
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            raise ValueError(f"{source} has no usable pair: {listed or 'it is empty'}.")
        columns = frozenset[str]().union(*(each.columns for each in splits.values()))
        layout.write_config(Export(folder=folder, final=out.resolve(), counts=counts, columns=columns))
        store.write_json(
            folder / NOTE, {"layout": layout.name, "ip2p": __version__, "splits": counts, "left_out": dict(reasons)}
        )
    return {**counts, **reasons}


def _content_of(location: Location, revision: str | None) -> str | None:
    """Returns what tells one state of a source from another; None if nothing does."""
    if location.kind == "glob":
        return version_of(data_files(location))
    name = str(dataset_in(location.path)) if location.kind == "path" else location.word
    return content_of(Source("data", name, revision, is_data=True))


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
def new_folder(out: Path, made_from: str | None = None) -> Iterator[Path]:
    """Gives a hidden folder to fill, which takes the place of `out` at the end. ValueError if `out` is not ours.

    It is as a kill left it if the same `made_from` was being written, and empty otherwise.
    """
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
        shutil.rmtree(store.old_folder(out), ignore_errors=True)
        _start(partial, made_from)
        yield partial
        RecordFile(partial / PROGRESS).remove()
        store.replace_folder(out, partial)
    except BaseException as error:
        if made_from is None or isinstance(error, ValueError):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        lock_path.unlink(missing_ok=True)
        lock.release()


def _start(partial: Path, made_from: str | None) -> None:
    """Makes the hidden folder, and keeps what is in it if that was made from the same."""
    progress = RecordFile(partial / PROGRESS)
    if made_from is not None and progress.read()[:1] == [{"made_from": made_from}]:
        logger.info("going on with the export that was interrupted")
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    progress.append({"made_from": made_from})


class _Split:
    """The usable rows of a split, and how far they have been read."""

    def __init__(self, name: str, table: Table, word: str, progress: RecordFile, num_whole: int) -> None:
        """Goes back to the last place in the records before which every sample is whole."""
        self.name, self.table, self.progress, self.num_whole = name, table, progress, num_whole
        self.mapping = map_columns(table.names, None, where=word)
        records = (record for record in progress.read()[1:] if record["split"] == name and record["num"] <= num_whole)
        last: dict[str, Any] = max(records, key=itemgetter("rows"), default={})
        self.num_rows: int = last.get("rows", 0)
        self.num: int = last.get("num", 0)
        self.reasons = Counter[str](last.get("reasons", {}))
        self.columns = set[str](last.get("columns", []))

    def samples(self) -> Iterator[Sample]:
        """Yields the samples behind those that are whole, numbered; their pictures are checked in parallel.

        When the next stretch of rows is asked for, the samples of those before it have been written.
        """
        rows = itertools.islice(self.table.read(self.table.names), self.num_rows, None)
        total, initial = len(self.table), self.num_rows
        with (
            ThreadPoolExecutor() as pool,
            tqdm(total=total, initial=initial, desc=self.name, unit="pair", disable=None) as bar,
        ):
            while chunk := list(itertools.islice(rows, AT_ONCE)):
                self._record()
                contents = pool.map(lambda row: _contents_of(row, self.mapping), chunk)
                for row, content in zip(chunk, contents, strict=True):
                    bar.update()
                    self.num_rows += 1
                    if isinstance(content, ValueError):
                        self._leave_out(row, content)
                        continue
                    self.columns.update(content)
                    if self.num >= self.num_whole:
                        yield Sample(self.num, content, _texts_of(row, self.mapping), _further_of(row, self.mapping))
                    self.num += 1

    def _record(self) -> None:
        counts = {"rows": self.num_rows, "num": self.num, "reasons": dict(self.reasons)}
        self.progress.append({"split": self.name, **counts, "columns": sorted(self.columns)})

    def _leave_out(self, row: Row, error: ValueError) -> None:
        self.reasons[str(error).partition(":")[0]] += 1
        if self.reasons.total() <= MOST_WARNINGS:
            logger.warning("left out %s: %s", row.where, error)


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
