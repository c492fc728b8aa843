"""Which backend a config names, and under what name its triplets go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ip2p.config import PromptsConfig
from ip2p.prompts.asking import Answer, Backend, Request

if TYPE_CHECKING:
    from ip2p.models.loading import LanguageModel
    from ip2p.prompts.backends.transformers import Sampling


class CausalBackend:
    """A transformers model that was fine-tuned in the original's format."""

    def __init__(self, language_model: LanguageModel, config: PromptsConfig) -> None:
        self.language_model, self.config = language_model, config

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """One answer per request, in order; a prompt that fills the model's context is answered with nothing."""
        from ip2p.prompts.backends.transformers import generate

        sampling = _sampling(self.config)
        return [Answer(text) for text in generate(self.language_model, requests, sampling, on_answer=on_answer)]


def open_backend(config: PromptsConfig, journal: Path) -> Backend:
    """The backend, its model loaded; `journal` is where a server's answers are kept. ValueError where it cannot be."""
    if config.backend == "template":
        from ip2p.prompts.backends.rules import TemplateBackend

        return TemplateBackend(config.seed)
    if config.backend == "server":
        from ip2p.prompts.backends.server import ServerBackend
        from ip2p.store.journal import Journal

        check_server(config)
        return ServerBackend(config, Journal(journal))
    from ip2p.models.loading import load_language_model

    language_model = load_language_model(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype
    )
    if config.backend == "causal_lm":
        return CausalBackend(language_model, config)
    from ip2p.prompts.backends.transformers import ChatBackend

    return ChatBackend(config, language_model, _sampling(config))


def _sampling(config: PromptsConfig) -> Sampling:
    from ip2p.prompts.backends.transformers import Sampling

    return Sampling(
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        batch_size=config.batch_size,
    )


def check_backend(config: PromptsConfig) -> None:
    """Says what is missing before anything is loaded or asked. ValueError with the way out."""
    from ip2p.prompts.asking import read_examples

    if config.backend in ("causal_lm", "chat"):
        from ip2p.models.loading import check_model_source

        check_model_source(config.model, what="prompts.model", marker="config.json")
    if config.backend == "server":
        check_server(config)
    if config.backend in ("chat", "server") and config.num_examples:
        read_examples(config.examples)


def check_server(config: PromptsConfig) -> None:
    """ValueError where the config does not say what to ask."""
    if not config.model:
        raise ValueError("prompts.model is not set. Give the name under which the server has the model.")
    if not config.server.base_url:
        raise ValueError("prompts.server.base_url is not set. Give an address such as http://127.0.0.1:8000/v1.")


def name_source(config: PromptsConfig) -> str:
    """A hub id as it is; of a local folder its name, which is the same on every machine; `template` for rules."""
    if config.backend == "template":
        return "template"
    path = Path(config.model).expanduser()
    return path.name if path.is_dir() else config.model
