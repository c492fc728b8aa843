"""Settings of the prompt stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ip2p.config.fields import (
    ANSWERS_FREE,
    OMIT_IF_EMPTY,
    RESULT_FREE,
    check,
    check_not_negative,
    check_positive,
    check_share,
)
from ip2p.config.rendering import Precision
from ip2p.config.server import ServerConfig

Backend = Literal["causal_lm", "chat", "server", "template"]
"""What writes triplets about a caption."""
Language = Literal["any", "en"]

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

DEFAULT_EDIT_TYPES: tuple[tuple[str, float], ...] = (
    ("object", 2.0),
    ("attribute", 1.0),
    ("colour", 1.0),
    ("material", 1.0),
    ("background", 1.5),
    ("place", 1.0),
    ("weather", 1.0),
    ("season", 1.0),
    ("time of day", 1.0),
    ("style", 2.0),
    ("add", 1.5),
    ("remove", 1.0),
    ("replace", 1.5),
    ("clothing", 1.0),
    ("action", 1.0),
    ("expression", 0.5),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningConfig:
    """Selects captions from a source. The defaults take all of them."""

    strip_markup: bool = False
    """Remove tags, entities and web addresses, then drop captions that were mostly markup."""
    min_words: int = 1
    """Drop shorter captions."""
    max_words: int | None = None
    """Drop longer captions. Default: no limit."""
    language: Language = "any"
    """`en` drops captions that do not read as English."""

    def __post_init__(self) -> None:
        check_positive(self, "min_words", "max_words")
        check(
            self.max_words is None or self.max_words >= self.min_words,
            f"max_words must not be below min_words, got {self.max_words} and {self.min_words}. Raise max_words.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningConfig:
    """Rejects triplets beyond those that do not parse, change nothing or exceed the text encoder's length."""

    near_duplicate: float | None = None
    """Reject triplets whose word overlap (Jaccard) with an earlier kept triplet is at least this. Default: keep all."""
    check_agreement: bool = False
    """Reject triplets whose instruction names none of the words that the caption gained or lost."""
    check_reference: bool = field(default=False, metadata=OMIT_IF_EMPTY)
    """Reject triplets unless the edit changes the phrase of the original caption that the instruction names most, and
    no other. Small language models mix up things; of the shipped triplets about photographs, it rejects 9 %."""
    banned_words: tuple[str, ...] = ()
    """Reject triplets that contain one of these words or phrases, ignoring case."""
    moderation: str = ""
    """`module:function` that takes a text and returns True if it must not be used."""
    language: Language = "any"
    """`en` rejects triplets that do not read as English."""

    def __post_init__(self) -> None:
        check_share("near_duplicate", self.near_duplicate)
        check(
            not self.moderation or self.moderation.count(":") == 1,
            f"moderation is written module:function, got {self.moderation!r}. Name a function that takes a text.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsConfig:
    """Writes edit triplets about captions: the captions, the language model, and which triplets are kept."""

    captions: str = field(default="", metadata=ANSWERS_FREE)
    """Captions (.txt, .csv, .parquet, a hub dataset) or finished triplets (.jsonl): a file, a URL or a hub id."""
    captions_column: str | None = field(default=None, metadata=ANSWERS_FREE)
    """Caption column of a table. With it, a .jsonl holds captions rather than triplets."""
    captions_split: str = field(default="train", metadata=ANSWERS_FREE)
    """Split of a hub dataset."""
    captions_revision: str | None = field(default=None, metadata=ANSWERS_FREE)
    """Branch, tag or commit of a hub dataset."""
    pictures: str = field(default="", metadata={**OMIT_IF_EMPTY, **ANSWERS_FREE})
    """Real pictures to edit, instead of captions: a folder, a .parquet, .csv or .jsonl table, a pattern, a hub id, or
    the `module:Class` of code that draws them.

    A caption is taken from a .txt file of the same name or from the caption column. A picture without one is shown to
    the vision-language model of the backend `server` or `chat`, which writes its caption too.
    """
    pictures_column: str | None = field(default=None, metadata={**OMIT_IF_EMPTY, **ANSWERS_FREE})
    """Picture column of a table. Default: the first of the usual names."""
    cleaning: CleaningConfig = field(default=CleaningConfig(), metadata=ANSWERS_FREE)
    """Which captions of the source are used."""
    num_captions: int | None = field(default=None, metadata=ANSWERS_FREE)
    """Number of captions to use, from the first. Default: all."""
    num_triplets_per_caption: int = 1
    """Triplets to write about each caption."""
    backend: Backend = "causal_lm"
    """Writer: a model fine-tuned on the original's format, a chat model, a server, or rules without a model."""
    model: str = ""
    """Folder or hub id of the language model, or its name on the server."""
    revision: str | None = None
    """Branch, tag or commit of the language model on the hub."""
    shard_size: int = field(default=100, metadata=ANSWERS_FREE)
    """Captions per shard, the unit of work."""
    batch_size: int = field(default=50, metadata=RESULT_FREE)
    """Captions per generation batch."""
    temperature: float = 0.7
    """Sampling temperature; 0 decodes greedily."""
    top_p: float | None = field(default=None, metadata=OMIT_IF_EMPTY)
    """Nucleus sampling (Holtzman et al., 2020): draw from the likeliest tokens that hold this probability together.
    Default: from all."""
    device: str = field(default="auto", metadata=RESULT_FREE)
    """Device to generate on: cpu, cuda, cuda:1, mps, or `auto` for the best available."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    max_prompt_tokens: int | None = None
    """Longest caption in the text encoder's tokens. Default: the limit of the rendering model's tokenizer."""
    dtype: Precision = "float32"
    """Precision of the language model; `auto` is bfloat16 on hardware that multiplies it natively, else float32."""
    examples: str = ""
    """A .jsonl of few-shot triplets for `chat` and `server` models. Default: the shipped ones about photographs."""
    num_examples: int = 4
    """Few-shot examples per caption, of the requested edit type if there are enough."""
    edit_types: tuple[tuple[str, float], ...] = DEFAULT_EDIT_TYPES
    """(edit type, weight) pairs from which the type to request of `chat` and `server` models is drawn per caption."""
    num_repairs: int = 1
    """Times that a `chat` or `server` model is asked to correct a malformed answer."""
    screening: ScreeningConfig = ScreeningConfig()
    """Which triplets are rejected."""
    server: ServerConfig = field(default=ServerConfig(), metadata=ANSWERS_FREE)
    """Endpoint of the `server` backend."""
    edit_type_rules: tuple[tuple[str, str], ...] = DEFAULT_EDIT_TYPE_RULES
    """(regular expression, edit type) pairs; the first that matches the instruction names its type, else 'other'."""
    seed: int = 0
    """Seed of the sampling. Each caption has its own generator."""

    def __post_init__(self) -> None:
        check_positive(self, "num_captions", "num_triplets_per_caption", "shard_size", "batch_size", "max_new_tokens")
        check_positive(self, "max_prompt_tokens")
        check_not_negative(self, "num_examples", "num_repairs", "temperature")
        check_share("top_p", self.top_p)
        weights = [weight for _, weight in self.edit_types]
        check(
            all(weight >= 0 for weight in weights) and sum(weights) > 0,
            f"edit_types needs weights of 0 or more, one of them above 0, got {self.edit_types}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Fine-tunes a causal language model on the original's prompt format."""

    model: str
    """Folder or hub id of the model to start from."""
    triplets: str
    """A .jsonl of triplets to train on."""
    output: Path
    """Folder to write the fine-tuned model to."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    num_epochs: int = 10
    """Most passes over the triplets."""
    patience: int = 2
    """Epochs without a lower held-out loss after which training stops."""
    held_out: float = 0.1
    """Fraction of the captions whose triplets are held out for early stopping."""
    learning_rate: float = 5e-5
    """AdamW's learning rate. LoRA wants about 10 times as much."""
    batch_size: int = 8
    """Triplets per step."""
    lora_rank: int | None = None
    """Train LoRA adapters of this rank on every linear layer and merge them in. Default: train the whole model."""
    dtype: Precision = "float32"
    """Precision of the model during training."""
    device: str = field(default="auto", metadata=RESULT_FREE)
    """Device to train on."""
    seed: int = 0
    """Seed of the held-out split and of the order."""

    def __post_init__(self) -> None:
        check_positive(self, "num_epochs", "patience", "batch_size", "lora_rank", "learning_rate")
        check(0 < self.held_out < 1, f"held_out must lie in (0, 1), got {self.held_out}. 0.1 is usual.")
