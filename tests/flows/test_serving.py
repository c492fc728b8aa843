"""`ip2p serve` against real Prefect servers on loopback, asked as Prefect's page asks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.server import free_port
from ip2p import uses
from ip2p.cli import main
from ip2p.config import PipelineConfig, to_dict
from ip2p.config.files import read_run
from tests.flows.test_handover import WORDS

pytestmark = pytest.mark.slow
TOO_LONG = 800.0


def _environment(home: Path, **more: str) -> dict[str, str]:
    free = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    return free | quiet | {"XDG_CACHE_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | more


def _ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """As Prefect's clients do: once more where the server is busy, which it says with 503."""
    for _ in range(10):
        try:
            return _ask_once(url, path, body)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(1)
    return _ask_once(url, path, body)


def _ask_once(url: str, path: str, body: dict[str, Any] | None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _wait(what: Callable[[], Any], running: subprocess.Popen[str]) -> Any:
    """What comes out as something true, looked at again and again while a process runs."""
    deadline = time.monotonic() + TOO_LONG
    while time.monotonic() < deadline:
        assert running.poll() is None, "the process has ended"
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if found := what():
                return found
        time.sleep(0.5)
    raise AssertionError("it took too long")


@contextmanager
def _running(*words: str, log: Path, cwd: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=environment)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=60)


def _serve(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "import sys; from ip2p.cli import main; sys.exit(main())", "serve", *words)


def _interrupt(serving: subprocess.Popen[str], log: Path) -> None:
    """Ctrl-C ends it with a line and without a traceback."""
    serving.send_signal(signal.SIGINT)
    assert serving.wait(timeout=60) == 0
    said = log.read_text()
    assert said.rstrip().endswith("No longer serving.") and "Traceback" not in said and "Warning" not in said


def _ended(url: str, run: str) -> dict[str, Any] | None:
    state: dict[str, Any] = _ask(url, f"/flow_runs/{run}")["state"]
    return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def test_a_run_from_the_page_completes_with_progress_and_a_bad_one_says_why(
    ready_config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the run's folder is told apart by its path, and `made` is relative
    port = free_port(20_000 + os.getpid() % 10_000)  # below those that outgoing connections are given
    url, log = f"http://127.0.0.1:{port}/api", tmp_path / "serve.log"
    environment = _environment(tmp_path / "cache", PREFECT_HOME=str(tmp_path / "home"))
    server = (sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps(to_dict(ready_config)))
    with _running(*server, log=tmp_path / "server.log", cwd=tmp_path, environment=environment) as prefect:
        _wait(lambda: urllib.request.urlopen(f"{url}/health", timeout=5).status == 200, prefect)
        with _running(
            *_serve("--deployment", "run,dataset"),
            log=log,
            cwd=tmp_path,
            environment=environment | {"PREFECT_API_URL": url},
        ) as serving:
            _wait(lambda: "Ctrl-C ends" in log.read_text(), serving)
            named = {each["name"]: each for each in _ask(url, "/deployments/filter", {})}
            assert set(named) == {"run", "dataset"}

            def start(name: str, **parameters: Any) -> str:
                path = f"/deployments/{named[name]['id']}/create_flow_run"
                return str(_ask(url, path, {"parameters": parameters})["id"])

            settings: dict[str, Any] = {"dataset": {"license": "mit"}, "training": {"max_train_steps": 3}}
            good = start("run", preset="shapes", out="made", config_file=str(asked), settings=settings)
            bad = start("dataset", settings={"rendering": {"p2p": [0.5, 0.1]}})
            with pytest.raises(urllib.error.HTTPError, match="409"):
                start("dataset", settings={"rendering": {"num_steps": 3}})
            with pytest.raises(urllib.error.HTTPError, match="422"):  # the field says to give a file instead
                start("dataset", settings={"prompts": {"screening": {"banned_words": WORDS}}})
            state = _wait(lambda: _ended(url, good), serving)
            assert (state["type"], state["message"]) == ("COMPLETED", "The results are in made.")
            state = _wait(lambda: _ended(url, bad), serving)
            assert state["type"] == "FAILED"
            assert state["message"].startswith("rendering.p2p is a range (low, high), got (0.5, 0.1)")
            artifacts = {each["key"]: each["data"] for each in _ask(url, "/artifacts/latest/filter", {})}
            _interrupt(serving, log)
            assert all(each["paused"] for each in _ask(url, "/deployments/filter", {}))
    shown = {f"progress-{stage}": 100.0 for stage in ("prompts", "rendering", "training", "evaluation")}
    assert shown.items() <= artifacts.items() and {"counts", "scores", "report"} <= set(artifacts)
    made = read_run(Path("made"))
    assert made.dataset.license == "mit" and uses.is_complete(made, "pipeline")
    files = (tmp_path / "made/dataset/data").glob("*.parquet")
    assert sum(pq.read_metadata(path).num_rows for path in files) == 32


def test_a_schedule_fires_by_itself_on_a_server_of_its_own_that_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    port, log = free_port(), tmp_path / "serve.log"
    url, environment = f"http://127.0.0.1:{port}/api", _environment(tmp_path / "cache")
    words = ["shapes", "--deployment", "dataset", "--cron", "* * * * *", "--port", str(port)]
    words += ["--out", "nightly", "--prompts.num-captions", "8"]
    with _running(*_serve(*words), log=log, cwd=tmp_path, environment=environment) as serving:
        _wait(lambda: "Ctrl-C ends" in log.read_text(), serving)
        assert f"http://127.0.0.1:{port}/deployments" in log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ui-settings", timeout=10) as answer:
            assert json.load(answer)["api_url"] == url

        def completed() -> list[Any]:
            found = _ask(url, "/flow_runs/filter", {"sort": "START_TIME_DESC"})
            top = [each for each in found if each["parent_task_run_id"] is None]
            assert not [each["state"]["message"] for each in top if each["state"]["type"] == "FAILED"]
            return [each for each in top if each["state"]["type"] == "COMPLETED"]

        (first, *_) = _wait(completed, serving)
        assert first["parameters"]["settings"] == {"prompts": {"num_captions": 8}}
        _interrupt(serving, log)
    with pytest.raises(urllib.error.URLError):
        _ask(url, "/health")
    assert uses.is_complete(read_run(Path("nightly")), "dataset")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--deployment", "datset"], "unknown deployment datset. Did you mean dataset?"),
        (["--cron", "0 3 * * *"], "--cron is for one deployment."),
        (["--cron", "0 3 * * *", "--deployment", "train", "shapes"], "--cron for train needs --data"),
        (["--out", "x", "--config", "nowhere.json"], "config file nowhere.json does not exist"),
        (["--limit", "none"], "--limit: expected a whole number from 1 on, got none"),
        (["shapes", "--rendering.steps", "3"], "unknown option --rendering.steps"),
    ],
)
def test_a_mistake_in_the_command_is_said_before_a_server_is_started(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *words]) == 2
    assert said in capsys.readouterr().err
