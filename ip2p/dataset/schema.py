"""The columns of the dataset, and how its parquet files are laid out.

The first five are those of `timbrooks/instructpix2pix-clip-filtered`; the rest makes every row traceable and the whole
set filterable again. The `huggingface` metadata makes the image columns `Image` features even without a card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.images import IMAGE_TYPE
from ip2p.records import DRAWN_COLUMNS, LATER_COLUMNS
from ip2p.scoring import LATER_SCORES, SCORE_COLUMNS

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
    **dict.fromkeys((name for name in DRAWN_COLUMNS if name not in LATER_COLUMNS), pa.float64()),
    **dict.fromkeys((name for name in SCORE_COLUMNS if name not in LATER_SCORES), pa.float64()),
}
_DTYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64", IMAGE_TYPE: "image"}

_OPTIONAL = {
    "picture": pa.string(),
    "shown_prompt": pa.string(),
    **dict.fromkeys(("image_guidance_scale", "strength", *LATER_SCORES), pa.float64()),
}
"""Columns of which a dataset has those that its pairs have: of pairs made from pictures, of judges, and of scores."""

WRITTEN = "written_prompt"
"""The column of the instruction that a pair was made for, in a dataset whose `edit_prompt` is the one it shows."""

COLUMNS = tuple(_TYPES)
"""The columns of every dataset; those of further pictures come after them."""


def schema_of(shards: Iterable[Path], further: Sequence[str] = (), *, has_written: bool = False) -> pa.Schema:
    """Returns the arrow schema of a dataset of these pairs and columns of further pictures.

    If it `has_written`, the instruction that a pair was made for has a column beside `edit_prompt`. Its metadata has
    the features, as `datasets` writes them.
    """
    present = {name for path in shards for name in pq.read_schema(path).names}
    types = _TYPES | {name: kind for name, kind in _OPTIONAL.items() if name in present}
    types |= {WRITTEN: pa.string()} if has_written else {}
    types |= dict.fromkeys(further, IMAGE_TYPE)
    features = {
        name: {"_type": "Image"} if kind == IMAGE_TYPE else {"dtype": _DTYPES[kind], "_type": "Value"}
        for name, kind in types.items()
    }
    return pa.schema(list(types.items()), metadata={"huggingface": json.dumps({"info": {"features": features}})})


def card_features(schema: pa.Schema) -> list[dict[str, str]]:
    """Returns the features as a dataset card lists them."""
    return [{"name": field.name, "dtype": _DTYPES[field.type]} for field in schema]


ROW_GROUP_BYTES = 100 * 2**20
"""Uncompressed size of a row group; a reader holds one at a time."""

CHUNKING = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}
"""Content-defined chunking as `datasets` sets it: a store that de-duplicates keeps unchanged rows once."""


def open_writer(file: Path | IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    """Opens a parquet writer: images are stored as they are, the rest is compressed; page index and chunking are on."""
    pictures = [field.name for field in schema if field.type == IMAGE_TYPE]
    images = [f"{column}.{leaf}" for column in pictures for leaf in ("bytes", "path")]
    others = [name for name in schema.names if name not in pictures]
    return pq.ParquetWriter(
        file,
        schema,
        compression={**dict.fromkeys(others, "snappy"), **dict.fromkeys(images, "none")},
        use_dictionary=others,
        write_page_index=True,
        use_content_defined_chunking=CHUNKING,
    )
