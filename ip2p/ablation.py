"""Defines the paper's ablations (figure 10): the settings of each variant of a run, and the results that it reuses.

A variant is an ordinary run in a separate folder. It starts from what the run has made already; fingerprints decide
which of that is still valid, as they do when a run is resumed with other settings.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ip2p.config import EditTypeRendering, PipelineConfig, RenderingConfig, Thresholds
from ip2p.config.files import read_run, read_run_data
from ip2p.console import suggest
from ip2p.report import write_comparison, write_report
from ip2p.scoring import BOUNDS
from ip2p.scoring.score import LEAST_SIMILARITY
from ip2p.sources.content import NOTE
from ip2p.store import RunFolder, read_summary

SHARE = 0.1
"""Share of the training pairs in the variant `tenth`."""
FIXED = ("p2p", "cross_p2p", "shared_steps")
"""Draws that are fixed together with the paper's share p."""
TAKEN_OVER = ("captions", "answers", "triplets", "candidates", "pairs", "evaluation")
"""Parts of a run folder that are checked piece by piece, so that some pieces may still be valid."""
EDITORS_OWN = ("dataset", "model", "training")
"""Parts that only the variant that changes nothing takes over."""
LINKED = (".parquet", ".safetensors")
"""Suffixes of files that are never written in place, so that a hard link is safe."""

Rendering = TypeVar("Rendering", RenderingConfig, EditTypeRendering)


def full(config: PipelineConfig) -> PipelineConfig:
    """Returns the settings unchanged."""
    return config


def tenth(config: PipelineConfig) -> PipelineConfig:
    """Keeps a tenth of the training pairs, by the hash of their triplets."""
    share = SHARE * config.dataset.train_share
    return replace(config, dataset=replace(config.dataset, train_share=share))


def unfiltered(config: PipelineConfig) -> PipelineConfig:
    """Lets every similarity pass: the first candidates of a triplet become its pairs, up to the same number."""
    limits = _without_similarities(config.filtering.thresholds)
    of_types = {kind: _without_similarities(own) for kind, own in config.filtering.per_edit_type.items()}
    own = {kind: of_type for kind, of_type in of_types.items() if of_type != limits}
    filtering = replace(config.filtering, thresholds=limits, per_edit_type=own, selection="first")
    return replace(config, filtering=filtering)


def fixed_p(config: PipelineConfig) -> PipelineConfig:
    """Fixes the shares of the steps that a pair has in common at the middle of their ranges."""
    per_edit_type = {kind: _fixed(own) for kind, own in config.rendering.per_edit_type.items()}
    return replace(config, rendering=replace(_fixed(config.rendering), per_edit_type=per_edit_type))


VARIANTS: dict[str, Callable[[PipelineConfig], PipelineConfig]] = {
    "full": full,
    "tenth": tenth,
    "unfiltered": unfiltered,
    "fixed-p": fixed_p,
}


def choose_variants(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the named variants, each once, in the order of `VARIANTS`. ValueError for an unknown name."""
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"unknown variant {name}. {suggest(name, list(VARIANTS))}")
    chosen = tuple(name for name in VARIANTS if name in names)
    if not chosen:
        raise ValueError(f"no variant was named. Name some of: {', '.join(VARIANTS)}.")
    return chosen


def config_of(run: Path) -> PipelineConfig:
    """Reads the settings of a run, with the folder beside it as the place for its variants."""
    return replace(read_run(run), out=run.with_name(f"{run.name}-ablation"))


def check_run(config: PipelineConfig, run: Path) -> None:
    """Raises ValueError if the run did not make its own dataset, or would be overwritten."""
    if (data := read_run_data(run)) is not None:
        raise ValueError(f"{run} was trained on {data}. Give a run that made its own dataset.")
    if config.out.resolve() == run.resolve():
        raise ValueError(f"the variants cannot go to the run itself ({run}). Give another folder for them.")


class Variant(NamedTuple):
    """What is trained, in which folder, and the run folder that it starts from."""

    name: str
    config: PipelineConfig
    source: Path


def variants_of(run: Path, config: PipelineConfig, names: Sequence[str]) -> Iterator[Variant]:
    """Yields the variants below `config.out`, one by one, since the others start from the finished `full`.

    If `full` is not among them, they start from the run.
    """
    source = run
    for name in choose_variants(names):
        variant = Variant(name, vary(config, name, source), source)
        yield variant
        if name == "full":
            source = variant.config.out


def vary(config: PipelineConfig, name: str, source: Path) -> PipelineConfig:
    """Returns the settings of a variant of the run `source`, in its folder below `config.out`.

    All variants take as many steps and edit the same held-out cases: those of `source` if no domain draws them.
    """
    varied = replace(VARIANTS[name](config), out=config.out / name)
    if name == "full":
        return varied
    if varied.training.max_train_steps is None:
        varied = replace(varied, training=replace(varied.training, max_train_steps=_steps_of(source)))
    if varied.evaluation.domain is None and varied.evaluation.data is None:
        cases = str(RunFolder(source.resolve()).dataset)
        varied = replace(varied, evaluation=replace(varied.evaluation, data=cases))
    return varied


def _steps_of(source: Path) -> int:
    steps = read_summary(source).get("training", {}).get("steps")
    if not isinstance(steps, int):
        raise ValueError(
            f"{source} was not trained to its end, so the number of steps of its variants is unknown. "
            "Name the variant full too, or set --training.max-train-steps."
        )
    return steps


def write_page(configs: Sequence[PipelineConfig], page: Path) -> Path:
    """Writes a page that compares the variants, or the report of a single one."""
    return write_comparison(configs, page) if len(configs) > 1 else write_report(configs[0])


def take_over(source: Path, target: Path, *, editor: bool) -> None:
    """Puts the results of a run into another folder, large files as hard links, and overwrites nothing.

    `editor` adds the dataset, the trained editor and the summary, which only the same settings can use.
    """
    for path in _files(source, editor=editor):
        place = target / path.relative_to(source)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            _put(path, place)


def _files(source: Path, *, editor: bool) -> Iterator[Path]:
    """Lists what to take over; of the training its results, not its checkpoints and its cache."""
    for name in (*TAKEN_OVER, *(EDITORS_OWN if editor else ())):
        paths = (source / name).glob("*") if name == "training" else (source / name).rglob("*")
        yield from (path for path in sorted(paths) if path.is_file() and not path.name.startswith((".", "journal-")))
    yield from (source / name for name in (NOTE, *["summary.json"] * editor) if (source / name).is_file())


def _put(path: Path, place: Path) -> None:
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    if path.suffix in LINKED:
        with suppress(OSError):  # another file system, or one without hard links
            os.link(path, temporary)
    if not temporary.exists():
        shutil.copy2(path, temporary)
    os.replace(temporary, place)


def _without_similarities(limits: Thresholds) -> Thresholds:
    """Drops the bounds on similarities; those on flat or unwanted pictures stay."""
    on_similarities = {bound.threshold for bound in BOUNDS.values() if bound.score.is_similarity}
    kept = {name: value for name, value in limits.bounds.items() if name not in on_similarities}
    always_set = dict.fromkeys(Thresholds().bounds, LEAST_SIMILARITY)
    return Thresholds().with_bounds(always_set | kept)


def _fixed(settings: Rendering) -> Rendering:
    ranges = {name: getattr(settings, name) for name in FIXED}
    fixed: dict[str, Any] = {name: (sum(ends) / 2,) * 2 for name, ends in ranges.items() if ends is not None}
    return replace(settings, **fixed)
