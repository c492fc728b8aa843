"""The content of what results are made from: models and data, in local files or on the hub.

A local file is known by its SHA-256, which is computed once for each version of the file and kept in the user's cache;
a hub repository by its commit. Where results lie, `made_from.json` lists the contents that each name has had, from the
first. The first content enters no fingerprint, so that results made before it was noted stay valid; any later one does.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from huggingface_hub import HfApi, constants

from ip2p.config import MADE_BY_SERVER, PipelineConfig, fingerprint
from ip2p.records import content_hash
from ip2p.sources.location import HUB_ID, visible_files
from ip2p.store import read_json_or_empty, sha256_of, write_json
from ip2p.store.journal import Journal

logger = logging.getLogger(__name__)

NOTE = "made_from.json"
MODELS = {
    "prompts": ("prompts.model",),
    "rendering": (
        "rendering.model",
        "scoring.clip_model",
        "scoring.clip_pretrained",
        "scoring.dino_model",
        "scoring.nsfw_head",
    ),
    "training": ("training.pretrained_model_name_or_path", "training.pretrained_vae_model_name_or_path"),
    "evaluation": (
        "scoring.clip_model",
        "scoring.clip_pretrained",
        "evaluation.judge_clip_model",
        "evaluation.judge_clip_pretrained",
        "evaluation.vlm.model",
    ),
}
"""Settings that name the models which a stage loads; one that is not on this machine, such as a name that open_clip
knows, stands for itself."""
LOADED = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Suffixes of weights, configs and tokenizers."""
PICKLED = (".bin", ".pth", ".pt")
"""Suffixes of weights that are loaded from folders without .safetensors."""
AT_REVISION = ("model", "pretrained_model_name_or_path")
"""Settings that are loaded at the `revision` of their section."""
HASHED_BYTES = 1 << 30
"""Files up to this size in total are compared by content, larger ones by size and time."""
WITHOUT_MODEL = ("server", "template", *MADE_BY_SERVER)
"""Backends for which `model` names nothing on this machine."""
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|open_clip_model|open_clip_pytorch_model|pytorch_model|model)"
    r"(?:\.([\w-]+?))?\.(safetensors|bin)"
)
"""The name of a file of weights, without the number of its shard: its variant, if it is one, and its format."""
LARGE = 1 << 20
"""Size in bytes from which on a file's digest is kept."""
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_TIMEOUT = 5.0
_noting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Source:
    """A model or data, by the name that a setting gives it."""

    setting: str
    name: str
    revision: str | None = None
    part: str = ""
    """The folder of a local model that counts; on the hub, a part is known by the model's name and revision alone."""
    is_data: bool = False

    @property
    def key(self) -> str:
        """Returns its name in `made_from.json`."""
        return "/".join(filter(None, (self.name, self.part))) + f"@{self.revision}" * bool(self.revision)


def models_of(config: PipelineConfig, stage: str) -> list[Source]:
    """Returns the models that a stage's results are made with; of the renderer, prompts use the tokenizer alone."""
    sources = []
    has_judge = stage == "evaluation" and bool(config.evaluation.judge_clip_model)
    for setting in MODELS.get(stage, ()):
        path, _, field = setting.rpartition(".")
        if has_judge and path == "scoring":
            continue
        section = attrgetter(path)(config)
        name = getattr(section, field)
        if name and not (field == "model" and getattr(section, "backend", "") in WITHOUT_MODEL):
            sources.append(Source(setting, name, section.revision if field in AT_REVISION else None))
    if stage == "rendering":
        sources += [Source(f"scoring.further.{name}", value) for name, value in config.scoring.further.items()]
    if stage == "prompts" and config.rendering.model and config.rendering.backend not in MADE_BY_SERVER:
        sources.append(Source("rendering.model", config.rendering.model, config.rendering.revision, part="tokenizer"))
    return sources


def content_of(source: Source) -> str | None:
    """Returns the hash of local files or the commit of a hub repository; None if neither can be told."""
    path = _local(source.name) / source.part
    if source.is_data and path.exists():
        return version_of(visible_files(path) if path.is_dir() else [path])
    if path.exists():
        return content_hash(*((file.relative_to(path).as_posix(), digest_of(file)) for file in loaded_files(path)))
    return commit_of(source)


def commit_of(source: Source) -> str | None:
    """Returns the commit of a hub repository; None if it cannot be told, or if the source is on this machine."""
    if source.part or _local(source.name).exists():
        return None
    return hub_commit(source.name.removeprefix("hf-hub:"), source.revision, "dataset" if source.is_data else "model")


