"""Settings of a vision-language judge, which the filter and the evaluation can ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ip2p.config.fields import OMIT_IF_EMPTY, check, check_not_negative, check_positive
from ip2p.config.server import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmConfig:
    """Has a vision-language model score edits from 0 to 10, as VIEScore does."""

    model: str | None = None
    """Name of the model on the server, or a local folder or hub id. Default: no such judge."""
    backend: Literal["server", "local"] = "server"
    """An OpenAI-compatible endpoint, or transformers in this process."""
    server: ServerConfig = ServerConfig()
    """Endpoint of the `server` backend."""
    revision: str | None = None
    """Branch, tag or commit of a local model on the hub."""
    device: str = "auto"
    """Device of a local model."""
    dtype: str = "auto"
    """Precision of a local model."""
    max_new_tokens: int = 300
    """Longest answer in tokens."""
    temperature: float = field(default=0.0, metadata=OMIT_IF_EMPTY)
    """Temperature of a server's answers; a local model always gives its likeliest."""

    def __post_init__(self) -> None:
        check_positive(self, "max_new_tokens")
        check_not_negative(self, "temperature")
        check(
            self.backend == "server" or self.temperature == 0,
            f"vlm.temperature is a server's, got {self.temperature} for a local model. Leave it out.",
        )
        asks_server = self.model is not None and self.backend == "server"
        check(
            not asks_server or bool(self.server.base_url),
            "vlm.server.base_url is not set. Give an address such as http://127.0.0.1:8000/v1.",
        )
