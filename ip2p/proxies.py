"""Keeps a proxy in the environment away from this machine's own servers, and names it in errors about others."""

from __future__ import annotations

import os
from urllib.parse import urlsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass

THIS_MACHINE = ("127.0.0.1", "localhost")


def reach_this_machine_directly() -> None:
    """Adds this machine to NO_PROXY, for this process and its children, if the environment names a proxy.

    Of the two spellings, clients prefer the one or the other; both get what Python goes by.
    """
    proxies = getproxies_environment()
    excluded = proxies.pop("no", "")
    if not proxies or "*" in excluded:
        return
    hosts = [host.strip() for host in excluded.split(",") if host.strip()]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(dict.fromkeys([*hosts, *THIS_MACHINE]))


def proxy_for(url: str) -> str | None:
    """Returns the proxy between this process and a URL, without its password; None if there is none."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    scheme, colon, place = proxy.rpartition("://")
    return scheme + colon + place.rpartition("@")[2]
