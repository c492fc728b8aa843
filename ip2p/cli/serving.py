"""`ip2p serve`: the flows as deployments that start from Prefect's page or on a schedule."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from ip2p.cli.arguments import NewRun, Whole
from ip2p.config import PipelineConfig
from ip2p.console import suggest
from ip2p.presets import PRESETS
from ip2p.store.mirror import url_of
from ip2p.uses import USES

DEPLOYMENTS = {use.command: use for use in USES.values()}
"""Uses by the name of their deployment, which is that of the command that does the same."""


@dataclass(frozen=True, kw_only=True)
class Serving(NewRun):
    """Arguments of `ip2p serve`. A preset and settings fill in the forms."""

    is_optional: ClassVar[bool] = True
    deployment: Annotated[str | None, tyro.conf.arg(metavar=",".join(DEPLOYMENTS))] = None
    """Deployments to offer, separated by commas. Default: all."""
    limit: Whole = 1
    """Runs at a time; others wait."""
    port: Whole | None = None
    """Port of Prefect's server. Default: a free one."""
    data: str | None = None
    """Data that the form of `train` is filled in with."""
    run: str | None = None
    """Run that the form of `ablate` is filled in with."""
    cron: str | None = None
    """Schedule such as "0 3 * * *", for one deployment."""
    timezone: str = "UTC"
    """Time zone of the schedule, such as Europe/Berlin."""

    def check(self, config: PipelineConfig) -> None:
        """Requires a preset if there are settings."""
        if self.preset is None and (self.config or config != PipelineConfig()):
            raise ValueError(f"serve fills in forms that start from a preset. Name one: {', '.join(PRESETS)}.")


def serve(arguments: Serving, config: PipelineConfig) -> None:
    """Serves run, dataset, train and ablate as deployments that start from Prefect's page or on a schedule."""
    names = list(dict.fromkeys(arguments.deployment.split(","))) if arguments.deployment else list(DEPLOYMENTS)
    for name in names:
        if name not in DEPLOYMENTS:
            raise ValueError(f"unknown deployment {name}. {suggest(name, list(DEPLOYMENTS))}")
    given = {"data": arguments.data, "run": arguments.run}
    parameters: dict[str, object] = {name: value for name, value in given.items() if value}
    if arguments.cron:
        _check_schedule(names, parameters)
    if arguments.preset:
        from flows.forms import differences

        settings = differences(config, PRESETS[arguments.preset]()) or None
        parameters |= {"preset": arguments.preset, "out": url_of(config.out), "settings": settings}
    from flows.server import prefect_server

    with prefect_server(lambda: importlib.import_module("flows.deployments"), schedules=True, port=arguments.port):
        from flows.deployments import Offer, offer_deployments

        cron, timezone, limit = arguments.cron, arguments.timezone, arguments.limit
        offer = Offer(names=names, parameters=parameters, cron=cron, timezone=timezone, limit=limit)
        offer_deployments(offer, lambda url: _say(url, names, cron))
    print("No longer serving.")


def _check_schedule(names: list[str], parameters: dict[str, object]) -> None:
    """Requires one deployment, and the arguments of its use that have no default."""
    if len(names) != 1:
        raise ValueError("--cron is for one deployment. Name it, such as --deployment dataset.")
    for argument in DEPLOYMENTS[names[0]].arguments:
        if not argument.choices and argument.name not in parameters:
            raise ValueError(f"--cron for {names[0]} needs --{argument.name}, which a scheduled run cannot ask for.")


def _say(url: str, names: Sequence[str], cron: str | None) -> None:
    print(f"  {'page':<11} {url}/deployments")
    for name in names:
        print(f"  {name:<11} prefect deployment run 'ip2p {name}/{name}'{f'; scheduled at {cron}' if cron else ''}")
    print("Runs start in this folder. Ctrl-C ends them and this server.", flush=True)
