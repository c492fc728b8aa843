"""Commands of the prompt stage by hand: inspect a run, try a caption, export, import, fine-tune a language model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ip2p.cli.arguments import NewRun, OfRun, Whole
from ip2p.config import FinetuneConfig, PipelineConfig


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Caption to write about."""

    caption: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CAPTION")]
    """A caption, in quotes."""
    n: Annotated[Whole, tyro.conf.arg(aliases=["-n"])] = 1
    """Triplets to write."""


@dataclass(frozen=True, kw_only=True)
class Trial(NewRun, Caption):
    """Arguments of `ip2p prompts try`. The preset is sd15 by default."""

    common: ClassVar[tuple[str, ...]] = tuple(
        f"prompts.{name}"
        for name in (
            *("backend", "model", "server.base_url", "temperature", "max_new_tokens"),
            *("examples", "num_examples", "num_repairs", "dtype", "seed"),
        )
    )

    def base(self) -> PipelineConfig:
        """Returns the preset with the file laid over it."""
        return NewRun(preset=self.preset or "sd15", config=self.config).base()

    def check(self, command: str) -> None:
        """Requires the preset, if one is named, to exist."""
        self.check_preset()


@dataclass(frozen=True, kw_only=True)
class Export(OfRun):
    """Arguments of `ip2p prompts export`."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.jsonl")]
    """File to write."""
    rejected: bool = False
    """Write rejected triplets too, with their reasons."""


@dataclass(frozen=True, kw_only=True)
class TripletsImport:
    """Arguments of `ip2p prompts import`."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A .jsonl, .csv or .parquet file, or a hub id."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.jsonl")]
    """File to write."""
    columns: Annotated[str | None, tyro.conf.arg(metavar="OURS=THEIRS,…")] = None
    """Names of the source's columns. Default: the usual ones."""
    split: str = "train"
    """Split of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    num_rows: Whole | None = None
    """Number of rows to import, from the first. Default: all."""


def inspect_prompts(arguments: OfRun) -> None:
    """Prints counts by edit type and reason, words, lengths and samples of a run."""
    from ip2p.config.files import read_run
    from ip2p.prompts.inspection import describe

    print(describe(read_run(arguments.folder)))


def try_caption(arguments: Trial, config: PipelineConfig) -> None:
    """Writes triplets about one caption and judges them, as a run would."""
    from ip2p.prompts.shards import try_caption as write

    for row in write(config, arguments.caption, arguments.n):
        triplet = row.triplet
        text = f"[{triplet.edit_type}] {triplet.edit_prompt} | {triplet.edited_prompt}" if triplet else repr(row.text)
        print(f"{row.reason or 'kept'}: {text}")


def export(arguments: Export) -> None:
    """Writes a run's triplets to a .jsonl file."""
    from ip2p.config.files import read_run
    from ip2p.prompts.exchange import export_triplets

    num = export_triplets(read_run(arguments.folder), arguments.out, rejected=arguments.rejected)
    print(f"{arguments.out}: {num} lines")


def import_triplets(arguments: TripletsImport) -> None:
    """Converts triplets from elsewhere to our .jsonl format."""
    columns = _read_mapping(arguments.columns)
    from ip2p.prompts.exchange import import_triplets as read

    counts = read(
        arguments.source,
        arguments.out,
        columns,
        split=arguments.split,
        revision=arguments.revision,
        limit=arguments.num_rows,
    )
    print(f"{arguments.out}: {', '.join(f'{num} {what}' for what, num in counts.items())}")
    print(f"Use it with --prompts.captions {arguments.out}")


def finetune(config: FinetuneConfig) -> None:
    """Fine-tunes a causal language model on the original's format."""
    from ip2p.prompts.finetune import finetune as train

    result = train(config)
    print(
        f"{config.output}: held-out loss {result.held_out[0]:.3f} before, {min(result.held_out):.3f} after "
        f"{result.best_epoch} epochs ({result.num_trained} triplets, {result.num_held_out} held out)"
    )
    print(f"Use it with --prompts.backend causal_lm --prompts.model {config.output}")


def _read_mapping(text: str | None) -> dict[str, str] | None:
    """Reads `original_prompt=a,edit_prompt=b,edited_prompt=c`. ValueError if a text has no column."""
    if text is None:
        return None
    from ip2p.sources.columns import TRIPLET_ALIASES as ALIASES

    columns = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    unknown = [name for name in columns if name not in (*ALIASES, "edit_type")]
    if unknown or any(name not in columns for name in ALIASES) or text.count("=") != len(text.split(",")):
        raise ValueError(f"--columns takes ours=theirs,… with {', '.join(ALIASES)} and perhaps edit_type; got {text}.")
    return columns
