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
)
from ip2p.config.rendering import (
    MADE_BY_SERVER,
    OPTIONAL_RANGES,
    AttentionBackend,
    CrossAlignment,
    EditTypeRendering,
    FlowEditConfig,
    ImageFormat,
    Precision,
    RenderingBackend,
    RenderingConfig,
)
from ip2p.config.server import EndpointConfig, ImagesApiConfig, ServerConfig
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
    "EndpointConfig",
    "EvaluationConfig",
    "FilteringConfig",
    "FinetuneConfig",
    "FlowEditConfig",
    "ImageFormat",
    "ImagesApiConfig",
    "MADE_BY_SERVER",
    "OPTIONAL_RANGES",
    "PipelineConfig",
    "Precision",
    "PromptsConfig",
    "RESULT_FREE",
    "RenderingBackend",
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
