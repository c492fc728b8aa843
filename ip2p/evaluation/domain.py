"""What a domain is: it draws edits of which it knows the truth, and says whether an edited picture shows it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from ip2p.records import EditTriplet

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
