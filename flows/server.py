"""One Prefect server for a run: the user's own if there is one, else a private one that ends with the command.

Without a server's address every worker process would start a temporary server of its own. The private one keeps its
database in the user's cache folder, so that the migration is paid once and not by every run.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx
from filelock import FileLock, Timeout

from ip2p.console import first_line
from ip2p.proxies import proxy_for, reach_this_machine_directly

logger = logging.getLogger("ip2p.server")

STARTUP_TIMEOUT = 300.0
"""Seconds until a private server must answer; most of it is the first start's database migration."""

IDLE_SERVICES = (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "CANCELLATION_CLEANUP",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "TRIGGERS",
)
"""Services that a run without deployments does not need; the task run recorder must stay, it feeds the DAG."""

SECONDS_TO_END = 2
"""Time that a private server waits for its clients when it ends; they may wait for its end themselves."""

MOST_STARTS = 10
"""Times that a private server is started again in a run."""

PROXY_ERRORS = (407, 502, 503, 504)
"""What a proxy answers with if it wants a password or does not reach the server."""

USUAL_PORT = 4200
"""Prefect's own, for a server that people come back to."""


@contextlib.contextmanager
def prefect_server(
    meanwhile: Callable[[], object] = lambda: None, *, schedules: bool = False, port: int | None = None
) -> Iterator[str]:
    """Sets PREFECT_API_URL for this process and its children: the user's server, or one that lives as long as this.

    `meanwhile` runs while a private server starts: a good time for slow imports. A private server with `schedules` has
    all of Prefect's services, and the usual port unless that is taken or another is named.
    """
    _set_defaults(os.environ)
    _check_proxies()
    url = users_server()
    if url:
        os.environ["PREFECT_API_URL"] = url
        _check_answers(url)
        logger.info("using the Prefect server at %s", url)
        yield url
        return
    reach_this_machine_directly()
    with _private_home() as home:
        os.environ["PREFECT_HOME"] = str(home)
        idle = () if schedules else IDLE_SERVICES
        place = port or free_port(USUAL_PORT if schedules else 0)
        with _private_server(home, meanwhile, place, idle) as url:
            yield url


def _check_answers(url: str) -> None:
    """Raises ValueError if nothing answers at the user's address; what answers with an error may just want a key.

    It is asked as Prefect's client asks, which also goes through the proxy that ALL_PROXY names.
    """
    proxy = proxy_for(url)
    try:
        answer = httpx.get(f"{url}/health", timeout=10)
        if proxy is not None and answer.status_code in PROXY_ERRORS:
            answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        through, exclude = (f" through the proxy {proxy}", "add its host to NO_PROXY, ") if proxy else ("", "")
        way_out = f"Start that server, {exclude}or unset PREFECT_API_URL to have one started for the run."
        reason = first_line(error).rstrip(".")
        raise ValueError(f"PREFECT_API_URL {url} does not answer{through}: {reason}. {way_out}") from error


def _check_proxies() -> None:
    """Raises ValueError for a proxy that no client can be made with, even one that goes around it."""
    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        way_out = "Correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY; SOCKS needs: pip install 'httpx[socks]'"
        raise ValueError(
            f"a proxy of the environment cannot be used: {first_line(error).rstrip('.')}. {way_out}"
        ) from error


def users_server() -> str | None:
    """Returns the address that the environment or the active Prefect profile names."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text())
        name = os.environ.get("PREFECT_PROFILE", profiles.get("active", ""))
        url = profiles.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")
    except (OSError, tomllib.TOMLDecodeError):
        return None
    return str(url) if url else None


def describe_server() -> str:
    """Says which Prefect server a run uses. ValueError if nothing answers at the user's address."""
    url = users_server()
    if url is None:
        return "no address is set; a run starts a server of its own"
    _check_proxies()
    _check_answers(url)
    return f"{url} answers"


