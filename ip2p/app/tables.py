"""Lists the runs below a folder with their main figures, and tries captions with their settings. No gradio here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ip2p.config.files import read_run
from ip2p.presets import PRESETS
from ip2p.prompts import try_caption
from ip2p.store import RunFolder, read_json_or_empty, read_summary

RUN_COLUMNS = ("run", "pairs", "training steps", "success", "CLIP direction", "CLIP image", "report")
TRIPLET_COLUMNS = ("verdict", "edit type", "instruction", "edited caption")


def find_runs(root: Path) -> list[Path]:
    """Lists the run folders at and below a folder, newest first."""
    folders = {path.parent for pattern in ("config.json", "*/config.json") for path in root.glob(pattern)}
    runs = [path for path in folders if (path / "summary.json").exists()]
    return sorted(runs, key=lambda path: -(path / "summary.json").stat().st_mtime)


def advise(root: Path) -> str:
    """Says how to make a run; empty if there is one."""
    if find_runs(root):
        return ""
    return f"There is no run below {root} yet. Make one with `ip2p run shapes`, or pass --runs for another folder."


def find_models(root: Path) -> list[str]:
    """Lists the trained editors of those runs."""
    models = (RunFolder(run).model for run in find_runs(root))
    return [str(model) for model in models if (model / "model_index.json").exists()]


def find_configs(root: Path) -> list[str]:
    """Lists what a caption can be tried with: runs first, then presets."""
    return [*(str(path) for path in find_runs(root)), *PRESETS]


def describe_runs(runs: Sequence[Path]) -> list[list[str]]:
    """Returns a row per run under `RUN_COLUMNS`, with a dash for a figure that it does not have."""
    return [_describe(run) for run in runs]


def _describe(run: Path) -> list[str]:
    summary = read_summary(run)
    figures = read_json_or_empty(run / "evaluation" / "figures.json")
    report = run / "report" / "index.html"
    return [
        run.name,
        _number(summary.get("dataset", {}).get("pairs"), ""),
        _number(summary.get("training", {}).get("steps"), ""),
        _number(figures.get("success"), ".1%"),
        _number(figures.get("clip_direction"), ".3f"),
        _number(figures.get("clip_image"), ".3f"),
        f"[open](/gradio_api/file={report.resolve()})" if report.exists() else "–",
    ]


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "–"


def write_rows(name: str | None, caption: str, num_triplets: float) -> list[list[str]]:
    """Returns a row per answer, usable or not, to a caption under a run's or preset's settings.

    Raises ValueError if the name is neither a run nor a preset.
    """
    if name in PRESETS:
        config = PRESETS[name]()
    elif name and (Path(name).expanduser() / "config.json").is_file():
        config = read_run(Path(name).expanduser())
    else:
        raise ValueError(
            f"{name or 'nothing'} is neither a run nor a preset. Choose a run folder or {', '.join(PRESETS)}."
        )
    rows = []
    for answer in try_caption(config, caption, int(num_triplets)):
        triplet = answer.triplet
        texts = [triplet.edit_type, triplet.edit_prompt, triplet.edited_prompt] if triplet else ["", answer.text, ""]
        rows.append([answer.reason or "kept", *texts])
    return rows
