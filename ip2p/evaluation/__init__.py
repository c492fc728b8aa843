"""Measures the editor and the dataset in figures with intervals; torch is imported only to run a model."""

from __future__ import annotations

from ip2p.evaluation.cases import Domain, EditCase, EditJudgement, load_domain
from ip2p.evaluation.precision import oracle_precision
from ip2p.evaluation.run import evaluate

__all__ = ["Domain", "EditCase", "EditJudgement", "evaluate", "load_domain", "oracle_precision"]
