"""Examines the machine: libraries, memory, device, disk, network and tokens, in an instant.

Torch takes seconds to import, so it is only asked if there is a GPU for it to use.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import psutil
from packaging.requirements import Requirement

from ip2p.config import ServerConfig
from ip2p.doctor.findings import Finding, look, size_of
from ip2p.store import describe_environment

TOKENS = ("HF_TOKEN", "WANDB_API_KEY", "COMET_API_KEY", ServerConfig().api_key_variable)
GPU_DRIVERS = ("/proc/driver/nvidia/version", "/dev/kfd")
"""Files of the drivers of NVIDIA's and AMD's GPUs."""
BF16_FLAGS = {"avx512_bf16", "amx_tile"}
"""Flags of a CPU that multiplies bfloat16, as torch asks for them."""
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
SCARCE_MEMORY, SCARCE_DISK = 4 * 2**30, 10 * 2**30
PROXY_SECONDS = 3.0


def examine_machine(prefect: Callable[[], str]) -> Iterator[Finding]:
    """Yields findings about this machine; `prefect` names the Prefect server or raises ValueError."""
    yield from examine_libraries()
    yield _memory()
    yield from _device()
    yield free_disk(Path.cwd())
    yield from _proxies()
    yield look("Prefect", prefect)
    present = [name for name in TOKENS if os.environ.get(name)]
    absent = [name for name in TOKENS if name not in present]
    yield Finding("ok", "tokens", f"set: {', '.join(present) or 'none'}; not set: {', '.join(absent) or 'none'}")


def examine_libraries() -> Iterator[Finding]:
    """Compares Python and the libraries with what the installed package requires."""
    try:
        package = importlib.metadata.metadata("ip2p")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "warning", "libraries", "ip2p is not installed, so its requirements are unknown: pip install -e ."
        )
        return
    yield Finding("ok", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    extras = package.get_all("Provides-Extra") or []
    wrong, absent, num_right = [], set(), 0
    for requirement in map(Requirement, importlib.metadata.requires("ip2p") or ()):
        marker = requirement.marker
        extra = next((extra for extra in ("", *extras) if not marker or marker.evaluate({"extra": extra})), None)
        if extra is None:  # not for this system
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if not version and extra:
            absent.add(extra)
        elif finding := _compared(requirement, version):
            wrong.append(finding)
        else:
            num_right += 1
    yield from wrong
    libraries = describe_environment()["libraries"]
    listed = (
        ", ".join(f"{name} {version}" for name, version in libraries.items()) if isinstance(libraries, dict) else ""
    )
    yield Finding("ok", "libraries", f"{num_right} as required, among them {listed}")
    if absent:
        yield Finding("ok", "extras", f"not installed: {', '.join(f'ip2p[{extra}]' for extra in sorted(absent))}")


def _compared(requirement: Requirement, version: str) -> Finding | None:
    """Returns a problem if the version is outside the bounds, or empty."""
    if version and requirement.specifier.contains(version, prereleases=True):
        return None
    pin = f"{requirement.name}{requirement.specifier}"
    got = f"got {version}" if version else "which is not installed"
    return Finding("problem", "library", f"ip2p needs {pin}, {got}. Install it: pip install '{pin}'")


def free_memory() -> int:
    """Returns the bytes of memory that this process may still take."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int(MEMORY_LIMIT.read_text())
        used = int(MEMORY_LIMIT.with_name("memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used)


def _memory() -> Finding:
    free, total = free_memory(), psutil.virtual_memory().total
    text = f"{size_of(free)} of {size_of(total)} free"
    if free < SCARCE_MEMORY:
        return Finding("warning", "memory", f"{text}. Models may not fit: end other programs, or lower batch sizes.")
    return Finding("ok", "memory", text)


def _device() -> Iterator[Finding]:
    """Names the GPUs that torch can use, or the CPU, and whether it multiplies bfloat16."""
    if shutil.which("nvidia-smi") is None and not any(Path(file).exists() for file in GPU_DRIVERS):
        is_apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding("ok", "device", "Apple's GPU (mps)" if is_apple else f"CPU, {cores} cores; no GPU was found")
        native = is_apple or multiplies_bf16()
    else:
        import torch

        from ip2p.models.loading import resolve_dtype

        if not torch.cuda.is_available():
            yield Finding(
                "problem",
                "device",
                f"there is a GPU, but torch {torch.__version__} cannot use it. Install a torch for its driver, or set "
                "device to cpu to do without it.",
            )
            return
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            yield Finding("ok", f"cuda:{number}", f"{name}, {size_of(free)} of {size_of(total)} free")
        native = resolve_dtype("auto", "cuda") == "bfloat16"
    yield Finding("ok", "bfloat16", "in hardware" if native else "not in hardware: `auto` means float32 here")


def multiplies_bf16() -> bool:
    """Returns whether this CPU multiplies bfloat16, as torch would say."""
    try:
        return not BF16_FLAGS.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def free_disk(folder: Path, need: int | None = None) -> Finding:
    """Compares the free disk of a folder, which need not exist yet, with the bytes that are needed there."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = f"{size_of(free)} free in {place}"
    if need is None:
        way_out = "A run of photographs needs more: free some, or set --out to another disk."
        return Finding("warning", "disk", f"{text}. {way_out}") if free < SCARCE_DISK else Finding("ok", "disk", text)
    text += f"; about {size_of(need)} needed"
    way_out = "Free some, or set --out to another disk."
    return Finding("problem", "disk", f"{text}. {way_out}") if free < need else Finding("ok", "disk", text)


def _proxies() -> Iterator[Finding]:
    """Connects to the proxies that the environment names; shows neither their users nor their passwords."""
    proxies = getproxies_environment()
    excluded = proxies.pop("no", "")
    for scheme, address in proxies.items():
        name = f"{scheme}_proxy".upper()
        try:
            parts = urlsplit(address if "://" in address else f"//{address}")
            host, port = parts.hostname or "", parts.port or 80
            socket.create_connection((host, port), timeout=PROXY_SECONDS).close()
        except (OSError, ValueError) as error:
            text = f"{name} does not answer: {error}. Correct or unset it; NO_PROXY excludes hosts."
            yield Finding("warning", "proxy", text)
        else:
            yield Finding("ok", "proxy", f"{name} is {host}:{port}; NO_PROXY is {excluded or 'not set'}")
    if not proxies:
        yield Finding("ok", "proxy", "none is set")
