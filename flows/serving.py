"""Offers the deployments to a Prefect server and starts what its page, its schedules or anybody's client ask for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect.client.schemas.schedules import CronSchedule
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.settings import PREFECT_UI_URL
from prefect.types.entrypoint import EntrypointType

from flows.deployments import DEPLOYMENTS

SECONDS_BETWEEN_LOOKS = 3.0
"""After which new runs are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What is offered, and how."""

    names: Sequence[str]
    parameters: dict[str, Any] = field(default_factory=dict)
    """What the forms are filled in with, and scheduled runs are given."""
    cron: str | None = None
    timezone: str = "UTC"
    limit: int = 1
    """Runs at a time; the others wait."""


def offer_deployments(offer: Offer, ready: Callable[[str], object]) -> None:
    """Registers the deployments and works until it is interrupted; then their schedules pause and its runs end.

    `ready` is called with the address of Prefect's page once they are registered.

    ValueError for a schedule that is none.
    """
    schedule = _schedule(offer)
    logging.getLogger("prefect.runner").setLevel(logging.ERROR)  # it warns every few seconds of runs that wait
    runner = Runner(name="ip2p", limit=offer.limit, query_seconds=SECONDS_BETWEEN_LOOKS)
    for name in offer.names:
        flow = DEPLOYMENTS[name]
        deployment: Any = flow.to_deployment(
            name,
            schedule=schedule,
            parameters=_those_of(name, offer.parameters),
            description=flow.description,
            tags=["ip2p"],
            paused=False,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        runner.add_deployment(deployment)
    ready(PREFECT_UI_URL.value() or "")
    asyncio.run(_work_until_interrupted(runner))


async def _work_until_interrupted(runner: Runner) -> None:
    """Ctrl-C and SIGTERM end it alike: by cancelling, so that the runner puts everything in order on its way out."""
    working, loop = asyncio.ensure_future(runner.start()), asyncio.get_running_loop()
    await asyncio.sleep(0)  # the runner sets a handler of its own as it starts, which raises in the middle of anything
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, working.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await working


def _schedule(offer: Offer) -> Any:
    if offer.cron is None:
        return None
    try:
        CronSchedule(cron=offer.cron, timezone=offer.timezone)
    except ValueError as error:
        raise ValueError(
            f"--cron {offer.cron!r} in {offer.timezone} is no schedule: {error}. Write one such as '0 3 * * *'."
        ) from error
    return Cron(offer.cron, timezone=offer.timezone)


def _those_of(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    known = DEPLOYMENTS[name].parameters.properties
    return {key: value for key, value in parameters.items() if key in known}
