"""Finds near-duplicates: pairs whose two images are both similar to those of a kept pair, by CLIP's embeddings.

The search is exact, and its cost grows with the square of the pairs. So most of it is done in a few directions: in
those in which the images differ most, and with what is left taken at its most, no cosine is underestimated. Only the
few that may reach the limit are computed in full. Rows are compared with all before them, in parts that may run at the
same time and on their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ip2p import store
from ip2p.dataset.split import accepted_rows
from ip2p.records import EMBEDDINGS_COLUMN

ROWS, COLUMNS = 512, 2**14
"""Size of the block of similarities that is held at a time."""
PART_ROWS = 2**14
"""Rows that a part compares with all before them."""
AXES = 64
"""Directions in which embeddings are compared first."""
SAMPLE = 4096
"""Embeddings that the directions are chosen by; they decide the speed alone."""
SLACK = 1e-4
"""More than float32 errs by in a cosine."""
MANY = 0.05
"""Share of a block that may reach the limit from which on the whole block is computed in full."""

Embeddings = np.ndarray
"""(N, 2, D) float16: N pairs of an original and an edited image."""


class Alike(NamedTuple):
    """Pairs of rows that are alike: the later one, the earlier one, and the smaller cosine of their two images."""

    later: np.ndarray
    earlier: np.ndarray
    cosine: np.ndarray


def find_near_duplicates(embeddings: Embeddings, limit: float) -> np.ndarray:
    """Marks (N,) pairs of which both images have a cosine of at least `limit` to those of an earlier, kept pair."""
    return repeats_among(len(embeddings), find_all_alike(embeddings, limit), limit)


def find_all_alike(embeddings: Embeddings, limit: float) -> list[Alike]:
    """Finds all rows that are alike."""
    outlines = outline(embeddings, axes_of(embeddings))
    return [find_alike(embeddings, outlines, part, limit) for part in range(num_parts(len(embeddings)))]


def num_parts(num_rows: int) -> int:
    """Returns the number of parts."""
    return -(-num_rows // PART_ROWS)


def repeats_among(num_rows: int, alike: Iterable[Alike], limit: float) -> np.ndarray:
    """Marks rows that are alike, by at least `limit`, to an earlier one that is not marked; takes parts in order."""
    dropped = np.zeros(num_rows, dtype=bool)
    for part in alike:
        order = np.argsort(part.later, kind="stable")
        order = order[part.cosine[order] >= limit]
        for later, earlier in zip(part.later[order].tolist(), part.earlier[order].tolist(), strict=True):
            if not dropped[earlier]:
                dropped[later] = True
    return dropped


def axes_of(embeddings: Embeddings) -> np.ndarray:
    """Returns (D, K) orthonormal directions in which the original images of a sample lie most."""
    step = max(1, len(embeddings) // SAMPLE)
    sample = embeddings[::step, 0].astype(np.float32)
    _, vectors = np.linalg.eigh(sample.T @ sample)  # in the order of their shares, from the smallest
    return np.ascontiguousarray(vectors[:, -AXES:])


def outline(embeddings: Embeddings, axes: np.ndarray) -> np.ndarray:
    """Returns (N, K + 1) original images in the directions, and the length of what is left.

    The product of two of them is no less than that of the embeddings, by the inequality of Cauchy and Schwarz.
    """
    originals = embeddings[:, 0].astype(np.float32)
    inside = originals @ axes
    left = np.einsum("nd,nd->n", originals, originals) - np.einsum("nk,nk->n", inside, inside)
    return np.concatenate([inside, np.sqrt(np.maximum(left, 0))[:, None]], axis=1, dtype=np.float32)


def find_alike(embeddings: Embeddings, outlines: np.ndarray, part: int, limit: float) -> Alike:
    """Finds the rows of a part that are alike to earlier ones."""
    blocks_alike: list[Alike] = []
    end = min(len(embeddings), (part + 1) * PART_ROWS)
    for start in range(part * PART_ROWS, end, ROWS):
        stop = min(end, start + ROWS)
        blocks = (slice(begin, min(stop, begin + COLUMNS)) for begin in range(0, stop, COLUMNS))
        blocks_alike += [_alike(embeddings, outlines, slice(start, stop), block, limit) for block in blocks]
    return Alike(*(np.concatenate(values) for values in zip(*blocks_alike, strict=True)))


def _alike(embeddings: Embeddings, outlines: np.ndarray, rows: slice, columns: slice, limit: float) -> Alike:
    """Finds the rows of a block that are alike to earlier ones among its columns."""
    may_be = outlines[rows] @ outlines[columns].T >= limit - SLACK
    if may_be.mean() > MANY:
        originals = (embeddings[part, 0].astype(np.float32) for part in (rows, columns))
        may_be = np.matmul(next(originals), next(originals).T) >= limit - SLACK
    later, earlier = np.nonzero(may_be)
    later, earlier = later + rows.start, earlier + columns.start
    is_before = earlier < later
    later, earlier = later[is_before], earlier[is_before]
    cosine = np.concatenate([np.empty(0, np.float32), *_cosines(embeddings, later, earlier)])
    is_alike = cosine >= limit
    return Alike(later[is_alike], earlier[is_alike], cosine[is_alike])


def _cosines(embeddings: Embeddings, later: np.ndarray, earlier: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the smaller cosine of the two images, for a block of rows at a time."""
    for start in range(0, len(later), ROWS):
        one, other = (embeddings[rows[start : start + ROWS]].astype(np.float32) for rows in (later, earlier))
        yield np.einsum("ncd,ncd->nc", one, other).min(axis=1)


