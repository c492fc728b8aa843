"""How many shards ask a language-model server at a time, whatever runner they run on and with how many workers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from ip2p.config import PromptsConfig
from ip2p.records import content_hash

SHARDS_AT_A_TIME = 1
"""A shard alone keeps `prompts.server.concurrency` requests under way, so that is the limit of them all."""


def limit_server(config: PromptsConfig) -> None:
    """Tells Prefect's server of the limit, where the config asks a language-model server."""
    if config.backend == "server":
        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(limit_name(config), SHARDS_AT_A_TIME)


def server_slot(config: PromptsConfig) -> AbstractContextManager[Any]:
    """Around the work that asks the server; a worker that dies gives its slot back when its lease ends."""
    if config.backend != "server":
        return nullcontext()
    return concurrency(limit_name(config), occupy=1)


def limit_name(config: PromptsConfig) -> str:
    """One limit for each server."""
    return f"ip2p-server-{content_hash(config.server.base_url)}"
