"""Held-out edits, and domains, which draw edits with their ground truth and judge edited pictures by it."""

from __future__ import annotations

import importlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ip2p.config import PipelineConfig
from ip2p.images import IMAGE_TYPE, encode_image, encode_png, hash_pixels, open_pixels
from ip2p.records import EditTriplet, content_hash
from ip2p.sources.location import Location, split_files
from ip2p.sources.row import Row
from ip2p.sources.tables import ParquetTable
from ip2p.store import RunFolder

logger = logging.getLogger(__name__)

_PROMPTS = ("original_prompt", "edited_prompt")
SHOWN_SIDE = 512
"""Larger pictures are reduced if they are kept only to be looked at."""

Pixels = npt.NDArray[np.uint8]
"""An image: (height, width, 3) uint8."""
Mask = npt.NDArray[np.bool_]
"""(height, width)."""


T = TypeVar("T")


class Stored(Generic[T]):
    """A field that takes a value, or a function that loads it anew whenever it is read."""

    def __init__(self, *default: T) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, case: object | None, owner: type | None = None) -> T:
        if case is None:  # a dataclass asks for the default
            if not self.default:
                raise AttributeError(self.name)
            return self.default[0]
        stored = case.__dict__[self.name]
        value: T = stored() if callable(stored) else stored
        return value

    def __set__(self, case: object, value: T | Callable[[], T]) -> None:
        case.__dict__[self.name] = value


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """One held-out edit: a picture, an instruction, and the captions of before and after.

    Each picture is given as an array, or as a function that loads it: a benchmark's thousands stay encoded until then.
    """

    original_image: Stored[Pixels] = Stored()
    edit_prompt: str
    original_prompt: str
    edited_prompt: str
    edit_type: str
    payload: Any = None
    """Ground truth of the domain that drew it."""
    target_image: Stored[Pixels | None] = Stored(None)
    """A correct result, of the original's size, if one is known."""
    mask: Stored[Mask | None] = Stored(None)
    """Pixels that the edit may change, if they are known."""
    session: str = ""
    """Edits of one session follow each other; "" for one that stands alone."""
    previous: int | None = None
    """Number of the case that this one continues, in its session."""
    is_last: bool = True
    """False if another case continues this one."""

    @property
    def kept_area(self) -> Mask | None:
        """Returns the pixels that the edit must not change; None if they are not known or there are none."""
        mask = self.mask
        return None if mask is None or mask.all() else ~mask

    @property
    def triplet(self) -> EditTriplet:
        """Returns the three texts."""
        return EditTriplet(
            original_prompt=self.original_prompt,
            edit_prompt=self.edit_prompt,
            edited_prompt=self.edited_prompt,
            edit_type=self.edit_type,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EditJudgement:
    """A domain's judgement of an edited picture."""

    done: bool
    """The requested change is present."""
    kept: bool
    """Everything else is unchanged."""
    legible: bool
    """The picture could be read at all."""

    @property
    def success(self) -> bool:
        """Returns whether the edit is done and everything else kept."""
        return self.done and self.kept


class Domain(Protocol):
    """A kind of pictures whose edits are drawn and judged without a learned model."""

    def draw_cases(self, num: int, seed: int) -> list[EditCase]:
        """Draws held-out edits, balanced over the edit types; a pure function of its arguments."""
        ...

    def judge_case(self, case: EditCase, edited_image: Pixels) -> EditJudgement:
        """Judges an edited picture against the case's ground truth."""
        ...

    def judge_pair(self, triplet: EditTriplet, original_image: Pixels, edited_image: Pixels) -> EditJudgement:
        """Judges a rendered pair against its texts."""
        ...

    def edit_types(self) -> tuple[str, ...]:
        """Returns the edit types in the order in which reports name them."""
        ...


def load_domain(name: str) -> Domain:
    """Imports `module:Class` and makes one. ValueError says which half of a wrong name is wrong."""
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise ValueError(
            f"evaluation.domain must be module:Class, got {name!r}. Write it like ip2p.shapes.domain:ShapesDomain."
        )
    try:
        domain_class = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise ValueError(f"evaluation.domain {name}: {error}. Name a module that can be imported.") from error
    if not isinstance(domain_class, type):
        raise ValueError(f"evaluation.domain {name}: {module_name} has no class {class_name}. Name one that it has.")
    return cast(Domain, domain_class())


def hold_out_cases(config: PipelineConfig, domain: Domain | None, data: Path | None = None) -> list[EditCase]:
    """Draws a run's held-out edits, or reads the first of its dataset's test split.

    `data` is a dataset folder other than the run's own. Leaves broken pictures out. ValueError if a column is missing.
    """
    if domain is not None:
        return domain.draw_cases(config.evaluation.num_edits, config.evaluation.seed)
    folder = data or RunFolder(config.out).dataset
    files = folder.is_dir() and split_files(Location(str(folder), "path"), "test")
    if not files:
        return []
    table = ParquetTable(files)
    image, text = config.training.original_image_column, config.training.edit_prompt_column
    for file, names in table.names_by_file.items():
        if missing := {image, text}.difference(names):
            raise ValueError(
                f"{file} lacks the column {', '.join(sorted(missing))}; it has {', '.join(names)}. "
                "Set training.original_image_column and training.edit_prompt_column."
            )
    cases = (_read_case(row, image, text) for row in table.read([image, text, *_PROMPTS, "edit_type"]))
    return list(islice((case for case in cases if case is not None), config.evaluation.num_edits))


def _read_case(row: Row, image: str, text: str) -> EditCase | None:
    instruction = row.wording(text)
    try:
        if instruction is None:
            raise ValueError("no instruction")
        pixels = open_pixels(row.picture(image) or b"")
    except ValueError as error:
        logger.warning("left out %s: %s", row.where, error)
        return None
    original, edited, kind = (str(row.values.get(name) or "") for name in (*_PROMPTS, "edit_type"))
    return EditCase(
        original_image=pixels,
        edit_prompt=instruction,
        original_prompt=original,
        edited_prompt=edited,
        edit_type=kind or "other",
    )


def balanced_subset(cases: Sequence[EditCase], num: int) -> list[int]:
    """Chooses the numbers of at most `num` cases, in turns from every edit type, in rising order."""
    by_type: dict[str, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        by_type[case.edit_type].append(number)
    turns = [
        (turn, order, number) for order, numbers in enumerate(by_type.values()) for turn, number in enumerate(numbers)
    ]
    return sorted(number for _, _, number in sorted(turns)[:num])


def fingerprint_case(case: EditCase) -> str:
    """Hashes the pixels, the texts and the place in a session."""
    texts = (case.edit_prompt, case.original_prompt, case.edited_prompt, case.edit_type)
    truth = [hash_pixels(pixels) for pixels in (case.target_image, case.mask)]
    place = (case.session, case.previous, case.is_last)
    return content_hash(hash_pixels(case.original_image), *texts, *truth, *place)


def encode_shown(pixels: Pixels) -> bytes:
    """Encodes a picture to be looked at: small ones exactly, large ones reduced."""
    if max(pixels.shape[:2]) <= SHOWN_SIDE // 4:
        return encode_png(pixels)
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    return encode_image(np.asarray(image), "webp", 90)


def cases_table(cases: Sequence[EditCase]) -> pa.Table:
    """Tabulates the cases with their pictures, as the report reads them."""
    images = [{"bytes": encode_shown(case.original_image), "path": None} for case in cases]
    texts = {name: [getattr(case, name) for case in cases] for name in ("edit_type", "edit_prompt", *_PROMPTS)}
    columns = {"case": list(range(len(cases))), **texts}
    return pa.table(columns).append_column("original_image", pa.array(images, IMAGE_TYPE))
