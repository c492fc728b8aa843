"""Commands on triplets: to try, inspect, export, import and learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ip2p.cli.arguments import Columns, NewRun, OfRun, Preset, Whole, in_section, read_columns
from ip2p.config import FinetuneConfig, PipelineConfig
from ip2p.config.files import read_run
from ip2p.prompts import exchange, shards
from ip2p.prompts import inspection as prompts_inspection
from ip2p.sources.columns import TRIPLET_ALIASES


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Caption to write about."""

    caption: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CAPTION")]
    """A caption, in quotes."""
    n: Annotated[Whole, tyro.conf.arg(aliases=["-n"])] = 1
    """Triplets to write."""


@dataclass(frozen=True, kw_only=True)
class Trial(NewRun, Caption):
    """Arguments of `ip2p prompts try`; the caption comes first."""

    common: ClassVar[tuple[str, ...]] = (
        *in_section("prompts", "backend", "model", "server.base_url", "temperature", "top_p"),
        *in_section("prompts", "max_new_tokens", "examples", "num_examples", "num_repairs", "dtype", "seed"),
    )
    preset: Preset = "sd15"


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
    columns: Columns = None
    """Names of the source's columns. Default: the usual ones."""
    split: str = "train"
    """Split of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    num_rows: Whole | None = None
    """Number of rows to import, from the first. Default: all."""


def inspect_prompts(arguments: OfRun) -> None:
    """Prints counts by edit type and reason, words, lengths and samples of a run."""
    print(prompts_inspection.describe(read_run(arguments.folder)))


def try_caption(arguments: Trial, config: PipelineConfig) -> None:
    """Writes triplets about one caption and judges them, as a run would."""
    for row in shards.try_caption(config, arguments.caption, arguments.n):
        triplet = row.triplet
        text = f"[{triplet.edit_type}] {triplet.edit_prompt} | {triplet.edited_prompt}" if triplet else repr(row.text)
        print(f"{row.reason or 'kept'}: {text}")


def export(arguments: Export) -> None:
    """Writes a run's triplets to a .jsonl file."""
    num = exchange.export_triplets(read_run(arguments.folder), arguments.out, rejected=arguments.rejected)
    print(f"{arguments.out}: {num} lines")


def import_triplets(arguments: TripletsImport) -> None:
    """Converts triplets from elsewhere to our .jsonl format."""
    columns = read_columns(arguments.columns, tuple(TRIPLET_ALIASES), ("edit_type",))
    split, revision, limit = arguments.split, arguments.revision, arguments.num_rows
    counts = exchange.import_triplets(
        arguments.source, arguments.out, columns, split=split, revision=revision, limit=limit
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
