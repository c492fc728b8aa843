"""Knobs of the prompt stage."""

from __future__ import annotations

from dataclasses import dataclass

from ip2p.config.checks import check, check_positive

DEFAULT_EDIT_TYPE_RULES: tuple[tuple[str, str], ...] = (
    (r"^(add|put|place|insert|include)\b", "add"),
    (r"^(remove|delete|erase|take away|get rid)\b", "remove"),
    (r"^(replace|swap|exchange|substitute)\b", "replace"),
    (r"\bbackground\b", "background"),
    (r"\b(winter|spring|summer|autumn|fall|snow\w*|rain\w*|fog\w*|storm\w*)\b", "weather"),
    (r"\b(night|day|dawn|dusk|sunset|sunrise|noon|morning|evening)\b", "time of day"),
    (r"\b(painting|drawing|sketch|style|watercolou?r|cartoon|photograph|sculpture)\b", "style"),
    (r"\b(colou?r|paint|red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ae]y|gold\w*)\b", "colour"),
    (r"\b(bigger|smaller|larger|tiny|huge|size|shrink|enlarge)\b", "size"),
    (r"\b(into|become|turn)\b", "object"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsConfig:
    """Captions to edit triplets, with a causal language model in the original's delimiter format."""

    captions: str = ""
    """Text file with one caption a line."""
    num_captions: int | None = None
    """Use the first so many captions; all by default."""
    num_triplets_per_caption: int = 1
    """Triplets to write for each caption."""
    model: str = ""
    """Folder or hub id of the language model."""
    revision: str | None = None
    """Branch, tag or commit of the language model on the hub."""
    shard_size: int = 100
    """Captions per shard, the unit of work."""
    batch_size: int = 50
    """Captions per generation batch; the result does not depend on it."""
    temperature: float = 0.7
    """Sampling temperature; 0 takes the likeliest token."""
    device: str = "auto"
    """Where to generate: cpu, cuda, cuda:1, mps; `auto` takes the best there is."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    max_prompt_tokens: int | None = None
    """Longest prompt in the text encoder's tokens; what the renderer's tokenizer allows by default."""
    edit_type_rules: tuple[tuple[str, str], ...] = DEFAULT_EDIT_TYPE_RULES
    """(regular expression, edit type): the first that is found in the instruction names its type; else 'other'."""
    seed: int = 0
    """Seed of the sampling; each caption has its own generator."""

    def __post_init__(self) -> None:
        check_positive(self, "num_captions", "num_triplets_per_caption", "shard_size", "batch_size", "max_new_tokens")
        check_positive(self, "max_prompt_tokens")
        check(
            self.temperature >= 0,
            f"temperature must not be negative, got {self.temperature}. Use 0 for greedy decoding.",
        )
