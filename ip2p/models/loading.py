"""Loads every heavy model once per process, under a key of plain values.

A lock guards the table (`lru_cache` is not a lock: four threads would load four times). Model folders are checked here,
so that a wrong path is a one-line error and never a search on the hub.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from ip2p.console import first_line
from ip2p.sources.content import version_of_model, weight_files

if TYPE_CHECKING:
    import open_clip
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

T = TypeVar("T")
_models: dict[Hashable, tuple[list[str | None], Any]] = {}
_lock = threading.RLock()


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ClipModel:
    """An open_clip model with its own image transform and tokenizer."""

    model: open_clip.CLIP
    preprocess: Callable[[Any], torch.Tensor]
    tokenize: Callable[[list[str]], torch.Tensor]
    device: str


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A transformers image encoder with its own preprocessing."""

    model: PreTrainedModel
    processor: Callable[..., Any]
    device: str


def keep_freed_memory() -> None:
    """Tells glibc to keep what tensors free: handing pages back after every operation is slow.

    On two CPU cores a training step took 1.8 times as long without this (`tests/benchmarks/allocator.py`). Does nothing
    under another C library.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**28)


def return_freed_memory() -> None:
    """Has glibc hand back what is free now, despite `keep_freed_memory`: what comes next has no use for its pieces."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def load_once(key: Hashable, load: Callable[[], T], *, files: Iterable[str | None] = ()) -> T:
    """Returns the model under `key`, loading it the first time, also when several threads ask at once.

    It is loaded again if its `files`, which are folders or files on this machine, were written since.
    """
    version = [version_of_model(name) for name in files if name]
    with _lock:
        if key not in _models or _models[key][0] != version:
            keep_freed_memory()
            started = time.monotonic()
            _models[key] = version, load()
            logger.info("loaded %s in %.1f s", key, time.monotonic() - started)
        return _models[key][1]  # type: ignore[no-any-return]


def unload_all() -> None:
    """Drops every model and gives its memory back."""
    with _lock:
        _models.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def resolve_device(name: str) -> str:
    """Turns `auto` into cuda, mps or cpu; anything else stays."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(name: str, device: str) -> str:
    """Turns `auto` into bfloat16 if `device` multiplies it in hardware, else float32; anything else stays.

    A CPU without such instructions computes bfloat16 too, but slower than float32.
    """
    if name != "auto":
        return name
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bfloat16" if native else "float32"


def check_model_source(name: str, *, what: str, marker: str) -> str:
    """Returns `name` if it is a folder that holds `marker` or can be a hub id. ValueError otherwise."""
    if not name:
        raise ValueError(f"{what} is not set. Give a model folder or a hub id.")
    path = Path(name).expanduser()
    if path.is_file():
        way_out = f'diffusers\' from_single_file("{name}").save_pretrained("FOLDER") makes one of it'
        raise ValueError(f"{what} {name} is a single file, expected a model folder: {way_out}.")
    if path.is_dir():
        if not (path / marker).exists():
            raise ValueError(f"{what} {name} has no {marker}. Give a folder in the standard format or a hub id.")
        return str(path)
    looks_like_hub_id = name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    if path.is_absolute() or not looks_like_hub_id:
        raise ValueError(f"{what} {name} does not exist. Give an existing model folder or a hub id (owner/name).")
    return name


def load_clip(model: str, pretrained: str | None, *, device: str) -> ClipModel:
    """Loads an open_clip model in float32, from a local folder or by architecture and weights."""
    import open_clip

    def load() -> ClipModel:
        place = resolve_device(device)
        if Path(model).is_dir():
            check_model_source(model, what="scoring.clip_model", marker="open_clip_config.json")
            name, weights = f"local-dir:{model}", None
        else:
            name, weights = model, pretrained
            names = open_clip.list_models()
            if name not in names and not name.startswith(("hf-hub:", "local-dir:")):
                raise ValueError(
                    f"scoring.clip_model {name} is neither a folder nor one of open_clip's {len(names)} models."
                )
        clip, _, preprocess = from_source(open_clip.create_model_and_transforms, name, pretrained=weights, device=place)
        return ClipModel(clip.eval().requires_grad_(False), preprocess, open_clip.get_tokenizer(name), place)

    return load_once(("clip", model, pretrained, resolve_device(device)), load, files=(model, pretrained))


def load_image_model(model: str, *, device: str) -> ImageModel:
    """Loads an image encoder such as DINOv2 in float32, with the preprocessing that it was trained with."""

    def load() -> ImageModel:
        source = check_model_source(model, what="scoring.dino_model", marker="preprocessor_config.json")
        network = from_source(AutoModel.from_pretrained, source)
        processor = from_source(AutoImageProcessor.from_pretrained, source)
        place = resolve_device(device)
        return ImageModel(network.to(place).eval().requires_grad_(False), processor, place)

    return load_once(("image-model", model, resolve_device(device)), load, files=[model])


def load_language_model(model: str, *, revision: str | None, device: str, dtype: str = "float32") -> LanguageModel:
    """Loads a causal language model, padded on the left for batched generation."""

    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)

    def load() -> LanguageModel:
        source = check_model_source(model, what="prompts.model", marker="config.json")
        tokenizer = from_source(AutoTokenizer.from_pretrained, source, revision=revision, padding_side="left")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        options: dict[str, Any] = {"revision": revision, "dtype": getattr(torch, precision)}
        network = from_source(AutoModelForCausalLM.from_pretrained, source, **options)
        return LanguageModel(network.to(place).eval(), tokenizer)

    return load_once(("language-model", model, revision, precision, place), load, files=[model])


def load_tokenizer(model: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads the text tokenizer of a diffusers model folder or hub id."""

    def load() -> PreTrainedTokenizerBase:
        source = check_model_source(model, what="rendering.model", marker="model_index.json")
        tokenizer: PreTrainedTokenizerBase = from_source(
            AutoTokenizer.from_pretrained, source, revision=revision, subfolder="tokenizer"
        )
        return tokenizer

    return load_once(("tokenizer", model, revision), load, files=[f"{model}/tokenizer"])