def read_embeddings(shards: Sequence[Path], most: int | None = None) -> Iterator[Embeddings]:
    """Yields the embeddings of the first accepted pairs, in order, up to `most`. ValueError if a pair has none."""
    num, missing = 0, 0
    for path in shards:
        values = _column(path)[: None if most is None else most - num]
        num, missing = num + len(values), missing + values.null_count
        if len(values) and not values.null_count:
            yield _as_array(values)
    if missing:
        raise ValueError(
            f"{missing} of {num} pairs have no embeddings to find near-duplicates by: they were imported "
            "without scores or rendered by an older version. Import them with --score, or leave "
            "dataset.max_duplicate_similarity out."
        )


def _column(path: Path) -> pa.Array:
    """Reads the embeddings of a shard's accepted pairs; nulls if an older version wrote no such column."""
    with pq.ParquetFile(path) as file:
        names = [name for name in ("accepted", EMBEDDINGS_COLUMN) if name in file.schema_arrow.names]
        table = file.read(columns=names)
    rows = pa.array(accepted_rows(table))
    if EMBEDDINGS_COLUMN not in names:
        return pa.nulls(len(rows), pa.binary())
    return table[EMBEDDINGS_COLUMN].combine_chunks().take(rows)


def _as_array(values: pa.BinaryArray) -> Embeddings:
    """Returns values of one length as numbers, without a copy."""
    _, offsets, content = values.buffers()
    first, last = np.frombuffer(offsets, np.int32)[[values.offset, values.offset + len(values)]]
    numbers: Embeddings = np.frombuffer(content, np.uint8)[first:last].view(np.float16)
    return numbers.reshape(len(values), 2, -1)


WIDTHS = "widths.json"


def write_embeddings(folder: Path, shards: Sequence[Path]) -> int:
    """Copies the embeddings of all accepted pairs into two files, as they are and in outline; returns the parts."""
    folder.mkdir(parents=True, exist_ok=True)
    width = 1
    with (folder / "embeddings").open("wb") as file:
        for values in read_embeddings(shards):
            file.write(values.tobytes())
            width = values.shape[-1]
    embeddings = _open(folder / "embeddings", np.float16, (-1, 2, width))
    axes = axes_of(embeddings)
    with (folder / "outlines").open("wb") as file:
        for start in range(0, len(embeddings), COLUMNS):
            file.write(outline(embeddings[start : start + COLUMNS], axes).tobytes())
    store.write_json(folder / WIDTHS, {"embeddings": width, "outlines": axes.shape[1] + 1})
    return num_parts(len(embeddings))


def write_alike(folder: Path, part: int, limit: float) -> None:
    """Finds the rows of a part that are alike to earlier ones, and writes them down, unless that is done."""
    path, widths = _path_of(folder, part), store.read_json(folder / WIDTHS)
    if path.exists():
        return
    embeddings = _open(folder / "embeddings", np.float16, (-1, 2, widths["embeddings"]))
    outlines = _open(folder / "outlines", np.float32, (-1, widths["outlines"]))
    alike = find_alike(embeddings, outlines, part, limit)
    store.write_atomic(path, lambda file: np.savez(file, **alike._asdict()))


def read_repeats(folder: Path, limit: float) -> np.ndarray:
    """Marks the accepted pairs that repeat an earlier one, by what the parts found. RuntimeError if one is missing."""
    widths = store.read_json(folder / WIDTHS)
    num_rows = len(_open(folder / "embeddings", np.float16, (-1, 2, widths["embeddings"])))
    return repeats_among(num_rows, (_read_alike(folder, part) for part in range(num_parts(num_rows))), limit)


def _read_alike(folder: Path, part: int) -> Alike:
    path = _path_of(folder, part)
    if not path.exists():
        raise RuntimeError(f"{path} is missing. Compare the pairs first.")
    with np.load(path) as values:
        return Alike(*(values[name] for name in Alike._fields))


def _path_of(folder: Path, part: int) -> Path:
    return folder / f"alike-{part:05d}.npz"


def _open(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """Maps a file into memory; an empty one cannot be."""
    return np.memmap(path, kind, "r").reshape(shape) if path.stat().st_size else np.empty((0, *shape[1:]), kind)
