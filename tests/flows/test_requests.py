"""How much a run asks of Prefect's server, which many workers share: no more requests for more shards."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from flows.dataset import dataset_flow
from flows.tasks import SECONDS_BETWEEN_UPDATES
from ip2p.config import PipelineConfig

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows")]

SECONDS_BETWEEN_LOGS = 2.0
"""Prefect's own; the command sets a longer one."""
BARS = 2
IN_TIME = ("PATCH /api/artifacts/ID", "POST /api/logs/")
"""What is asked at most once in some seconds."""


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts what this process asks of the server."""
    counts: Counter[str] = Counter()
    for client in (httpx.Client, httpx.AsyncClient):
        send = client.send

        def counted(
            self: object, request: httpx.Request, *args: object, send: object = send, **options: object
        ) -> object:
            counts[f"{request.method} {re.sub(r'[0-9a-f]{8}-[0-9a-f-]{27}', 'ID', request.url.path)}"] += 1
            return send(self, request, *args, **options)  # type: ignore[operator]

        monkeypatch.setattr(client, "send", counted)
    yield counts


def test_more_shards_ask_no_more_and_progress_and_logs_keep_their_pace(
    ready_config: PipelineConfig, requests: Counter[str]
) -> None:
    asked = []
    for size in (8, 2):
        prompts = dataclasses.replace(ready_config.prompts, shard_size=size)
        config = dataclasses.replace(ready_config, prompts=prompts, out=ready_config.out.with_name(f"of-{size}"))
        requests.clear()
        started = time.monotonic()
        dataset_flow(config)
        seconds = time.monotonic() - started
        asked.append(Counter({name: num for name, num in requests.items() if name not in IN_TIME}))
        progress, logs = (requests[name] for name in IN_TIME)
        assert 0 < progress <= BARS * (seconds / SECONDS_BETWEEN_UPDATES + 2)
        assert 0 < logs <= seconds / SECONDS_BETWEEN_LOGS + 2
    few, many = asked
    assert few["POST /api/flow_runs/"] == many["POST /api/flow_runs/"] == 1
    assert not many - few, "requests for every shard"
