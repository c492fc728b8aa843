"""Tests that need a CUDA device: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_training import pair, write_pairs


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven pairs, so that batches of four run over the ends of epochs."""
    return write_pairs(tmp_path / "data", [pair(number) for number in range(7)])
