"""Which edits are held out: drawn by the domain, or the dataset's test split where there is no domain."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ip2p.config import PipelineConfig
from ip2p.evaluation.domain import Domain, EditCase, Mask, Pixels
from ip2p.records import content_hash
from ip2p.store import RunFolder

logger = logging.getLogger(__name__)

_PROMPTS = ("original_prompt", "edited_prompt")


def hold_out_cases(config: PipelineConfig, domain: Domain | None, data: Path | None = None) -> list[EditCase]:
    """The held-out edits of a run; `data` is a dataset folder other than the run's own."""
    if domain is not None:
        return domain.draw_cases(config.evaluation.num_edits, config.evaluation.seed)
    folder = data or RunFolder(config.out).dataset
    return read_test_split(folder / "dataset" if (folder / "dataset").is_dir() else folder, config)


def read_test_split(folder: Path, config: PipelineConfig) -> list[EditCase]:
    """The first rows of a dataset folder's test split; rows whose image does not decode are left out."""
    files = sorted((folder / "data").glob("test-*.parquet")) or sorted(folder.glob("test-*.parquet"))
    cases: list[EditCase] = []
    for file in files:
        cases += _read_cases(file, config, config.evaluation.num_edits - len(cases))
        if len(cases) >= config.evaluation.num_edits:
            break
    return cases


def _read_cases(file: Path, config: PipelineConfig, num: int) -> list[EditCase]:
    names = pq.read_schema(file).names
    image_column, text_column = config.training.original_image_column, config.training.edit_prompt_column
    missing = [name for name in (image_column, text_column) if name not in names]
    if missing:
        have = ", ".join(names)
        raise ValueError(
            f"{file} lacks the column {missing[0]}; it has {have}. Set training.original_image_column and the like."
        )
    wanted = [image_column, text_column, *(name for name in (*_PROMPTS, "edit_type") if name in names)]
    cases: list[EditCase] = []
    for batch in pq.ParquetFile(file).iter_batches(batch_size=64, columns=wanted):
        for row in batch.to_pylist():
            image = _decode_or_none(row[image_column])
            if image is None:
                logger.warning("left out a row of %s: its image does not decode", file.name)
                continue
            if len(cases) == num:
                return cases
            original, edited = (str(row.get(name) or "") for name in _PROMPTS)
            cases.append(
                EditCase(
                    original_image=image,
                    edit_prompt=row[text_column] or "",
                    original_prompt=original,
                    edited_prompt=edited,
                    edit_type=row.get("edit_type") or "other",
                )
            )
    return cases


def _decode_or_none(cell: dict[str, bytes] | None) -> Pixels | None:
    try:
        return decode_image((cell or {})["bytes"])
    except (OSError, KeyError, TypeError):
        return None


def decode_image(content: bytes) -> Pixels:
    """An encoded image as (height, width, 3) uint8."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def encode_png(pixels: Pixels) -> bytes:
    """An image as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def balanced_subset(cases: Sequence[EditCase], num: int) -> list[int]:
    """Numbers of at most `num` cases, taken in turns from every edit type, in rising order."""
    by_type: dict[str, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        by_type[case.edit_type].append(number)
    turns = [(turn, order, number) for order, some in enumerate(by_type.values()) for turn, number in enumerate(some)]
    return sorted(number for _, _, number in sorted(turns)[:num])


def fingerprint_case(case: EditCase) -> str:
    """Hash of the pixels, the texts and the place in a session."""
    texts = (case.edit_prompt, case.original_prompt, case.edited_prompt, case.edit_type)
    truth = [hash_pixels(pixels) for pixels in (case.target_image, case.mask)]
    place = (case.session, case.previous, case.is_last)
    return content_hash(hash_pixels(case.original_image), *texts, *truth, *place)


def hash_pixels(pixels: Pixels | Mask | None) -> str:
    """Of their shape and values."""
    return "" if pixels is None else content_hash(pixels.shape, hashlib.sha256(pixels.tobytes()).hexdigest())


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


SHOWN_SIDE = 512
"""Larger pictures are reduced where they are kept to be looked at."""


def encode_shown(pixels: Pixels) -> bytes:
    """A picture to be looked at: small ones exactly, large ones reduced."""
    if max(pixels.shape[:2]) <= SHOWN_SIDE // 4:
        return encode_png(pixels)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


def cases_table(cases: Sequence[EditCase]) -> pa.Table:
    """The cases with their pictures, as the report reads them."""
    images = [{"bytes": encode_shown(case.original_image), "path": None} for case in cases]
    texts = {name: [getattr(case, name) for case in cases] for name in ("edit_type", "edit_prompt", *_PROMPTS)}
    columns = {"case": list(range(len(cases))), **texts}
    return pa.table(columns).append_column("original_image", pa.array(images, IMAGE_TYPE))
