"""The server backend against `transformers serve` with a real chat model: the answers of the same model at hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ip2p.config import PromptsConfig, ServerConfig
from ip2p.prompts.asking import Request
from ip2p.prompts.backends import open_backend
from tests.processes import wait_until
from tests.trained_models import TRAINED_CAPTIONS, chat_config

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trained_models")]
REQUESTS = [Request(caption, attempt) for caption in TRAINED_CAPTIONS for attempt in range(3)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    def answers() -> bool:
        assert process.poll() is None, f"transformers serve ended with {process.returncode}"
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
        return False

    wait_until(answers)


@pytest.fixture(scope="module")
def served(trained_chat: Path) -> Iterator[PromptsConfig]:
    port = free_port()
    command = Path(sys.executable).with_name("transformers")
    if not command.exists():
        pytest.skip("transformers has no command here")
    words: list[str | Path] = [
        command,
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        trained_chat,
    ]
    environment, nowhere = {**os.environ, "HF_HUB_OFFLINE": "1"}, subprocess.DEVNULL
    process = subprocess.Popen(words, env=environment, stdout=nowhere, stderr=nowhere)
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}/health")
        server = ServerConfig(base_url=f"http://127.0.0.1:{port}/v1", timeout=60, concurrency=4)
        yield replace(chat_config(trained_chat), backend="server", server=server)
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_a_served_model_answers_as_the_same_model_at_hand(served: PromptsConfig, tmp_path: Path) -> None:
    at_hand = replace(served, backend="chat", device="cpu")
    found, wanted = (
        open_backend(config, tmp_path / "journal.jsonl").answer(REQUESTS, on_answer=lambda num: None)
        for config in (served, at_hand)
    )
    assert found == wanted and found[0].earlier == ("Sure!",)
