"""Knobs of the prompt stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ip2p.config.fields import check, check_positive
from ip2p.config.rendering import Precision

Backend = Literal["causal_lm", "chat", "server", "template"]
"""What writes about a caption."""
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
    """Which captions of a source are taken; all of them by default."""

    strip_markup: bool = False
    """Take tags, entities and web addresses out of the captions first, and leave out those that were little else."""
    min_words: int = 1
    """Leave shorter captions out."""
    max_words: int | None = None
    """Leave longer captions out."""
    language: Language = "any"
    """`en` leaves out captions that do not read as English."""

    def __post_init__(self) -> None:
        check_positive(self, "min_words", "max_words")
        check(
            self.max_words is None or self.max_words >= self.min_words,
            f"max_words must not be below min_words, got {self.max_words} and {self.min_words}. Raise max_words.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningConfig:
    """What is asked of a triplet besides that it parses, changes something and fits the text encoder."""

    near_duplicate: float | None = None
    """Leave out a triplet whose words are this much alike (Jaccard) to those of one that is kept before it."""
    check_agreement: bool = False
    """Leave out a triplet where no word that the caption gained or lost is named by the instruction."""
    banned_words: tuple[str, ...] = ()
    """Leave out triplets with one of these words or phrases, in any case."""
    moderation: str = ""
    """`module:function` that is given a text and says True where it must not be used."""
    language: Language = "any"
    """`en` leaves out triplets that do not read as English."""

    def __post_init__(self) -> None:
        if self.near_duplicate is not None:
            check(
                0 < self.near_duplicate <= 1,
                f"near_duplicate must lie in (0, 1], got {self.near_duplicate}. Leave it out to keep all.",
            )
        check(
            not self.moderation or self.moderation.count(":") == 1,
            f"moderation is written module:function, got {self.moderation!r}. Name a function that takes a text.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """An OpenAI-compatible endpoint, for the `server` backend. All but the answers' form may change during a run."""

    base_url: str = ""
    """Where it answers, such as http://127.0.0.1:8000/v1: vLLM, llama.cpp, Ollama, `transformers serve`, a service."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; servers of one's own need none."""
    concurrency: int = 8
    """Requests at a time, of one shard."""
    timeout: float = 60.0
    """Seconds that an answer may take."""
    max_retries: int = 8
    """Times a request is sent again after a fault that may pass."""
    first_delay: float = 1.0
    """Seconds before the first repetition, drawn from half of that to all of it; doubled each time."""
    max_delay: float = 60.0
    """Longest of these delays."""
    response_format: Literal["json_object", "json_schema", "none"] = "none"
    """What the server is told of the answer's form; not every server knows each."""

    def __post_init__(self) -> None:
        check_positive(self, "concurrency", "timeout", "first_delay", "max_delay")
        check(self.max_retries >= 0, f"max_retries must not be negative, got {self.max_retries}. Use 0 for none.")
        check(
            not self.base_url or self.base_url.startswith(("http://", "https://")),
            f"base_url must start with http:// or https://, got {self.base_url!r}. Give the part before /chat.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsConfig:
    """Captions to edit triplets: where captions come from, what writes about them, which triplets are kept."""

    captions: str = ""
    """Captions (.txt, .csv, .parquet, a hub dataset) or ready triplets (.jsonl); a file or a URL."""
    captions_column: str | None = None
    """Column that holds the captions of a table; a .jsonl with it holds captions instead of triplets."""
    captions_split: str = "train"
    """Split of a hub dataset."""
    captions_revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    cleaning: CleaningConfig = CleaningConfig()
    """Which of them are taken."""
    num_captions: int | None = None
    """Use the first so many captions; all by default."""
    num_triplets_per_caption: int = 1
    """Triplets to write for each caption."""
    backend: Backend = "causal_lm"
    """A model fine-tuned in the original's format, a chat model, a server that has one, or rules without a model."""
    model: str = ""
    """Folder or hub id of the language model; its name where a server has it."""
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
    dtype: Precision = "float32"
    """Precision of the language model; `auto` is bfloat16 where the device multiplies it in hardware."""
    examples: str = ""
    """A .jsonl of triplets to show to `chat` and `server` models; the shipped ones for photographs by default."""
    num_examples: int = 4
    """Examples shown with each caption, of the asked edit type where there are so many."""
    edit_types: tuple[tuple[str, float], ...] = DEFAULT_EDIT_TYPES
    """(edit type, weight): what `chat` and `server` models are asked for, drawn by caption."""
    num_repairs: int = 1
    """Times that a `chat` or `server` model is shown an answer that is not as asked, to mend it."""
    screening: ScreeningConfig = ScreeningConfig()
    """Which triplets are left out."""
    server: ServerConfig = ServerConfig()
    """Where the `server` backend asks."""
    edit_type_rules: tuple[tuple[str, str], ...] = DEFAULT_EDIT_TYPE_RULES
    """(regular expression, edit type): the first that is found in the instruction names its type; else 'other'."""
    seed: int = 0
    """Seed of the sampling; each caption has its own generator."""

    def __post_init__(self) -> None:
        check_positive(self, "num_captions", "num_triplets_per_caption", "shard_size", "batch_size", "max_new_tokens")
        check_positive(self, "max_prompt_tokens")
        check(self.num_examples >= 0, f"num_examples must not be negative, got {self.num_examples}. Use 0 for none.")
        check(self.num_repairs >= 0, f"num_repairs must not be negative, got {self.num_repairs}. Use 0 for none.")
        check(
            bool(self.edit_types) and all(weight >= 0 for _, weight in self.edit_types) and self._weight > 0,
            f"edit_types takes weights of which none is negative and one is positive, got {self.edit_types}.",
        )
        check(
            self.temperature >= 0,
            f"temperature must not be negative, got {self.temperature}. Use 0 for greedy decoding.",
        )

    @property
    def _weight(self) -> float:
        return sum(weight for _, weight in self.edit_types)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Teaching a causal language model the original's format."""

    model: str
    """Folder or hub id of the model to start from."""
    triplets: str
    """A .jsonl of triplets to learn from."""
    output: Path
    """Folder to write the taught model to."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    num_epochs: int = 10
    """Most passes over the triplets."""
    patience: int = 2
    """Stop after so many epochs in which the held-out loss did not fall below its least."""
    held_out: float = 0.1
    """Fraction of the captions whose triplets are not learned, to tell when to stop."""
    learning_rate: float = 5e-5
    """Step size of AdamW; 10 times as much suits LoRA."""
    batch_size: int = 8
    """Triplets a step."""
    lora_rank: int | None = None
    """Train low-rank additions to every linear layer instead of the whole model; merged into it when written."""
    dtype: Precision = "float32"
    """Precision of the model while it is taught."""
    device: str = "auto"
    """Where to train."""
    seed: int = 0
    """Decides what is held out and the order."""

    def __post_init__(self) -> None:
        check_positive(self, "num_epochs", "patience", "batch_size", "lora_rank", "learning_rate")
        check(0 < self.held_out < 1, f"held_out must lie in (0, 1), got {self.held_out}. A tenth is usual.")
