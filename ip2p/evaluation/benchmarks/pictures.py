"""Anybody's pictures with instructions, and two photographs that come with scikit-learn."""

from __future__ import annotations

from functools import partial

import numpy as np

from ip2p.evaluation.benchmark_cases import file_loaders
from ip2p.evaluation.benchmarks import TEXTS, Asked, Benchmark, SourceEdit
from ip2p.presets import data_folder
from ip2p.sources.edits import read_edits
from ip2p.sources.files import read_json_file

COLUMNS = {"original_image": "image", "target_image": "target", "mask": "mask"}


class Pictures(Benchmark):
    """Measures what a list of edits has a ground truth for."""

    name = "pictures"
    order = 80
    words = "pictures with instructions: every measure that their ground truth allows"
    published = {"clip_direction": "", "clip_image": "", "clip_edited": "", "l1": ""}

    def read(self, asked: Asked) -> list[SourceEdit] | None:
        """Reads lines of `image, edit_prompt` and perhaps `target, mask` and captions, or the photographs."""
        if asked.source == "photographs":
            return _read_photographs()
        listing = asked.path if asked.path.suffix == ".jsonl" else asked.path / "edits.jsonl"
        if not listing.is_file():
            return None
        return [
            SourceEdit(
                {name: row.text(name) for name in TEXTS},
                file_loaders({field: row.picture(column) for field, column in COLUMNS.items()}),
            )
            for row in read_edits(listing, *COLUMNS.values())
        ]


def _read_photographs() -> list[SourceEdit]:
    """Reads our edits of the two photographs that scikit-learn ships."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        command = "pip install 'ip2p[photographs]'"
        raise ValueError(f"the photographs come with scikit-learn. Install it with: {command}") from error
    images = dict(zip(("china.jpg", "flower.jpg"), load_sample_images().images, strict=True))
    rows = [dict(row) for _, row in read_json_file(data_folder() / "photographs.jsonl")]
    return [SourceEdit(row, {"original_image": partial(np.asarray, images[row.pop("image")])}) for row in rows]