def from_source(
    load: Callable[..., Any],
    source: str | Path,
    *,
    what: str | None = None,
    way_out: str = "Give an existing model folder or a hub id.",
    **options: Any,
) -> Any:
    """Returns `load(source, **options)`; a failure becomes a ValueError of one line. `what` names it in the error."""
    try:
        loaded = load(source, **options)
        for part in getattr(loaded, "components", {"": loaded}).values():
            if hasattr(part, "all_special_ids") and len(part) <= len(part.all_special_ids):
                raise ValueError("the tokenizer has no words, so its vocabulary is missing")  # transformers takes it
        return loaded
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of the many kinds of the libraries and their file formats
        name = what or (f"{options['subfolder']} of {source}" if "subfolder" in options else source)
        raise ValueError(f"could not load {name}: {first_line(error).rstrip('.')}. {way_out}") from error


def weights_in(folder: Path, variant: str | None) -> dict[str, Any]:
    """Returns the options with which diffusers and transformers load the weights of a model's or a part's folder.

    Safetensors are preferred to `.bin` files, of which both libraries read tensors alone. Parts without plain weights
    are loaded in the only variant that there is. ValueError if a variant is missing or must be chosen. A hub id is left
    to the libraries.
    """
    if not folder.is_dir():
        return {"variant": variant}
    listed = (weight_files(part) for part in (folder, *folder.iterdir()) if part.is_dir())
    parts = [{(file.variant, file.format) for file in files} for files in listed if files]
    names = [{name for name, _ in files} for files in parts]
    variants = ", ".join(sorted({name for part in names for name in part if name})) or "none"
    if variant is None and (lacking := [part for part in names if None not in part]):
        common = set.intersection(*lacking)
        if len(common) != 1:
            raise ValueError(f"{folder} has no plain weights; its variants are: {variants}. Set variant to one.")
        (variant,) = common
        logger.info("%s has no plain weights: loading the variant %s", folder, variant)
    elif variant is not None and parts and not any(variant in part for part in names):
        raise ValueError(f"{folder} has no variant {variant}; its variants are: {variants}. Set or leave out variant.")
    chosen = [variant if variant in part else None for part in names]
    are_safe = {(name, "safetensors") in files for name, files in zip(chosen, parts, strict=True)}
    return {"variant": variant, "use_safetensors": None if len(are_safe) == 2 else False not in are_safe}
