"""The real pictures that triplets are about: how they are stored in a run, as they are edited, scored and trained on.

A picture is opened upright in RGB, cropped to the shape that the maker edits, resized and encoded once; its hash over
the stored bytes is its name. Each shard of prompts has one of pictures, `pictures/part-00003.parquet`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ip2p import store
from ip2p.config import MADE_BY_SERVER, PipelineConfig, RenderingConfig, fingerprint
from ip2p.images import IMAGE_TYPE, Picture, encode_image, fit_picture, format_of, open_picture
from ip2p.prompts.asking import Subject
from ip2p.prompts.captions import PictureEntry
from ip2p.prompts.format import Reason
from ip2p.prompts.picture_sources import read_picture
from ip2p.records import hash_picture

logger = logging.getLogger(__name__)

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


def write_pictures(
    out: Path, number: int, pictures: Mapping[str, bytes], *, fingerprint: str, names: Sequence[str] = ()
) -> store.Sidecar:
    """Writes the pictures of a shard of prompts by their hash; `names` are those of its entries, empty if unusable."""
    rows = [
        {"picture": name, "image": {"bytes": content, "path": f"{name}.{format_of(content)}"}}
        for name, content in pictures.items()
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    counts, extra = {"pictures": len(rows)}, {"names": list(names)}
    return store.write_shard(
        _path(out, number), table, fingerprint=fingerprint, seconds=0.0, counts=counts, extra=extra
    )


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


def store_pictures(config: PipelineConfig, number: int, entries: Sequence[PictureEntry]) -> list[Subject]:
    """Stores the pictures of a shard unless it is done; returns what to ask about each, or why it is left out."""
    size, digest = target_size(config.rendering), pictures_fingerprint(config.rendering, entries)
    done = store.finished(_path(config.out, number), digest)
    if done is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            prepared = list(pool.map(partial(_prepare_entry, config, size), entries))
        pictures = {hash_picture(content): content for content in prepared if content}
        names = [hash_picture(content) if content else "" for content in prepared]
        done = write_pictures(config.out, number, pictures, fingerprint=digest, names=names)
    return _subjects(entries, done.extra["names"])


def _subjects(entries: Sequence[PictureEntry], names: Sequence[str]) -> list[Subject]:
    seen, subjects = set[tuple[str, str]](), []
    for entry, name in zip(entries, names, strict=True):
        reason: Reason = "unreadable" if not name else "duplicate" if (name, entry.caption) in seen else ""
        seen.add((name, entry.caption))
        subjects.append(Subject(entry.caption, name, reason))
    return subjects


def pictures_fingerprint(config: RenderingConfig, entries: Sequence[PictureEntry]) -> str:
    """Hashes what decides the stored pictures of a shard: their versions, their size and the codec."""
    codec = config.image_format, config.image_quality
    return fingerprint("pictures", [entry.version for entry in entries], target_size(config), codec)


def _prepare_entry(config: PipelineConfig, size: tuple[int, int] | None, entry: PictureEntry) -> bytes | None:
    """Returns a picture as it is stored; None, with a warning, if it cannot be read."""
    try:
        picture = read_picture(config.prompts, entry)
        if picture is None:
            raise ValueError("there is no picture")
        return prepare(picture, size, config.rendering)
    except (ValueError, OSError) as error:
        logger.warning("picture %d of %s is left out: %s", entry.number, config.prompts.pictures, error)
        return None


def _path(out: Path, number: int) -> Path:
    return store.RunFolder(out).shard("pictures", number)


def _native_side(config: RenderingConfig) -> int:
    """Reads the side from the autoencoder's config, without its weights."""
    from diffusers import AutoencoderKL

    from ip2p.models.loading import check_model_source, from_source, load_once

    def load() -> int:
        source = check_model_source(config.model, what="rendering.model", marker="model_index.json")
        options: dict[str, Any] = {"revision": config.revision, "subfolder": "vae"}
        way_out = "Set rendering.height and rendering.width."
        side = from_source(AutoencoderKL.load_config, source, way_out=way_out, **options).get("sample_size", SIDE)
        return int(side if isinstance(side, int) else min(side))

    return load_once(("native side", config.model, config.revision), load, files=[config.model])
