"""Tiny models, written once per test session, and a config that uses them.

The libraries are imported where they are used: the process that hands tests out to workers has no need of them.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ip2p.config import PipelineConfig

PATIENCE = 4
"""How many times as long as a fast test may take one that is marked as slow."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keeps a file's tests on one worker, and gives slow ones more time."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))
    if item.get_closest_marker("slow") and item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(PATIENCE * float(item.config.getini("timeout"))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, so that no worker is left alone with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Stable Diffusion."""
    from tests.tiny import write_tiny_stable_diffusion

    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("tiny") / "stable-diffusion")


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Stable Diffusion XL."""
    from tests.tiny import write_tiny_xl

    return write_tiny_xl(tmp_path_factory.mktemp("tiny") / "stable-diffusion-xl")


@pytest.fixture(scope="session")
def tiny_editor(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Path:
    """Folder of a random editor."""
    from tests.tiny import write_tiny_editor

    return write_tiny_editor(tmp_path_factory.mktemp("tiny") / "editor", tiny_sd)


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Stable Diffusion 3.5."""
    from tests.tiny_flow import write_tiny_sd3

    return write_tiny_sd3(tmp_path_factory.mktemp("tiny") / "stable-diffusion-3")


@pytest.fixture(scope="session")
def tiny_sd3_without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Stable Diffusion 3, without second attention and T5."""
    from tests.tiny_flow import write_tiny_sd3

    return write_tiny_sd3(tmp_path_factory.mktemp("tiny") / "without-t5", has_t5=False, is_3_5=False)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random CLIP."""
    from tests.tiny import write_tiny_clip

    return write_tiny_clip(tmp_path_factory.mktemp("tiny") / "clip")


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random language model."""
    from tests.tiny import write_tiny_language_model

    return write_tiny_language_model(tmp_path_factory.mktemp("tiny") / "language-model")


@pytest.fixture(scope="session")
def trained_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a language model that was trained on a few answers."""
    from tests.trained_models import write_trained_language_model

    return write_trained_language_model(tmp_path_factory.mktemp("trained") / "language-model")


@pytest.fixture(scope="session")
def trained_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a chat model that was trained on a few conversations."""
    from tests.trained_models import write_trained_chat_model

    return write_trained_chat_model(tmp_path_factory.mktemp("trained") / "chat-model")


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_sd: Path, tiny_clip: Path, tiny_lm: Path) -> PipelineConfig:
    """A run in an empty folder at tiny size."""
    from tests.tiny import write_tiny_config

    return write_tiny_config(tmp_path / "run", sd=tiny_sd, clip=tiny_clip, lm=tiny_lm)


@pytest.fixture
def squeezenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Random weights where LPIPS looks for those of its backbone `squeeze`; returns that name."""
    import torch
    import torchvision

    torch.manual_seed(0)
    weights = torchvision.models.squeezenet1_1(weights=None).state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return "squeeze"


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision per process, and a training's log goes on to the output of its test."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    for handler in [each for each in logging.root.handlers if type(each) is logging.StreamHandler]:
        logging.root.removeHandler(handler)


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Leaves the handlers of signals as they were."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(name) for name in names]
    yield
    for name, handler in zip(names, before, strict=True):
        signal.signal(name, handler)
