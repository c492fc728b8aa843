"""How good the editor and the dataset are, in figures with intervals; torch is imported only where a model is run."""

from __future__ import annotations

from ip2p.evaluation.domain import Domain, EditCase, EditJudgement, load_domain
from ip2p.evaluation.oracle_precision import oracle_precision
from ip2p.evaluation.run_evaluation import evaluate

__all__ = ["Domain", "EditCase", "EditJudgement", "evaluate", "load_domain", "oracle_precision"]
