"""WebDataset: tar archives in which the files of one sample share their name up to the first dot."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ip2p.dataset.layouts.layout import SUFFIXES, Layout, Sample
from ip2p.images import format_of
from ip2p.sources.tars import read_index

ARCHIVE_BYTES = 1 << 30
"""Size from which on a new archive is begun."""


def write_split(samples: Iterable[Sample], folder: Path) -> None:
    """Writes the archives of a split, beside each other; one has its name when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    remaining, number = iter(samples), len(list(folder.glob("*.tar")))
    while (first := next(remaining, None)) is not None:
        path = folder / f"{folder.name}-{number:06d}.tar"
        partial = path.with_suffix(".partial")
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
            _add(archive, first)
            while archive.offset < ARCHIVE_BYTES and (sample := next(remaining, None)) is not None:
                _add(archive, sample)
        partial.replace(path)
        number += 1


def num_archived(folder: Path) -> int:
    """Counts the samples of the archives that are whole."""
    return sum(len(read_index(path)) for path in folder.glob("*.tar"))


def _add(archive: tarfile.TarFile, sample: Sample) -> None:
    for name, content in _members(sample):
        member = tarfile.TarInfo(f"{sample.stem}.{name}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    archive.members = []  # type: ignore[attr-defined]  # it would keep every header


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    for column, content in sample.pictures.items():
        yield f"{column}{SUFFIXES[format_of(content)]}", content
    yield "json", json.dumps(sample.values, ensure_ascii=False).encode()
    yield "txt", sample.texts["edit_prompt"].encode()


LAYOUT = Layout(
    name="webdataset",
    trainer="`webdataset`, `datasets` and what is built on them",
    start="python -c \"import datasets; print(datasets.load_dataset('FOLDER'))\"",
    write_split=write_split,
    num_whole=num_archived,
)
