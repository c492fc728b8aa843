"""Writes the dataset card: front matter for `datasets` and the hub, how the dataset was made, and the counts.

Also advises a user whose run accepted no pair, from the same tallies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from ip2p.config import EditTypeRendering, PipelineConfig, PromptsConfig, RenderingConfig, ScoringConfig, Thresholds
from ip2p.config.filtering import path_of
from ip2p.dataset.schema import card_features
from ip2p.dataset.split import SPLITS
from ip2p.filtering import FIRST_LOOK, REASONS, count_values, thresholds_for
from ip2p.hub import public_name
from ip2p.scoring import BOUNDS
from ip2p.scoring.reliability import read_reliability
from ip2p.store import RunFolder

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))
DRAWS = {
    "guidance_scale": ("guidance scale", "guidance scale"),
    "p2p": ("share of steps with prompt-to-prompt", "prompt-to-prompt"),
    "cross_p2p": ("the same in cross-attention", "in cross-attention"),
    "shared_steps": ("share of steps under the original's caption", "original's caption"),
    "reweight": ("factor on the maps of new words", "factor on new words"),
    "local_blend": ("share of steps with local blend", "local blend"),
    "image_guidance_scale": ("guidance by the picture", "guidance by the picture"),
    "strength": ("share of noise that the picture starts from", "share of noise"),
}
"""Names of the settings that are drawn, in full and in the row of an edit type."""
MOST_ADVICE = 4
"""The most settings that an error about rejected candidates proposes."""

Counts = dict[str, Any]
"""The counts of a dataset: numbers, and those of its edit types in a mapping."""


def tally_reasons(config: PipelineConfig, stage: str) -> Counter[str]:
    """Counts rows by reason over all shards of a stage; "" counts rows without a reason."""
    tally: Counter[str] = Counter()
    for path in RunFolder(config.out).shards(stage):
        tally.update(count_values(pq.read_table(path, columns=["reason"])["reason"]))
    return tally


def describe_rejections(config: PipelineConfig) -> str:
    """Explains in one line why no pair was accepted, and which settings to move in which direction."""
    verdicts = tally_reasons(config, "candidates")
    if not verdicts:
        written = tally_reasons(config, "triplets")
        return (
            f"no pair was accepted: nothing was rendered, since {written['']} triplets were kept of {written.total()} "
            f"({_list(written)}). Check prompts.model and prompts.captions."
        )
    advice = [*_advice(config), "raise rendering.num_candidates"]
    steps = f"{', '.join(advice[:-1])}, or {advice[-1]}" if advice[1:] else advice[0]
    return f"no pair was accepted of {verdicts.total()} candidates ({_list(verdicts)}). {steps[0].upper()}{steps[1:]}."


def _list(tally: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in sorted(tally.items()) if reason) or "none rejected"


def _advice(config: PipelineConfig) -> list[str]:
    """Returns changes that would accept more pairs, starting with the settings that rejected most."""
    tally: Counter[str] = Counter()
    for path in RunFolder(config.out).shards("candidates"):
        columns = pq.read_table(path, columns=["reason", "edit_type"])
        pairs = Counter(zip(columns["reason"].to_pylist(), columns["edit_type"].to_pylist(), strict=True))
        for (reason, edit_type), number in pairs.items():
            tally[_loosening(config, reason, edit_type)] += number
    return [change for change, _ in tally.most_common() if change][:MOST_ADVICE]


def _loosening(config: PipelineConfig, reason: str, edit_type: str) -> str:
    """Proposes how to move the setting that gave a reason; empty if none did."""
    if reason == FIRST_LOOK:
        return f"raise filtering.first_look_slack (now {config.filtering.first_look_slack:g})"
    bound = BOUNDS.get(reason)
    if bound is None:
        return ""
    own = edit_type in config.filtering.per_edit_type
    section = f"filtering.per_edit_type.{edit_type}" if own else "filtering.thresholds"
    value = thresholds_for(config.filtering, edit_type).bounds.get(bound.threshold)
    now = "" if value is None else f" (now {value:g})"
    change = f"{bound.loosening} {section}.{path_of(Thresholds, bound.threshold)}{now}"
    if bound.score.is_wanted(config.scoring) or not bound.score.setting:
        return change
    return f"{change} or set scoring.{path_of(ScoringConfig, bound.score.setting)}, without which it is not measured"


def write_card(config: PipelineConfig, folder: Path, counts: Counts) -> None:
    """Writes `README.md` into a dataset folder that already holds the parquet files."""
    front = yaml.safe_dump(_front_matter(config, folder, counts), sort_keys=False, allow_unicode=True)
    introduction = _INTRODUCTION.format(**counts)
    parts = [
        introduction,
        _making(config),
        _thresholds(config),
        *_judges(config),
        _figures(config, counts),
        _SPLIT_NOTE,
    ]
    body = "\n\n".join(parts)
    (folder / "README.md").write_text(f"---\n{front}---\n\n{body}\n", encoding="utf-8")


def _front_matter(config: PipelineConfig, folder: Path, counts: Counts) -> dict[str, Any]:
    present = [split for split in SPLITS if counts[split]]
    sizes = {name: sum(path.stat().st_size for path in folder.glob(f"data/{name}-*.parquet")) for name in present}
    splits = [{"name": split, "num_bytes": sizes[split], "num_examples": counts[split]} for split in present]
    total = sum(sizes.values())
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in present]
    return {
        "license": config.dataset.license,
        "task_categories": ["image-to-image"],
        "language": ["en"],
        "size_categories": [next((name for limit, name in SIZES if counts["pairs"] < limit), "n>10M")],
        "tags": ["instruction-based-image-editing", "synthetic"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {
            "features": card_features(pq.read_schema(next(folder.glob("data/*.parquet")))),
            "splits": splits,
            "download_size": total,
            "dataset_size": total,
        },
    }


def _making(config: PipelineConfig) -> str:
    prompts, rendering, scoring, filtering = config.prompts, config.rendering, config.scoring, config.filtering
    is_shown = config.dataset.edit_prompt == "shown"
    return "## How it was made\n\n" + _table(
        ("step", "setting"),
        [
            ("triplets", _writer(prompts)),
            *([("pictures", public_name(prompts.pictures))] if prompts.pictures else []),
            *([("pairs made by", rendering.backend)] if rendering.backend != "p2p" else []),
            ("editor" if prompts.pictures else "text-to-image model", public_name(rendering.model)),
            ("steps", str(rendering.num_inference_steps)),
            *((name, _range(bounds)) for name, bounds in _ranges(rendering)),
            ("candidates per triplet", str(rendering.num_candidates)),
            *((f"for {kind} edits", _differences(own)) for kind, own in sorted(rendering.per_edit_type.items())),
            ("pairs kept per triplet", f"the {filtering.selection} {filtering.max_pairs_per_triplet}, at most"),
            *([("instructions", _SHOWN.format(public_name(filtering.vlm.model or "")))] if is_shown else []),
            ("image format", rendering.image_format),
            ("CLIP", f"{public_name(scoring.clip_model)} {scoring.clip_pretrained or ''}".strip()),
        ],
    )


def _ranges(rendering: RenderingConfig) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yields the name and the bounds of each range that is drawn from."""
    for setting, (name, _) in DRAWS.items():
        if rendering.draws(setting) and (bounds := getattr(rendering, setting)) is not None:
            yield name, bounds


