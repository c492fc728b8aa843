"""Opens and checks the backend that a config names, and names the source of its triplets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ip2p.config import PromptsConfig
from ip2p.prompts.asking import Backend, read_examples
from ip2p.prompts.backends.rules import TemplateBackend
from ip2p.prompts.backends.server import ServerBackend
from ip2p.store.journal import Journal

if TYPE_CHECKING:
    from ip2p.models.loading import LanguageModel
    from ip2p.prompts.backends.transformers import ChatBackend


def open_backend(config: PromptsConfig, journal: Path, pictures: Mapping[str, bytes] | None = None) -> Backend:
    """Returns the backend with its model loaded; a server's answers go to the file `journal`.

    `pictures` are those that requests show, by hash.

    ValueError if the model cannot be loaded or the config does not say which server to ask.
    """
    if config.backend == "template":
        return TemplateBackend(config.seed)
    if config.backend == "server":
        check_server(config)
        return ServerBackend(config, Journal(journal), pictures or {})
    if config.backend == "chat":
        return _open_seeing(config, pictures) if pictures else open_chat(config)
    from ip2p.prompts.backends.transformers import CausalBackend

    return CausalBackend(_load_language_model(config), config)


def open_chat(config: PromptsConfig) -> ChatBackend:
    """Returns the backend of an instruction-tuned model in this process. ValueError as in `open_backend`."""
    from ip2p.prompts.backends.transformers import ChatBackend

    return ChatBackend(_load_language_model(config), config)


def _load_language_model(config: PromptsConfig) -> LanguageModel:
    from ip2p.models.loading import load_language_model

    return load_language_model(config.model, revision=config.revision, device=config.device, dtype=config.dtype)


def _open_seeing(config: PromptsConfig, pictures: Mapping[str, bytes]) -> Backend:
    from ip2p.models.seeing import load_seeing_model
    from ip2p.prompts.backends.seeing import SeeingBackend

    model = load_seeing_model(
        config.model, what="prompts.model", revision=config.revision, device=config.device, dtype=config.dtype
    )
    return SeeingBackend(model, config, pictures)


def check_backend(config: PromptsConfig) -> None:
    """Checks the config before anything is loaded or asked. ValueError says what is missing, with the way out."""
    if config.backend in ("causal_lm", "chat"):
        from ip2p.models.loading import check_model_source

        check_model_source(config.model, what="prompts.model", marker="config.json")
    if config.backend == "server":
        check_server(config)
    if config.backend in ("chat", "server") and config.num_examples:
        read_examples(config.examples)


def check_server(config: PromptsConfig) -> None:
    """Raises a ValueError if the config does not say which model of which server to ask."""
    if not config.model:
        raise ValueError("prompts.model is not set. Give the name under which the server has the model.")
    if not config.server.base_url:
        raise ValueError("prompts.server.base_url is not set. Give an address such as http://127.0.0.1:8000/v1.")


def name_source(config: PromptsConfig) -> str:
    """Returns a hub id as it is, the name of a local folder without its path, or `template` for rules."""
    if config.backend == "template":
        return "template"
    path = Path(config.model).expanduser()
    return path.name if path.is_dir() else config.model
