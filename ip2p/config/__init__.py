"""One frozen dataclass per stage; every knob of the software is a field here and nowhere else.

Checks live in `__post_init__` and say the rule, what was got and the way out. `fingerprint` is what the store compares.
"""

from __future__ import annotations

from ip2p.config.evaluation import BenchmarkConfig, EvaluationConfig
from ip2p.config.fields import RESULT_FREE, fingerprint, to_dict
from ip2p.config.filtering import FilteringConfig, ScoringConfig, Thresholds
from ip2p.config.pipeline import DatasetConfig, PipelineConfig, RunnerConfig
from ip2p.config.prompts import (
    DEFAULT_EDIT_TYPE_RULES,
    DEFAULT_EDIT_TYPES,
    CleaningConfig,
    FinetuneConfig,
    PromptsConfig,
    ScreeningConfig,
    ServerConfig,
)
from ip2p.config.rendering import (
    AttentionBackend,
    CrossAlignment,
    EditTypeRendering,
    ImageFormat,
    Precision,
    RenderingConfig,
)
from ip2p.config.training import DIFFUSERS_DEFAULTS, TrainingConfig, TrainingJob
from ip2p.config.vlm import VlmConfig

__all__ = [
    "AttentionBackend",
    "BenchmarkConfig",
    "CleaningConfig",
    "CrossAlignment",
    "DEFAULT_EDIT_TYPES",
    "DEFAULT_EDIT_TYPE_RULES",
    "DIFFUSERS_DEFAULTS",
    "DatasetConfig",
    "EditTypeRendering",
    "EvaluationConfig",
    "FilteringConfig",
    "FinetuneConfig",
    "ImageFormat",
    "PipelineConfig",
    "Precision",
    "PromptsConfig",
    "RESULT_FREE",
    "RenderingConfig",
    "RunnerConfig",
    "ScoringConfig",
    "ScreeningConfig",
    "ServerConfig",
    "Thresholds",
    "TrainingConfig",
    "TrainingJob",
    "VlmConfig",
    "fingerprint",
    "to_dict",
]