def _writer(prompts: PromptsConfig) -> str:
    """Names the file that the triplets come from, or what wrote them."""
    if prompts.captions.endswith(".jsonl") and prompts.captions_column is None:
        return public_name(prompts.captions)
    return "rules" if prompts.backend == "template" else public_name(prompts.model)


def _differences(own: EditTypeRendering) -> str:
    ranges = {name: getattr(own, setting) for setting, (_, name) in DRAWS.items()}
    drawn = [f"{name} {_range(bounds)}" for name, bounds in ranges.items() if bounds is not None]
    return "; ".join([*([f"{own.num_candidates} candidates"] if own.num_candidates else []), *drawn])


def _range(bounds: tuple[float, float]) -> str:
    low, high = bounds
    return f"{low:g}" if low == high else f"{low:g} to {high:g}, drawn per candidate"


def _thresholds(config: PipelineConfig) -> str:
    sections = {"all others": config.filtering.thresholds} | dict(sorted(config.filtering.per_edit_type.items()))
    bounds = {kind: limits.bounds for kind, limits in sections.items()}
    own = [field.name for field in fields(Thresholds)]
    further = sorted({name for limits in sections.values() for name in limits.further})
    names = [name for name in (*own, *further) if any(name in limits for limits in bounds.values())]
    rows = [
        (kind, *(f"{limits[name]:g}" if name in limits else "–" for name in names)) for kind, limits in bounds.items()
    ]
    return f"## Thresholds of the scores\n\n{_table(('edit type', *names), rows)}"


def _judges(config: PipelineConfig) -> list[str]:
    """States how reliable the judges are, if that was measured."""
    rows = [(name, str(reliability)) for name, reliability in read_reliability(config.out).items()]
    return [f"## Right against wrong instructions\n\n{_table(('judge', 'reliability'), rows)}"] if rows else []


def _figures(config: PipelineConfig, counts: Counts) -> str:
    types = [(name or "(none)", str(number)) for name, number in counts["edit_types"].items()]
    funnel, meanings = [], []
    for stage, noun in (("triplets", "generations"), ("candidates", "candidates")):
        tally = tally_reasons(config, stage)
        funnel.append((noun, str(tally.total())))
        funnel += [(f"- {reason}", str(number)) for reason, number in sorted(tally.items()) if reason]
        meanings += [f"`{reason}`: {REASONS[reason]}" for reason in sorted(tally) if reason in REASONS]
    reasons = ("near_duplicate", "split_conflict", "beyond_share")
    left_out = [name for name in reasons if name == "split_conflict" or counts.get(name)]
    funnel += [("accepted", str(counts["accepted"])), *((f"- {name}", str(counts[name])) for name in left_out)]
    if counts.get("kept_written"):
        funnel.append(("pairs that keep the written instruction", str(counts["kept_written"])))
    parts = ["## Counts", _table(("edit type", "pairs"), types), _table(("from captions to pairs", "number"), funnel)]
    return "\n\n".join([*parts, f"{'; '.join(meanings)}."] if meanings else parts)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


_INTRODUCTION = """# Instruction-based image editing pairs

{pairs} pairs of images (train {train}, test {test}) that differ by an instruction, made by machine as in \
InstructPix2Pix (Brooks et al., 2022). Every row carries the seed and the settings it was rendered with and its CLIP \
scores, so that the set can be filtered again."""

_SHOWN = "what each pair shows, by {}; `written_prompt` is what it was made for"
_SPLIT_NOTE = """## Splits

The hash of the original caption decides the split; no caption, original or edited, is in both. A pair whose caption was
in the other split already was left out (`split_conflict`)."""
