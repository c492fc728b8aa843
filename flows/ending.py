"""Tells Prefect's server, which may live on, of flow runs that end with their command because of a signal."""

from __future__ import annotations

import contextlib
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, State
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Crashed

ASK_ONCE = {PREFECT_CLIENT_MAX_RETRIES: 0}
"""Settings under which a server that is away keeps nobody waiting."""

_begun: list[UUID] = []
"""Flow runs of this process."""


def note_flow_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Notes that a flow run has begun in this process."""
    _begun.append(flow_run.id)


def tell_of_interruption() -> None:
    """Marks the flow runs of this process that have not ended as crashed; a private server has ended by then."""
    with (
        contextlib.suppress(RuntimeError, httpx.HTTPError),
        temporary_settings(ASK_ONCE),
        get_client(sync_client=True) as client,
    ):
        for run_id in _begun:
            state = client.read_flow_run(run_id).state
            if state is None or not state.is_final():
                client.set_flow_run_state(run_id, Crashed(message="A signal ended the command."), force=True)
