"""The server backend against `transformers serve` with a real chat model: the answers of the same model at hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ip2p.config import PromptsConfig, ServerConfig
from ip2p.prompts.asking import Request
from ip2p.prompts.backends import open_backend
from tests.taught import TAUGHT_CAPTIONS, chat_config, write_taught_chat_model

pytestmark = pytest.mark.slow
REQUESTS = [Request(caption, attempt) for caption in TAUGHT_CAPTIONS for attempt in range(3)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:
            if reply.status == 200:
                return
        time.sleep(0.3)
    raise AssertionError("transformers serve did not start")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PromptsConfig]:
    folder = write_taught_chat_model(tmp_path_factory.mktemp("taught") / "chat-model")
    port = free_port()
    command = Path(sys.executable).with_name("transformers")
    if not command.exists():
        pytest.skip("transformers has no command here")
    words = [command, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", folder]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, env={**os.environ, "HF_HUB_OFFLINE": "1"}, **quiet)
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}/health")
        server = ServerConfig(base_url=f"http://127.0.0.1:{port}/v1", timeout=60, concurrency=4)
        yield replace(chat_config(folder), backend="server", server=server)
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
