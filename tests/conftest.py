"""Tiny models, written once per test session, and a config that uses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ip2p.config import PipelineConfig
from tests import tiny


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Stable Diffusion."""
    return tiny.write_tiny_stable_diffusion(tmp_path_factory.mktemp("tiny") / "stable-diffusion")


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Stable Diffusion XL."""
    return tiny.write_tiny_xl(tmp_path_factory.mktemp("tiny") / "stable-diffusion-xl")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random CLIP."""
    return tiny.write_tiny_clip(tmp_path_factory.mktemp("tiny") / "clip")


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random language model."""
    return tiny.write_tiny_language_model(tmp_path_factory.mktemp("tiny") / "language-model")


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_sd: Path, tiny_clip: Path, tiny_lm: Path) -> PipelineConfig:
    """A run in an empty folder at tiny size."""
    return tiny.write_tiny_config(tmp_path / "run", sd=tiny_sd, clip=tiny_clip, lm=tiny_lm)


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision per process."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
