"""`ip2p serve`: the flows as deployments, to be started from Prefect's page or by a schedule."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from ip2p.cli.arguments import parse_new_run, take_option, take_whole
from ip2p.config.files import suggest
from ip2p.presets import PRESETS

NAMES = ("run", "dataset", "train", "ablate")
"""The deployments, each named after the command that does the same."""
NEEDED = {"train": "data", "ablate": "run"}
"""What a deployment cannot be started without."""
OPTIONS = (
    " [--deployment run,dataset,train,ablate] [--limit N] [--port N] [--data DATASET] [--run RUN]"
    ' [--cron "0 3 * * *" [--timezone Europe/Berlin]]'
)


def serve(words: list[str]) -> None:
    """Offers run, dataset, train and ablate on Prefect's page, to be started there or by a schedule."""
    names, cron, zone = (take_option(words, name) for name in ("deployment", "cron", "timezone"))
    limit, port = (take_whole(words, name) for name in ("limit", "port"))
    filled_in: dict[str, Any] = {name: value for name in NEEDED.values() if (value := take_option(words, name))}
    chosen = _choose(names)
    if words:
        filled_in |= _parameters(words)
    if cron:
        _check_schedule(chosen, filled_in)
    from flows.server import prefect_server

    with prefect_server(lambda: importlib.import_module("flows.deployments"), schedules=True, port=port):
        from flows.deployments import Offer, offer_deployments

        offer = Offer(names=chosen, parameters=filled_in, cron=cron, timezone=zone or "UTC", limit=limit or 1)
        offer_deployments(offer, lambda url: _say(url, offer.names, cron))
    print("No longer serving.")


def _choose(names: str | None) -> list[str]:
    chosen = list(dict.fromkeys(names.split(","))) if names else list(NAMES)
    for name in chosen:
        if name not in NAMES:
            raise ValueError(f"unknown deployment {name}. {suggest(name, NAMES)}")
    return chosen


def _parameters(words: list[str]) -> dict[str, Any]:
    """What the flags fill the forms in with: the preset, the folder, and the knobs that differ from the preset's."""
    preset = words[0] if not words[0].startswith("-") else None
    config = parse_new_run(words, "serve", options=OPTIONS)
    if preset is None:
        raise ValueError(f"`ip2p serve` fills in forms that start from a preset. Name one: {', '.join(PRESETS)}.")
    from flows.forms import differences

    return {"preset": preset, "out": str(config.out), "settings": differences(config, PRESETS[preset]()) or None}


def _check_schedule(chosen: list[str], filled_in: dict[str, Any]) -> None:
    if len(chosen) != 1:
        raise ValueError("--cron is for one deployment. Name it, such as --deployment dataset.")
    needed = NEEDED.get(chosen[0])
    if needed and needed not in filled_in:
        raise ValueError(f"--cron for {chosen[0]} needs --{needed}: nobody is there to fill it in.")


def _say(url: str, names: Sequence[str], cron: str | None) -> None:
    print(f"  {'page':<11} {url}/deployments")
    for name in names:
        print(f"  {name:<11} prefect deployment run 'ip2p {name}/{name}'{f'; by itself at {cron}' if cron else ''}")
    print("Runs start in this folder. Ctrl-C ends them and this.", flush=True)