def _local(name: str) -> Path:
    return Path(name.removeprefix("local-dir:")).expanduser()


def version_of_model(name: str) -> str | None:
    """Returns the `version_of` a model's files; None if it is not on this machine."""
    path = _local(name)
    return version_of(loaded_files(path)) if path.exists() else None


def loaded_files(folder: Path) -> list[Path]:
    """Lists the files of a model that are loaded, in order: weights, configs and tokenizers; a file is all there is."""
    if folder.is_file():
        return [folder]
    files = [path for path in sorted(folder.rglob("*")) if not path.name.startswith(".") and path.is_file()]
    safe = {path.parent for path in files if path.suffix == ".safetensors"}
    return [path for path in files if path.suffix in LOADED or (path.suffix in PICKLED and path.parent not in safe)]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of a network's weights."""

    path: Path
    variant: str | None
    """None for plain weights."""
    format: str


def weight_files(folder: Path) -> list[WeightFile]:
    """Lists the weights of one network, in the order of their names; none if there is no such folder."""
    named = [(path, re.sub(r"-\d+-of-\d+", "", path.name)) for path in (folder.iterdir() if folder.is_dir() else ())]
    matches = ((path, WEIGHTS.fullmatch(name)) for path, name in sorted(named))
    return [WeightFile(path, match[1], match[2]) for path, match in matches if match]


def digest_of(path: Path) -> str:
    """Returns a file's SHA-256; a version that was hashed before on this machine is not read again."""
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, *times: int) -> str:
    kept, key = _kept_digests(), content_hash(path, size, *times)
    if kept is None or size < LARGE:
        return sha256_of(path)
    answer = kept.get(key) or {"sha256": sha256_of(path)}
    with suppress(OSError):  # a cache that cannot be written to
        kept.add(key, answer)
    return str(answer["sha256"])


@functools.cache
def _kept_digests() -> Journal | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        return Journal(cache / "ip2p" / "digests.jsonl")
    except OSError:
        return None


def version_of(files: Sequence[Path]) -> str:
    """Hashes names, sizes and times, without reading the files."""
    stats = [(file, file.stat()) for file in files]
    return content_hash(*((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats))


def fingerprint_files(paths: list[Path]) -> str:
    """Hashes a set of files: by content, or by size and time if they are large."""
    sizes = [path.stat().st_size for path in paths]
    if sum(sizes) <= HASHED_BYTES:
        return fingerprint([path.name for path in paths], [digest_of(path) for path in paths])
    return fingerprint([(path.name, size, path.stat().st_mtime_ns) for path, size in zip(paths, sizes, strict=True)])


@functools.cache
def hub_commit(name: str, revision: str | None, kind: str) -> str | None:
    """Returns the commit that a revision names, asked once per process; offline that of the local cache, or None."""
    if not HUB_ID.fullmatch(name):
        return None
    if revision and COMMIT.fullmatch(revision):
        return revision
    try:
        return HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=HUB_TIMEOUT).sha
    except Exception as error:  # whatever the hub's HTTP client raises
        logger.debug("the hub did not name the commit of %s: %s", name, error)
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    return reference.read_text().strip() if reference.is_file() else None


def note(folder: Path, sources: Sequence[Source]) -> list[str]:
    """Adds the contents that are new to a folder's `made_from.json`, and returns the `later_contents`."""
    contents = {source.key: content_of(source) for source in sources}
    with _noting:
        noted = read_json_or_empty(folder / NOTE)
        new = {key: content for key, content in contents.items() if content and noted.get(key, [])[-1:] != [content]}
        if new:
            write_json(folder / NOTE, noted | {key: [*noted.get(key, []), content] for key, content in new.items()})
    return later_contents(folder, sources)


def later_contents(folder: Path, sources: Iterable[Source]) -> list[str]:
    """Returns what is to enter a fingerprint: the contents of sources that had another one when they were noted first.

    A source that was never noted counts as unchanged.
    """
    noted = read_json_or_empty(folder / NOTE)
    contents = ((noted[source.key][0], content_of(source)) for source in sources if source.key in noted)
    return [content for first, content in contents if content and content != first]


def changed_settings(folder: Path, sources: Iterable[Source]) -> list[str]:
    """Returns the settings whose sources have another content than when they were noted last."""
    noted = read_json_or_empty(folder / NOTE)
    noted_sources = [source for source in sources if source.key in noted]
    return list(
        dict.fromkeys(each.setting for each in noted_sources if content_of(each) not in (None, noted[each.key][-1]))
    )
