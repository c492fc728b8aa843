"""What a domain is: it draws edits of which it knows the truth, and says whether an edited picture shows it."""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ip2p.config import PipelineConfig
from ip2p.records import EditTriplet, content_hash
from ip2p.store import RunFolder

Pixels = npt.NDArray[np.uint8]
"""An image: (height, width, 3) uint8."""
Mask = npt.NDArray[np.bool_]
"""(height, width)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditCase:
    """One held-out edit: a picture, an instruction, and the texts of before and after."""

    original_image: Pixels
    edit_prompt: str
    original_prompt: str
    edited_prompt: str
    edit_type: str
    payload: Any = None
    """The domain's own truth."""
    target_image: Pixels | None = None
    """A right answer, of the original's size, where one is known."""
    mask: Mask | None = None
    """Where the edit may change the picture, where that is known."""
    session: str = ""
    """Edits of one session follow each other; "" for one that stands alone."""
    previous: int | None = None
    """Number of the case that this one goes on from, in its session."""
    is_last: bool = True
    """None of the session follows."""

    @property
    def triplet(self) -> EditTriplet:
        """The three texts."""
        return EditTriplet(
            original_prompt=self.original_prompt,
            edit_prompt=self.edit_prompt,
            edited_prompt=self.edited_prompt,
            edit_type=self.edit_type,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EditJudgement:
    """What the domain says of an edited picture."""

    done: bool
    """The requested change is there."""
    kept: bool
    """All else is as before."""
    legible: bool
    """The picture could be read at all."""

    @property
    def success(self) -> bool:
        """Done and kept."""
        return self.done and self.kept


class Domain(Protocol):
    """A kind of pictures whose edits can be drawn and judged without a learned model."""

    def draw_cases(self, num: int, seed: int) -> list[EditCase]:
        """Draws held-out edits, balanced over the edit types; a pure function of its arguments."""
        ...

    def judge_case(self, case: EditCase, edited_image: Pixels) -> EditJudgement:
        """Judges an edited picture against the case's truth."""
        ...

    def judge_pair(self, triplet: EditTriplet, original_image: Pixels, edited_image: Pixels) -> EditJudgement:
        """Judges a rendered pair against its texts."""
        ...

    def edit_types(self) -> tuple[str, ...]:
        """The edit types in the order in which reports name them."""
        ...


def load_domain(name: str) -> Domain:
    """Imports `module:Class` and makes one; a wrong name is a ValueError that says which half is wrong."""
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise ValueError(
            f"evaluation.domain must be module:Class, got {name!r}. Write it like ip2p.shapes.domain:ShapesDomain."
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"evaluation.domain {name}: {error}. Name a module that can be imported.") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ValueError(f"evaluation.domain {name}: {module_name} has no class {class_name}. Name one that it has.")
    return cast(Domain, found())


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