def _set_defaults(environment: os._Environ[str]) -> None:
    """Sets what the user has not set; prefect reads it when it is imported.

    A request is tried again for four minutes, with growing pauses, while the server is away. A shard's end is in its
    state already and is not logged too.
    """
    environment.setdefault("PREFECT_CLIENT_MAX_RETRIES", "7")
    environment.setdefault("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", "5")
    environment.setdefault("PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL", "WARNING")
    environment.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "ip2p")
    environment.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    environment.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    environment.setdefault("DO_NOT_TRACK", "1")


@contextlib.contextmanager
def _private_home() -> Iterator[Path]:
    """Takes the first of the cache's Prefect folders that no other run holds."""
    if named := os.environ.get("PREFECT_HOME"):
        yield Path(named).expanduser()
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ip2p"
    for number in itertools.count(1):
        home = cache / ("prefect" if number == 1 else f"prefect-{number}")
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / "in-use.lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            yield home
        finally:
            lock.release()
            os.environ.pop("PREFECT_HOME", None)
        return


@contextlib.contextmanager
def _private_server(home: Path, meanwhile: Callable[[], object], port: int, idle: Sequence[str]) -> Iterator[str]:
    first = not (home / "prefect.db").exists()
    logger.info(
        "starting a Prefect server%s", "; its first start here makes a database, about half a minute" if first else ""
    )
    started = time.monotonic()
    url = f"http://127.0.0.1:{port}/api"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("w") as log:
        server = _Server(port, log, idle)
        os.environ["PREFECT_API_URL"] = url
        try:
            meanwhile()
            _wait_until_healthy(server.process, url, Path(log.name))
            threading.Thread(target=server.start_again_if_it_ends, daemon=True).start()
            logger.info(
                "the Prefect server is up after %.1f s: %s", time.monotonic() - started, url.removesuffix("/api")
            )
            yield url
        finally:
            _send_what_is_left()
            del os.environ["PREFECT_API_URL"]
            server.stop()


def _send_what_is_left() -> None:
    """Sends what waits in this process; at its exit, with no server, it would be retried for a minute."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    logging.getLogger("prefect").setLevel(logging.CRITICAL)
    EventsWorker.drain_all(timeout=10)
    APILogWorker.drain_all(timeout=10)


@dataclass(slots=True)
class _Server:
    """A private server's process, or the one that took its place."""

    port: int
    log: IO[str]
    idle: Sequence[str]
    process: subprocess.Popen[bytes] = field(init=False)
    _is_wanted: bool = True
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        """Starts the server in a session of its own, so that a terminal's Ctrl-C does not end it before the run does.

        Its page needs the API's address, or it would ask at the usual port.
        """
        environment = dict(os.environ) | {"PREFECT_UI_API_URL": f"http://127.0.0.1:{self.port}/api"}
        environment |= {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in self.idle}
        return subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(self.port)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def start_again_if_it_ends(self) -> None:
        """Starts a server again that was killed or broke, on the same port and database; requests are tried until then.

        One that was asked to end is not: this process is about to end too.
        """
        for _ in range(MOST_STARTS):
            code = self.process.wait()
            with self._changing:
                if not self._is_wanted or code in (0, -signal.SIGTERM):
                    return
                logger.warning("the Prefect server ended with exit code %d and is started again", code)
                self.process = self._start()

    def stop(self) -> None:
        """Closes the pipe that keeps the server alive and waits for its end."""
        with self._changing:
            self._is_wanted = False
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_TIMEOUT
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            if server.poll() is not None:
                code = server.returncode
                raise RuntimeError(f"the Prefect server ended with exit code {code} at its start. See {log}.")
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{url}/health").is_success:
                    return
            time.sleep(0.1)
    raise RuntimeError(f"the Prefect server did not answer within {STARTUP_TIMEOUT:.0f} s. See {log}.")


def free_port(preferred: int = 0) -> int:
    """Returns the preferred port, or any if that is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _exit_with_parent() -> None:
    """Ends this process when the other end of standard input is gone, even if its owner was killed."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(0)


def serve(port: int) -> None:
    """Serves Prefect's API and UI until standard input closes."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(final=True)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_END)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
