"""A proxy in the environment: never between a run and its own server, and named if it hides a user's server."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.server import prefect_server
from ip2p.config import PipelineConfig, RunnerConfig, to_dict
from ip2p.proxies import proxy_for, reach_this_machine_directly

DEAD = "http://127.0.0.1:9"
SPELLINGS = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without proxies, which the test may change."""
    for name in (*SPELLINGS, "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers that the server behind a proxy cannot be reached."""

    def do_GET(self) -> None:
        self.send_response(self.server.code)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server on this machine that answers with the status that the test asks for, or 200."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as serving:
        serving.code = getattr(request, "param", 200)  # type: ignore[attr-defined]
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("excluded", ["NO_PROXY", "no_proxy"])
def test_this_machine_is_reached_without_the_proxy(
    name: str, excluded: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, DEAD)
    monkeypatch.setenv(excluded, "internal.example")
    reach_this_machine_directly()
    assert httpx.get(server).status_code == 200
    assert urllib.request.urlopen(server).status == 200
    scheme = "http" if name.lower() != "https_proxy" else "https"
    assert proxy_for(f"{scheme}://example.org") == DEAD
    assert proxy_for(f"{scheme}://a.internal.example") is None


@pytest.mark.parametrize("before", [{}, {"no_proxy": "*", "HTTP_PROXY": DEAD}, {"NO_PROXY": "a.example"}])
def test_an_environment_without_proxies_or_that_excludes_all_stays_as_it_is(
    before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    environment = dict(os.environ)
    reach_this_machine_directly()
    assert os.environ == environment


@pytest.mark.parametrize("name", ["HTTP_PROXY", "all_proxy"])
def test_a_user_s_server_behind_a_dead_proxy_is_an_error_that_names_it_without_its_password(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    said = r"does not answer through the proxy http://127\.0\.0\.1:9: .*NO_PROXY, or unset PREFECT_API_URL"
    with pytest.raises(ValueError, match=said) as refused, prefect_server():
        pass
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("server", [407, 503], indirect=True)
def test_a_proxy_that_answers_for_the_server_is_named_too(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server)
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    with pytest.raises(ValueError, match=f"does not answer through the proxy {server}"), prefect_server():
        pass


def test_a_user_s_server_that_wants_a_key_answers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    with prefect_server() as url:
        assert url == f"{server}/api"


def test_a_proxy_that_no_client_can_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:9")
    with pytest.raises(ValueError, match="a proxy of the environment cannot be used.*Correct"), prefect_server():
        pass


@pytest.mark.slow
def test_a_run_with_worker_processes_finishes_under_a_dead_proxy(tiny_config: PipelineConfig, tmp_path: Path) -> None:
    triplets = tmp_path / "triplets.jsonl"
    triplets.write_text(json.dumps({"input": "a red circle", "edit": "make it blue", "output": "a blue circle"}) + "\n")
    prompts = dataclasses.replace(tiny_config.prompts, captions=str(triplets))
    runner = RunnerConfig(kind="processes", max_workers=1)
    config = dataclasses.replace(tiny_config, prompts=prompts, runner=runner)
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps(to_dict(config)))
    free = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment = free | own | dict.fromkeys(SPELLINGS, DEAD) | {"NO_PROXY": "", "no_proxy": ""}
    command = [
        sys.executable,
        "-c",
        "import sys; from ip2p.cli import main; sys.exit(main())",
        "dataset",
        "--config",
        str(asked),
    ]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert list((config.out / "dataset" / "data").glob("*.parquet"))
