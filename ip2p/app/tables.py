"""The runs below a folder, with the figures that tell them apart. No gradio here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ip2p.config import PipelineConfig
from ip2p.config.files import read_config
from ip2p.presets import PRESETS
from ip2p.prompts import try_caption
from ip2p.store import RunFolder, read_json

HEAD = ("run", "pairs", "training steps", "success", "CLIP direction", "CLIP image", "report")


def find_runs(root: Path) -> list[Path]:
    """Run folders at and below a folder, newest first."""
    found = {path.parent for pattern in ("config.json", "*/config.json") for path in root.glob(pattern)}
    runs = [path for path in found if (path / "summary.json").exists()]
    return sorted(runs, key=lambda path: -(path / "summary.json").stat().st_mtime)


def find_models(root: Path) -> list[str]:
    """Trained editors of those runs."""
    return [
        str(RunFolder(run).model) for run in find_runs(root) if (RunFolder(run).model / "model_index.json").exists()
    ]


def describe_runs(runs: Sequence[Path]) -> list[list[str]]:
    """A row per run under `HEAD`; a dash where it has no such figure."""
    return [_describe(run) for run in runs]


def _describe(run: Path) -> list[str]:
    summary = _read(run / "summary.json")
    model = _read(run / "evaluation" / "figures.json")
    training = summary.get("training", {})
    report = run / "report" / "index.html"
    return [
        run.name,
        str(summary.get("dataset", {}).get("pairs", "–")),
        str(training.get("steps", "–")),
        _share(model.get("success")),
        _number(model.get("clip_direction")),
        _number(model.get("clip_image")),
        f"[open](/gradio_api/file={report.resolve()})" if report.exists() else "–",
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "–"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"


PROMPT_COLUMNS = ("verdict", "edit type", "instruction", "edited caption")


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
