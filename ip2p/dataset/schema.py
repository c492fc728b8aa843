"""The columns of the dataset, and how its parquet files are laid out.

The first five are those of `timbrooks/instructpix2pix-clip-filtered`; the rest makes every row traceable and the whole
set filterable again. The `huggingface` metadata makes the image columns `Image` features even without a card.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.images import IMAGE_TYPE
from ip2p.records import DRAWN_COLUMNS
from ip2p.scoring import SCORE_COLUMNS
from ip2p.sources.columns import SIDES

_TYPES: dict[str, pa.DataType] = {
    "original_prompt": pa.string(),
    "original_image": IMAGE_TYPE,
    "edit_prompt": pa.string(),
    "edited_prompt": pa.string(),
    "edited_image": IMAGE_TYPE,
    "edit_type": pa.string(),
    "triplet_id": pa.string(),
    "source": pa.string(),
    "candidate": pa.int64(),
    "seed": pa.int64(),
    **dict.fromkeys((*DRAWN_COLUMNS, *SCORE_COLUMNS), pa.float64()),
}
_DTYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64", IMAGE_TYPE: "image"}

COLUMNS = tuple(_TYPES)
"""The columns of every dataset; those of further pictures come after them."""


def card_features(further: Sequence[str]) -> list[dict[str, str]]:
    """Returns the features as a dataset card lists them, with columns of further pictures."""
    return [{"name": name, "dtype": _DTYPES[kind]} for name, kind in _types(further).items()]


def schema_of(further: Sequence[str]) -> pa.Schema:
    """Returns the arrow schema, with the features in its metadata as `datasets` writes them."""
    features = {
        name: {"_type": "Image"} if kind == IMAGE_TYPE else {"dtype": _DTYPES[kind], "_type": "Value"}
        for name, kind in _types(further).items()
    }
    told = json.dumps({"info": {"features": features}})
    return pa.schema(list(_types(further).items()), metadata={"huggingface": told})


def _types(further: Sequence[str]) -> dict[str, pa.DataType]:
    return _TYPES | dict.fromkeys(further, IMAGE_TYPE)


ROW_GROUP_BYTES = 100 * 2**20
"""Uncompressed size of a row group; a reader holds one at a time."""

CHUNKING = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}
"""Content-defined chunking as `datasets` sets it: a store that de-duplicates keeps unchanged rows once."""


def open_writer(path: Path, further: Sequence[str] = ()) -> pq.ParquetWriter:
    """Opens a parquet writer: images are stored as they are, the rest is compressed; page index and chunking are on."""
    images = [f"{column}.{leaf}" for column in (*SIDES, *further) for leaf in ("bytes", "path")]
    others = [name for name in COLUMNS if name not in SIDES]
    return pq.ParquetWriter(
        path,
        schema_of(further),
        compression={**dict.fromkeys(others, "snappy"), **dict.fromkeys(images, "none")},
        use_dictionary=others,
        write_page_index=True,
        use_content_defined_chunking=CHUNKING,
    )
