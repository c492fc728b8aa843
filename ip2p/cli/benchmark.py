"""`ip2p benchmark`: compares editors on MagicBrush, Emu Edit's test set, a dataset or your own pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ip2p.cli.arguments import parse, wants_help
from ip2p.config import BenchmarkConfig, EvaluationConfig, VlmConfig
from ip2p.config.files import evaluation_of


def benchmark(words: list[str]) -> None:
    """Lays editors side by side by a published protocol: ip2p benchmark SOURCE --models RUN RUN …"""
    source = words.pop(0) if words and not words[0].startswith("-") else None
    if source is None and not wants_help(words):
        raise ValueError("`ip2p benchmark` needs a source. Write: ip2p benchmark SOURCE --models RUN/model")
    usage = "ip2p benchmark SOURCE --models RUN RUN … [--out FOLDER]. SOURCE: folder, .jsonl, hub id or photographs."
    default = BenchmarkConfig(source=source or "SOURCE", models=("RUN",), evaluation=_usual(words))
    config = parse(BenchmarkConfig, words, prog="ip2p benchmark SOURCE", description=usage, default=default)
    if config.models == ("RUN",):
        raise ValueError("`ip2p benchmark` needs editors. Write: ip2p benchmark SOURCE --models RUN RUN …")
    from ip2p.evaluation.benchmark import benchmark as run_benchmark
    from ip2p.report import write_benchmark

    figures = run_benchmark(config)
    print("\n".join(describe(figures)))
    print(f"  {'figures':<11} {config.out / 'figures.json'}")
    print(f"  {'page':<11} {write_benchmark(config.out)}")


def _usual(words: list[str]) -> EvaluationConfig:
    """Returns the evaluation settings of the first model's run, so that its guidances need not be repeated.

    Its vision-language judge is left out, because that server may be gone.
    """
    place = words.index("--models") + 1 if "--models" in words else len(words)
    first = Path(words[place]) if place < len(words) else Path()
    found = evaluation_of(first / "model" if (first / "model").is_dir() else first)
    return dataclasses.replace(found, resolution=0, vlm=VlmConfig())


def describe(figures: dict[str, Any]) -> Iterator[str]:
    """Yields a table: a line per editor, a column per figure."""
    from ip2p.evaluation.benchmark import known_columns

    columns = known_columns(figures["protocol"], figures["editors"])
    widths = [max(16, len(column.heading)) for column in columns]
    yield f"{figures['n']} edits by the protocol {figures['protocol']}"
    yield _line("", [column.heading for column in columns], widths)
    for name, parts in figures["editors"].items():
        for part, words in (("single", ""), ("final", ", last of session")):
            if parts[part]:
                yield _line(name + words, [_cell(parts[part].get(column.name)) for column in columns], widths)


def _line(name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + " ".join([f"{name:<22}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))])


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
