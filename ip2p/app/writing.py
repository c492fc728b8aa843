"""The tab of the prompt stage: triplets about one caption, by a preset's or a run's own config."""

from __future__ import annotations

from pathlib import Path

from ip2p.app.runs import find_runs
from ip2p.config import PipelineConfig
from ip2p.config_file import read_config
from ip2p.presets import PRESETS
from ip2p.prompts import try_caption

HEAD = ("verdict", "edit type", "instruction", "edited caption")


def find_configs(root: Path) -> list[str]:
    """What a caption can be tried with: runs first, then presets."""
    return [*(str(path) for path in find_runs(root)), *PRESETS]


def write_rows(name: str | None, caption: str, num_triplets: float) -> list[list[str]]:
    """A row for each triplet, and for each answer that is none. ValueError where the name is of no run or preset."""
    rows = []
    for found in try_caption(_read_config(name or ""), caption, int(num_triplets)):
        triplet = found.triplet
        texts = [triplet.edit_type, triplet.edit_prompt, triplet.edited_prompt] if triplet else ["", found.text, ""]
        rows.append([found.reason or "kept", *texts])
    return rows


def _read_config(name: str) -> PipelineConfig:
    if name in PRESETS:
        return PRESETS[name]()
    path = Path(name).expanduser() / "config.json"
    if not name or not path.is_file():
        raise ValueError(f"{name or 'nothing'} is no run and no preset. Choose a run folder or {', '.join(PRESETS)}.")
    return read_config(path)
