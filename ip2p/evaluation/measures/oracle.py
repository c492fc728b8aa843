"""The domain's verdict on an edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ip2p.config import fingerprint
from ip2p.evaluation.cases import Domain, EditCase, EditJudgement, Pixels
from ip2p.evaluation.measures import Column, Measure, Setup, Values, fit_to


@dataclass(frozen=True)
class OracleMeasure(Measure):
    """Asks the domain whether the change is present and everything else kept; success is both."""

    name: str
    domain: Domain
    order = 10
    columns = (
        Column("success", "Success", "higher", "share", always=True),
        Column("done", "Done", "higher", "share", always=True),
        Column("kept", "Kept", "higher", "share", always=True),
        Column("legible", "Legible", "higher", "share", always=True),
    )

    @classmethod
    def from_setup(cls, setup: Setup) -> Self | None:
        """Makes the measure if there is a domain."""
        return None if setup.domain is None else cls(setup.knobs.domain or "", setup.domain)

    @property
    def identity(self) -> str:
        """Returns a hash of the domain's name."""
        return fingerprint("oracle", self.name)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns a verdict per edit."""
        fitted = map(fit_to, after, before)
        return [verdict_of(self.domain.judge_case(case, image)) for case, image in zip(cases, fitted, strict=True)]


def verdict_of(judgement: EditJudgement) -> Values:
    """Returns a judgement by columns."""
    return {column.name: getattr(judgement, column.name) for column in OracleMeasure.columns}
