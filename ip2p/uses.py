"""What a run needs before it starts, and whether a finished one has anything left to do.

Whole runs are compared by what was asked and by the names, sizes and times of the files they read and wrote, in
milliseconds and without a model. Where that says "something differs", the stages find out what by their own checksums.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from ip2p import __version__, prompts, store
from ip2p.config import PipelineConfig, fingerprint, to_dict
from ip2p.records import content_hash

logger = logging.getLogger(__name__)

Use = Literal["pipeline", "dataset", "training"]
"""The three uses of the software; each is a flow of its own."""

SHARDED = ("answers", "triplets", "candidates", "pairs")
LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "open_clip_torch",
    "datasets",
    "prefect",
    "pyarrow",
    "numpy",
)
WRITTEN_ALWAYS = ("config.json", "summary.json", "completed.json", "run.log")
"""Files of a run folder that say nothing of whether it is finished."""


def shard_numbers(config: PipelineConfig) -> list[int]:
    """The numbers of the run's shards; those that an earlier, longer run left behind are removed."""
    num_shards = prompts.num_shards(config)
    for stage in SHARDED:
        store.RunFolder(config.out).drop_shards_from(stage, num_shards)
    return list(range(num_shards))


def check_inputs(config: PipelineConfig, use: Use, data: str | None = None) -> None:
    """Says what is missing before anything is started: captions, model folders, data. ValueError with the way out."""
    from ip2p.models.loading import check_model_source
    from ip2p.training.data import find_files, open_rows

    if use != "training":
        prompts.num_shards(config)
        if prompts.asks_a_model(config):
            prompts.check_backend(config.prompts)
        check_model_source(config.rendering.model, what="rendering.model", marker="model_index.json")
        if _is_path(config.scoring.clip_model):
            check_model_source(config.scoring.clip_model, what="scoring.clip_model", marker="open_clip_config.json")
    if use != "dataset":
        judge = config.evaluation.judge_clip_model
        if judge and _is_path(judge):
            check_model_source(judge, what="evaluation.judge_clip_model", marker="open_clip_config.json")
        start = config.training.pretrained_model_name_or_path
        check_model_source(start, what="training.pretrained_model_name_or_path", marker="model_index.json")
    if use == "training" and find_files(data or ""):
        open_rows(data or "", config.training)


def carry_out(config: PipelineConfig, use: Use, work: Callable[[], None], data: str | None = None) -> bool:
    """Does the work, what it needs before and after included, unless it is done; then False."""
    if is_complete(config, use, data):
        return False
    check_inputs(config, use, data)
    store.hold(config.out)
    if any(config.out.glob("triplets/*.json")) or (config.out / "training").exists():
        logger.info("going on in %s: what is finished there is kept", config.out)
    write_config(config, data)
    work()
    record_completion(config, use, data)
    return True


def record_completion(config: PipelineConfig, use: Use, data: str | None = None) -> None:
    """Notes that a use of the software has run to its end in this folder."""
    path = config.out / "completed.json"
    store.write_json(path, {**_read_completed(path), use: _state(config, use, data)})


def is_complete(config: PipelineConfig, use: Use, data: str | None = None) -> bool:
    """True where the same was asked before, ran to its end, and neither its inputs nor its results changed since."""
    noted = _read_completed(config.out / "completed.json").get(use)
    return noted is not None and noted == _state(config, use, data)


def describe_environment(data: str | None = None) -> dict[str, Any]:
    """Versions of this package, of Python and of the libraries that decide results; the commit of a checkout."""
    found = {name: version for name in LIBRARIES if (version := _version(name))}
    return {
        "ip2p": __version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "data": data,
        "libraries": found,
    }


def write_config(config: PipelineConfig, data: str | None = None) -> None:
    """Writes the run's resolved config."""
    store.write_run_config(config.out, to_dict(config), describe_environment(data))


def _read_completed(path: Path) -> dict[str, Any]:
    try:
        found = store.read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(config: PipelineConfig, use: Use, data: str | None) -> dict[str, str]:
    made = (
        config.prompts,
        config.rendering,
        config.scoring,
        config.filtering,
        config.dataset,
        config.evaluation.domain,
    )
    trained = (config.training, config.evaluation, config.scoring)
    parts = {"dataset": made, "training": trained, "pipeline": (*made, *trained)}[use]
    return {
        "asked": fingerprint(__version__, *parts, data),
        "inputs": _signature(_inputs(config, use, data)),
        "results": _signature(_results(config.out)),
    }


def _inputs(config: PipelineConfig, use: Use, data: str | None) -> Iterable[Path]:
    named: list[str | None] = [data]
    if use != "training":
        named += [config.prompts.captions, config.prompts.examples, config.prompts.model]
        named += [config.rendering.model, config.scoring.clip_model]
    if use != "dataset":
        named += [config.training.pretrained_model_name_or_path, config.scoring.clip_model]
        named += [config.evaluation.judge_clip_model, config.evaluation.data]
    for name in filter(None, named):
        path = Path(name).expanduser()
        yield from sorted(path.rglob("*")) if path.is_dir() else [path]


def _results(root: Path) -> Iterable[Path]:
    return (path for path in sorted(root.rglob("*")) if not (path.parent == root and path.name in WRITTEN_ALWAYS))


def _signature(paths: Iterable[Path]) -> str:
    """Hash of names, sizes and times of modification."""
    seen: list[object] = []
    for path in paths:
        if path.is_file():
            stat = path.stat()
            seen += [path, stat.st_size, stat.st_mtime_ns]
    return content_hash(*seen)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this package lies in, with a `+` where files were changed; None elsewhere."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + "+" * bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
