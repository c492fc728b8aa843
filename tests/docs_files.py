"""The files that the docs name, in miniature: captions, triplets, pictures, and pairs of every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ip2p.images import IMAGE_TYPE, encode_png
from ip2p.presets import data_folder

CAPTIONS = (
    *(f"a {size} {colour} circle on a white background" for size in ("small", "large") for colour in ("red", "blue")),
    *(f"a {size} {colour} square on a black background" for size in ("small", "large") for colour in ("green", "pink")),
)


def write_files(place: Path) -> None:
    """The files that pages name: captions, triplets, pictures, pairs of every form."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "captions.txt").write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    pq.write_table(pa.table({"caption": CAPTIONS, "TEXT": CAPTIONS}), place / "captions.parquet")
    _write_triplets(place)
    (place / "photos").mkdir()
    for number, name in enumerate(("photo.jpg", "in.png", "photos/a.png", "photos/b.jpg")):
        _picture(number).save(place / name)
    edits = [{"image": "photo.jpg", "edit_prompt": "make it red"}, {"image": "in.png", "edit_prompt": "make it blue"}]
    for name in ("edits.jsonl", "my-edits.jsonl", "pairs.jsonl"):
        (place / name).write_text("".join(f"{json.dumps(row)}\n" for row in edits))
    _write_originals(place / "clip-filtered-dataset")
    _write_image_folder(place / "my-image-folder")
    _write_magicbrush(place / "MagicBrush" / "test")
    _write_imgedit(place / "ImgEdit" / "Basic")
    _write_kris(place / "KRIS_Bench")
    (place / "local_descriptions.json").write_text("{}")
    (place / "data" / "prompts").mkdir(parents=True)
    some = (data_folder() / "prompts" / "photo.jsonl").read_text().splitlines()[:10]
    (place / "data" / "prompts" / "photo.jsonl").write_text("\n".join(some))


def _write_triplets(place: Path) -> None:
    rows = [(caption, "make it dark", f"{caption} at night") for caption in CAPTIONS]
    names = {
        "triplets.jsonl": ("original_prompt", "edit_prompt", "edited_prompt"),
        "gpt-generated-prompts.jsonl": ("input", "edit", "output"),
    }
    for name, keys in names.items():
        lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
        (place / name).write_text("".join(f"{line}\n" for line in lines))
    lines = ["before,wish,after", *(",".join(row) for row in rows)]
    (place / "triplets.csv").write_text("\n".join(lines))


def _picture(number: int) -> Image.Image:
    rough = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((64, 64), Image.Resampling.BICUBIC)


def _cell(number: int) -> dict[str, Any]:
    return {"bytes": encode_png(np.asarray(_picture(number))), "path": None}


def _write_originals(folder: Path) -> None:
    for number, caption in enumerate(CAPTIONS[:4]):
        place = folder / f"{number:07d}"
        place.mkdir(parents=True)
        texts = {"input": caption, "edit": "make it dark", "output": f"{caption} at night"}
        (place / "prompt.json").write_text(json.dumps(texts))
        for side in (0, 1):
            _picture(10 * number + side).save(place / f"11_{side}.jpg")


def _write_image_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = []
    for number in range(1, 7):
        names = {"original_image": f"{number}-before.png", "edited_image": f"{number}-after.png"}
        for side, name in enumerate(names.values()):
            _picture(20 * number + side).save(folder / name)
        row = {f"{key}_file_name": name for key, name in names.items()}
        lines.append(json.dumps({**row, "edit_prompt": "make it snowy"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def _write_magicbrush(folder: Path) -> None:
    sessions: dict[str, list[dict[str, str]]] = {}
    for session, turns in (("11", 1), ("12", 2)):
        (folder / "images" / session).mkdir(parents=True)
        files = [f"{session}-input.png", *(f"{session}-output{turn}.png" for turn in range(1, turns + 1))]
        for number, name in enumerate(files):
            _picture(int(session) + number).save(folder / "images" / session / name)
        sessions[session] = [
            {"input": before, "output": after, "instruction": "make it red"}
            for before, after in zip(files, files[1:], strict=False)
        ]
    (folder / "edit_sessions.json").write_text(json.dumps(sessions))


def _write_imgedit(folder: Path) -> None:
    (folder / "animal").mkdir(parents=True)
    kinds = {"1082": "adjust", "673": "style"}
    listing = {key: {"id": f"animal/{key}.png", "prompt": "make it red", "edit_type": kinds[key]} for key in kinds}
    for number, row in enumerate(listing.values()):
        _picture(number).save(folder / row["id"])
    (folder / "basic_edit.json").write_text(json.dumps(listing))


def _write_kris(folder: Path) -> None:
    for number, category in enumerate(("count_change", "biology")):
        (folder / category).mkdir(parents=True)
        row = {"ori_img": "1.png", "gt_img": "", "ins_en": "make it red", "explain_en": "it turns red"}
        (folder / category / "annotation.json").write_text(json.dumps({"1": row}))
        _picture(number).save(folder / category / "1.png")


def write_hub(folder: Path) -> dict[str, Path]:
    """Datasets that pages name by hub id, as parquet folders with the columns of each."""
    texts = {"original_prompt": list(CAPTIONS), "edited_prompt": [f"{caption} at night" for caption in CAPTIONS]}
    ours = {"edit_prompt": ["make it dark"] * 8}
    before, after = [_cell(number) for number in range(8)], [_cell(100 + number) for number in range(8)]
    turns = {"instruction": ["make it dark"] * 8, "img_id": [str(number) for number in range(8)], "turn_index": [1] * 8}
    emu = {"input_caption": texts["original_prompt"], "output_caption": texts["edited_prompt"]}
    emu |= {"instruction": ["make it dark"] * 8, "task": ["style"] * 8}
    gedit = {"key": turns["img_id"], "instruction_language": ["en", "cn"] * 4, "Intersection_exist": [True] * 8}
    gedit |= {"instruction": ["make it dark"] * 8, "task_type": ["tone_transfer"] * 8}
    columns: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "timbrooks/instructpix2pix-clip-filtered": (ours | texts, {"original_image": before, "edited_image": after}),
        "fusing/instructpix2pix-1000-samples": (ours, {"input_image": before, "edited_image": after}),
        "osunlp/MagicBrush": (turns, {"source_img": before, "target_img": after}),
        "facebook/emu_edit_test_set": (emu, {"image": before}),
        "stepfun-ai/GEdit-Bench": (gedit, {"input_image": before}),
        "my-parquet-folder": ({"text": ours["edit_prompt"]}, {"before": before, "after": after}),
    }
    return {name: _write_table(folder / name.replace("/", "--"), *told) for name, told in columns.items()}


def _write_table(folder: Path, texts: dict[str, Any], images: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    table = pa.table(texts)
    for name, cells in images.items():
        table = table.append_column(name, pa.array(cells, IMAGE_TYPE))
    for split in ("train", "dev", "test"):
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder
