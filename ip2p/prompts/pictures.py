"""The real pictures that triplets are about: how they are stored in a run, as they are edited, scored and trained on.

A picture is opened upright in RGB, cropped to the shape that the maker edits, resized and encoded once; its hash over
the stored bytes is its name. Each shard of prompts has one of pictures, `pictures/part-00003.parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import MADE_BY_SERVER, RenderingConfig
from ip2p.images import IMAGE_TYPE, Picture, encode_image, fit_picture, format_of, open_picture
from ip2p.records import hash_picture

SCHEMA = pa.schema([("picture", pa.string()), ("image", IMAGE_TYPE)])
SIDE = 512
"""Pixels on a side of a maker's own pictures if its autoencoder does not say."""


def target_size(config: RenderingConfig) -> tuple[int, int] | None:
    """Returns the (width, height) that pictures are stored in; None to keep each one's own.

    What is not set is the side that the maker's autoencoder was trained with. Only a server has none.
    """
    if config.width and config.height:
        return config.width, config.height
    if config.backend in MADE_BY_SERVER:
        return None
    side = _native_side(config)
    return config.width or side, config.height or side


def prepare(picture: Picture, size: tuple[int, int] | None, config: RenderingConfig) -> bytes:
    """Returns a picture as it is stored. ValueError if it does not decode or is too large."""
    opened = open_picture(picture)
    fitted = opened if size is None else fit_picture(opened, size)
    return encode_image(np.asarray(fitted), config.image_format, config.image_quality)


def write_pictures(out: Path, number: int, pictures: Mapping[str, bytes], *, fingerprint: str) -> store.Sidecar:
    """Writes the pictures of a shard of prompts by their hash."""
    rows = [
        {"picture": name, "image": {"bytes": content, "path": f"{name}.{format_of(content)}"}}
        for name, content in pictures.items()
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    counts = {"pictures": len(rows)}
    return store.write_shard(_path(out, number), table, fingerprint=fingerprint, seconds=0.0, counts=counts)


def pictures_done(out: Path, number: int, fingerprint: str) -> bool:
    """Returns whether the pictures of a shard are stored, whole, under this fingerprint."""
    return store.finished(_path(out, number), fingerprint) is not None


def read_pictures(out: Path, number: int) -> dict[str, bytes]:
    """Reads the pictures of a shard of prompts by their hash, those alone whose bytes have it; empty if there are none.

    A picture that was damaged is thus missing.
    """
    path = _path(out, number)
    if not path.exists():
        return {}
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    contents = ((row["picture"], row["image"]["bytes"]) for row in rows)
    return {name: content for name, content in contents if hash_picture(content) == name}


def _path(out: Path, number: int) -> Path:
    return store.RunFolder(out).shard("pictures", number)


def _native_side(config: RenderingConfig) -> int:
    """Reads the side from the autoencoder's config, without its weights."""
    from diffusers.configuration_utils import ConfigMixin

    from ip2p.models.loading import check_model_source, from_source

    source = check_model_source(config.model, what="rendering.model", marker="model_index.json")
    settings = from_source(ConfigMixin.load_config, source, revision=config.revision, subfolder="vae")
    side = settings.get("sample_size", SIDE)
    return int(side if isinstance(side, int) else min(side))
