"""`ip2p benchmark`: compares editors on a published benchmark, a dataset or your own pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

import tyro

from ip2p.config import BenchmarkConfig, VlmConfig
from ip2p.config.files import evaluation_of
from ip2p.evaluation import benchmark as protocols
from ip2p.evaluation.metrics import Figures
from ip2p.report import write_benchmark


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark(BenchmarkConfig):
    """Arguments of `ip2p benchmark`: the settings, with the source as the first word."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A test set, a dataset, a folder or .jsonl of pictures, or `photographs`."""

    @classmethod
    def start(cls, words: Sequence[str]) -> Self:
        """Returns the defaults: the first model's run says how edits are made, so that its guidances need not be set.

        Its vision-language judge is left out, whose server may be gone.
        """
        named, _ = tyro.cli(Editors, args=list(words), return_unknown_args=True, add_help=False)
        first = Path(named.models[0]) if named.models else Path()
        evaluation = evaluation_of(first / "model" if (first / "model").is_dir() else first)
        evaluation = dataclasses.replace(evaluation, resolution=0, vlm=VlmConfig())
        return cls(source=tyro.MISSING_NONPROP, models=tyro.MISSING_NONPROP, evaluation=evaluation)


@dataclasses.dataclass(frozen=True)
class Editors:
    """The part of the arguments that the defaults depend on."""

    models: tuple[str, ...] = ()


def benchmark(config: Benchmark) -> None:
    """Compares editors by a published protocol."""
    figures = protocols.benchmark(config)
    print("\n".join(describe(figures)))
    print(f"  {'figures':<11} {config.out / 'figures.json'}")
    print(f"  {'page':<11} {write_benchmark(config.out)}")


def describe(figures: Figures) -> Iterator[str]:
    """Yields a table: a line per editor, a column per figure."""
    columns = protocols.known_columns(figures["protocol"], figures["editors"])
    widths = [max(16, len(column.heading)) for column in columns]
    yield f"{figures['n']} edits by the protocol {figures['protocol']}"
    yield _line("", [column.heading for column in columns], widths)
    for name, parts in figures["editors"].items():
        for part, words in (("single", ""), ("final", ", last of session")):
            if parts[part]:
                values = [parts[part].get(column.name) for column in columns]
                yield _line(name + words, ["–" if value is None else f"{value:.4f}" for value in values], widths)
    if "judge" in figures:
        yield from describe_judged(figures["judge"], figures["editors"])


def describe_judged(judge: Figures, editors: Mapping[str, Figures]) -> Iterator[str]:
    """Yields who judged, and the benchmark's own figures: a line per figure, a column per editor."""
    served = ", ".join(judge["served_as"]) or "–"
    yield f"judged by {judge['model']}, served as {served}"
    yield f"by the questions {judge['questions'][:12]}, each asked {judge['repeats']} times"
    judged = {name: parts for name, parts in editors.items() if parts.get("published")}
    widths = [max(16, len(name)) for name in judged]
    yield _line("", list(judged), widths)
    for same in zip(*(parts["published"] for parts in judged.values()), strict=True):
        if same[0]["is_headline"]:
            yield _line(same[0]["label"], [_spread(figure) for figure in same], widths)
    counts = [parts["answers"] for parts in judged.values()]
    for name in counts[0] if counts else ():
        yield _line(f"questions {name.replace('_', ' ')}", [str(count[name]) for count in counts], widths)


def _spread(figure: Figures) -> str:
    """Writes a figure and its standard deviation over the repeats."""
    if figure["mean"] is None:
        return "–"
    return f"{figure['mean']:.3f}" + (f" ± {figure['sd']:.3f}" if figure["sd"] is not None else "")


def _line(name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + " ".join([f"{name:<22}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))])
