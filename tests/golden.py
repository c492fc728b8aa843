"""Reads golden values from runs, tables, JSON and configs, without paths and times, and compares them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ip2p.config import PipelineConfig, fingerprint, to_dict
from ip2p.presets import data_folder

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("original_image", "edited_image")
HASHED = re.compile(r"\b[0-9a-f]{16}\b")
NEVER_THE_SAME = re.compile(r"^(seconds|samples_per_second)")


def mismatches(found: Any, golden: Any, tolerance: float = 0.0, where: str = "", *, more: bool = False) -> list[str]:
    """Says where a value differs; floats may differ by a tolerance, and with `more` there may be new keys."""
    if isinstance(golden, dict) and isinstance(found, dict):
        keys = golden.keys() if more else golden.keys() | found.keys()
        lines = []
        for key in sorted(keys):
            if key not in found or key not in golden:
                lines.append(f"{where}.{key} is {'missing' if key in golden else 'new'}")
            else:
                lines += mismatches(found[key], golden[key], tolerance, f"{where}.{key}", more=more)
        return lines
    if isinstance(golden, list) and isinstance(found, list):
        if len(golden) != len(found):
            return [f"{where} has {len(found)} items, expected {len(golden)}: {found[:3]} …"]
        pairs = enumerate(zip(found, golden, strict=True))
        return [
            line for n, (one, other) in pairs for line in mismatches(one, other, tolerance, f"{where}[{n}]", more=more)
        ]
    if isinstance(golden, float) and isinstance(found, int | float) and not isinstance(found, bool):
        both_nan = math.isnan(golden) and math.isnan(found)
        return [] if both_nan or abs(golden - found) <= tolerance else [f"{where} is {found}, expected {golden}"]
    return [] if type(golden) is type(found) and golden == found else [f"{where} is {found!r}, expected {golden!r}"]


def timeless(value: Any) -> Any:
    """The same JSON with what no two runs share, times above all, replaced by a mark."""
    if isinstance(value, dict):
        return {key: "…" if NEVER_THE_SAME.match(key) else timeless(one) for key, one in value.items()}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def without_paths(value: Any, folders: dict[str, Path]) -> Any:
    """The same JSON with the paths of some folders replaced by their names."""
    if isinstance(value, dict):
        return {key: without_paths(one, folders) for key, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one, folders) for one in value]
    if isinstance(value, str):
        for name, folder in folders.items():
            value = value.replace(str(folder), name)
    return value


def preset_dict(config: PipelineConfig) -> dict[str, Any]:
    """A preset as JSON, its data folder called DATA."""
    values: dict[str, Any] = without_paths(to_dict(config), {"DATA": data_folder()})
    return values


def tree(folder: Path) -> list[str]:
    """The files of a run; of the trackers' files and of hashed names, one line each."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted({re.sub(r"training/logs/.*", "training/logs/…", HASHED.sub("<hash>", name)) for name in names})


def schemas(folder: Path) -> dict[str, Any]:
    """Columns and metadata keys of every table of a run, by folder, or by file outside of a folder of shards."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.parquet")):
        schema, name = pq.read_schema(path), path.relative_to(folder)
        key = str(name) if name.parent.name == "evaluation" else str(name.parent)
        columns = {field.name: str(field.type) for field in schema}
        metadata = sorted(each.decode() for each in (schema.metadata or {}))
        value = {"columns": columns, "order": schema.names, "metadata": metadata}
        if key in found and found[key] != value:
            key = str(name)
        found[key] = value
    return found


def rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    """All rows of a stage's shards; a picture is its size and its mean colour."""
    return [
        plain(row) for path in sorted((folder / stage).glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON: pictures by what is seen of them, embeddings by their number of bytes."""
    return {name: look(name, value) for name, value in row.items()}


def look(name: str, value: Any) -> Any:
    if name in IMAGES and value is not None:
        with Image.open(io.BytesIO(value["bytes"])) as image:
            colour = np.asarray(image.convert("RGB"), dtype=np.float64).mean((0, 1))
            return {"format": image.format, "size": list(image.size), "colour": [round(float(c), 2) for c in colour]}
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    return round(value, 6) if isinstance(value, float) and math.isfinite(value) else value


def sidecars(folder: Path, stage: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every sidecar of a stage's shards, in order."""
    for path in sorted((folder / stage).glob("*.parquet.json")):
        yield path, json.loads(path.read_text())


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl; none of a file that is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sha256(content: bytes) -> str:
    """As hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def drawn_png(number: int, side: int = 16) -> bytes:
    """A picture whose bytes no library decides: gradients in an uncompressed PNG."""
    y, x = np.mgrid[:side, :side]
    pixels = np.stack([x * 9 + number * 11, y * 7 + number * 5, (x + y) * 4 + number], -1).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    stored = (
        b"\x78\x01\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw + struct.pack(">I", zlib.adler32(raw))
    )

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


def files_fingerprint(paths: list[Path]) -> str:
    """How sets of files are told apart: by name and content."""
    return fingerprint([path.name for path in paths], [sha256(path.read_bytes()) for path in paths])


def model_files_fingerprint(folder: Path) -> str:
    """The same of a model's folder."""
    suffixes = (".safetensors", ".json", ".txt")
    return files_fingerprint([path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in suffixes])
