"""Settings of OpenAI-compatible servers: how one is reached, and what a request to one of its routes says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ip2p.config.fields import check, check_not_negative, check_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """Reaches an OpenAI-compatible endpoint. Every setting may change during a run."""

    base_url: str = ""
    """Base URL, such as http://127.0.0.1:8000/v1: vLLM, llama.cpp, Ollama, `transformers serve` or a hosted service."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key. A local server needs none."""
    concurrency: int = 8
    """Concurrent requests per shard."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""
    max_retries: int = 8
    """Retries after a transient error, with exponential backoff."""
    first_delay: float = 1.0
    """Upper bound in seconds of the first backoff delay, which is drawn from its upper half; doubles every retry."""
    max_delay: float = 60.0
    """Longest backoff delay in seconds."""

    def __post_init__(self) -> None:
        check_positive(self, "concurrency", "timeout", "first_delay", "max_delay")
        check_not_negative(self, "max_retries")
        check(
            not self.base_url or self.base_url.startswith(("http://", "https://")),
            f"base_url must start with http:// or https://, got {self.base_url!r}. Give the part before /chat.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(EndpointConfig):
    """Reaches an OpenAI-compatible endpoint. Every setting but `response_format` may change during a run."""

    response_format: Literal["json_object", "json_schema", "none"] = "none"
    """Response format to request. Not every server supports each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesApiConfig:
    """Says what a request to the images/edits route holds beside picture, instruction and model."""

    size: str = ""
    """Size to request: `picture` for that of the picture, `auto`, or as the server names it, such as 1024x1024.
    Default: none, so that the server decides."""
    response_format: Literal["b64_json", "url", "none"] = "none"
    """Form of the answer to request. Either form is read; some servers take the field, and some refuse it."""
    drawn: tuple[str, ...] = ()
    """Draws of a candidate to send as form fields: seed, guidance_scale, image_guidance_scale, strength.
    vLLM-Omni takes the seed and guidance_scale."""
    fields: dict[str, str] = field(default_factory=dict)
    """Further form fields as the server names them, such as num_inference_steps or quality."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.drawn) - set(SENDABLE))
        check(not unknown, f"drawn may hold {', '.join(SENDABLE)}, got {', '.join(unknown)}. Use `fields` for others.")
        taken = sorted(set(self.fields) & {*OWN_FIELDS, *self.drawn})
        check(not taken, f"fields must not hold what is set elsewhere, got {', '.join(taken)}. Leave it out.")


SENDABLE = ("seed", "guidance_scale", "image_guidance_scale", "strength")
"""Draws that a request may hold."""
OWN_FIELDS = ("model", "image", "prompt", "n", "size", "response_format")
"""Form fields that every request decides itself."""
