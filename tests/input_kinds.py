"""Generates what people bring: pictures of every mode and format, and texts in every spelling, whole and damaged."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from ip2p.images import Array, encode_png

SIDE = 16
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
RGBA = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), np.uint8)
RGBA[:8, :, 3], RGBA[8:, :8, 3] = 255, 0  # opaque above, hidden colours and half of them seen below
RGB, GREY = RGBA[..., :3], RGBA[..., 0]
DEEP = np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE), np.uint16)


@dataclass(frozen=True)
class PictureKind:
    """A picture file, and what it shows; None if it cannot be read."""

    content: bytes
    shows: Array | None


def on_white(colour: Array, alpha: Array) -> Array:
    """Composes (H, W, 3) on white, as Pillow rounds it."""
    layer = Image.fromarray(np.dstack([colour, alpha]))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer))[..., :3]


def _grey(values: Array) -> Array:
    return values[..., None].repeat(3, -1)


def _palette() -> Image.Image:
    return Image.fromarray(RGB).quantize(16)


def _see_through() -> Image.Image:
    image = _palette()
    image.info["transparency"] = 3
    return image


MODES: Mapping[str, tuple[Callable[[], Image.Image], Callable[[], Array]]] = {
    "RGB": (lambda: Image.fromarray(RGB), lambda: RGB),
    "RGBA": (lambda: Image.fromarray(RGBA), lambda: on_white(RGB, RGBA[..., 3])),
    "L": (lambda: Image.fromarray(GREY), lambda: _grey(GREY)),
    "LA": (
        lambda: Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(RGBA[..., 3])]),
        lambda: on_white(_grey(GREY), RGBA[..., 3]),
    ),
    "1": (lambda: Image.fromarray(GREY > 99), lambda: _grey((GREY > 99) * np.uint8(255))),
    "P": (_palette, lambda: np.asarray(_palette().convert("RGB"))),
    "P see-through": (
        _see_through,
        lambda: np.where(
            (np.asarray(_palette()) == 3)[..., None], np.uint8(255), np.asarray(_palette().convert("RGB"))
        ),
    ),
    "I;16": (lambda: Image.fromarray(DEEP), lambda: _grey((DEEP >> 8).astype(np.uint8))),
    "I": (lambda: Image.fromarray(DEEP.astype(np.int32)), lambda: _grey((DEEP >> 8).astype(np.uint8))),
    "F": (lambda: Image.fromarray((GREY / 255).astype(np.float32)), lambda: _grey(GREY)),
    "CMYK": (lambda: Image.fromarray(RGB).convert("CMYK"), lambda: RGB),
}
"""Pictures by mode, and what they show by a plain computation."""
LOSSY = ("JPEG", "GIF")
"""Formats that store other pixels; what they show is what Pillow decodes, if that is RGB or grey already."""


def _is_deep(image: Image.Image) -> bool:
    return image.mode[0] in "IF"


def _saved(image: Image.Image, form: str, **options: Any) -> bytes | None:
    file = io.BytesIO()
    try:
        image.save(file, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}), **options)
    except (OSError, KeyError, ValueError):  # a format that does not hold the mode
        return None
    return file.getvalue()


def _stored() -> Iterator[tuple[str, PictureKind]]:
    for (mode, (picture, shows)), form in ((item, form) for item in MODES.items() for form in FORMATS):
        content = _saved(picture(), form)
        if content is None or (form == "GIF" and mode != "P"):  # a GIF dithers other modes
            continue
        decoded = Image.open(io.BytesIO(content))
        has_alpha = mode in ("RGBA", "LA", "P see-through")
        is_deep = mode in ("I;16", "I", "F")
        is_whole = form not in LOSSY and decoded.has_transparency_data == has_alpha and is_deep == _is_deep(decoded)
        yield f"{mode} {form}", PictureKind(content, shows() if is_whole else np.asarray(decoded.convert("RGB")))


def _turned() -> Iterator[tuple[str, PictureKind]]:
    for form, turn in ((form, turn) for form in ("PNG", "JPEG", "TIFF", "WEBP") for turn in range(2, 9)):
        exif = Image.Exif()
        exif[0x0112] = turn
        content = _saved(Image.fromarray(RGB), form, exif=exif)
        assert content
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        yield f"turned {turn} {form}", PictureKind(content, np.asarray(upright))


def _damaged() -> Iterator[tuple[str, PictureKind]]:
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8))
    for form in FORMATS:
        content = _saved(noise, form) or b""
        yield f"cut {form}", PictureKind(content[: len(content) // 2], None)
        yield f"head of {form}", PictureKind(content[:12], None)
    yield "vast PNG", PictureKind(_vast_png(), None)
    texts = {
        "text": b"a picture",
        "page": b"<html>404</html>",
        "drawing": b"<svg xmlns='x'/>",
        "archive": b"PK\3\4" * 9,
    }
    yield from ((name, PictureKind(content, None)) for name, content in texts.items())


def _vast_png() -> bytes:
    """Returns a small file that claims 60,000 pixels a side."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


PICTURES: dict[str, PictureKind] = dict([*_stored(), *_turned(), *_damaged()])
PLAIN = encode_png(RGB)

Scope = Literal["nothing", "row", "line", "file"]
"""What a damage spoils."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class TextKind:
    """A way in which a table of texts is written."""

    spoils: Scope = "nothing"
    rows: Callable[[Rows], Rows] = lambda rows: rows
    """Changes the rows; a damage is in the second."""
    content: Callable[[bytes], bytes] = lambda content: content
    """Changes the file."""
    forms: tuple[str, ...] = (".jsonl", ".csv")


def _second(**values: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [rows[0], rows[1] | values, *rows[2:]]


def _prompts(ending: str) -> Callable[[Rows], Rows]:
    return lambda rows: [row | {"edit_prompt": row["edit_prompt"] + ending} for row in rows]


def _more(value: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [row | {"note": value} for row in rows]


def _line(number: int, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        lines = content.split(b"\n")
        lines[number] = change(lines[number])
        return b"\n".join(lines)

    return changed


JSONL, CSV = (".jsonl",), (".csv",)
TEXTS: dict[str, TextKind] = {
    "plain": TextKind(),
    "byte order mark": TextKind(content=lambda content: b"\xef\xbb\xbf" + content),
    "CRLF": TextKind(content=lambda content: content.replace(b"\n", b"\r\n")),
    "blank lines": TextKind(content=lambda content: content.replace(b"\n", b"\n\n") + b"\n\n"),
    "no last line feed": TextKind(content=lambda content: content.rstrip(b"\n")),
    **{f"U+{ord(mark):04X}": TextKind(rows=_prompts(f"{mark}now")) for mark in "\u2028\u2029\u0085\u000b\u000c\u001c"},
    "other letters": TextKind(rows=_prompts(" ü 日本 🎨")),
    "a huge cell": TextKind(rows=_more("x" * 300_000)),
    "NaN": TextKind(rows=_more(float("nan"))),
    "lists and objects": TextKind(rows=_more([{"a": [1, None]}]), forms=JSONL),
    "quoted line feeds": TextKind(rows=_more('two\n"lines"')),
    "null instruction": TextKind("row", _second(edit_prompt=None)),
    "blank instruction": TextKind("row", _second(edit_prompt="  ")),
    "numeric instruction": TextKind("row", _second(edit_prompt=7), forms=JSONL),
    "NaN as instruction": TextKind("row", _second(edit_prompt=float("nan")), forms=JSONL),
    "object as instruction": TextKind("row", _second(edit_prompt={"text": "x"}), forms=JSONL),
    "no wording": TextKind("row", _second(edit_prompt=[]), forms=JSONL),
    "lone surrogate": TextKind("line", content=_line(1, lambda line: line.replace(b"make", b"\\ud800")), forms=JSONL),
    "missing instruction": TextKind(
        "row", lambda rows: [row if at != 1 else row | {"edit_prompt": ...} for at, row in enumerate(rows)], forms=JSONL
    ),
    "array for a row": TextKind("line", content=_line(1, lambda line: b"[" + line + b"]"), forms=JSONL),
    "number for a row": TextKind("line", content=_line(1, lambda line: b"12"), forms=JSONL),
    "cut line": TextKind("line", content=_line(1, lambda line: line[:-4]), forms=JSONL),
    "two rows on a line": TextKind("line", content=_line(1, lambda line: line + line), forms=JSONL),
    "deep nesting": TextKind("line", content=_line(1, lambda line: b"[" * 99_999), forms=JSONL),
    "a long number": TextKind("line", content=_line(1, lambda line: b'{"seed": ' + b"9" * 5000 + b"}"), forms=JSONL),
    "a null byte": TextKind("line", content=_line(1, lambda line: b"\0" + line), forms=JSONL),
    "unclosed quote": TextKind("file", content=lambda content: content.rstrip(b"\n") + b',"a\n', forms=CSV),
    "Latin-1": TextKind("file", _prompts("ü"), lambda content: content.decode().encode("latin-1", "replace"), CSV),
    "UTF-16": TextKind("file", content=lambda content: content.decode().encode("utf-16")),
    "compressed": TextKind("file", content=lambda content: b"\x1f\x8b\x08\x00" + content[::-1]),
    "parquet in disguise": TextKind("file", content=lambda content: parquet_of([{"edit_prompt": "x"}])),
    "empty": TextKind("file", content=lambda content: b""),
    "white space": TextKind("file", content=lambda content: b" \n\n"),
    "no rows": TextKind("file", rows=lambda rows: [], content=lambda content: b"image,edit_prompt\n", forms=CSV),
}
"""The damages that a `row` or `line` has are of the second row."""


def parquet_of(rows: Rows | pa.Table) -> bytes:
    """Encodes rows as a parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows) if isinstance(rows, list) else rows, file)
    return file.getvalue()


def encode_rows(rows: Rows, form: str) -> bytes:
    """Encodes rows as JSON lines or csv; `...` stands for a column that a row lacks."""
    if form == ".jsonl":
        present: Iterable[dict[str, Any]] = (
            {name: value for name, value in row.items() if value is not ...} for row in rows
        )
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in present).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


PICTURE_CELL = {"bytes": PLAIN, "path": None}
TEXT_ROWS: Rows = [
    {"original_prompt": f"{name} cat", "edit_prompt": f"make {name}", "edited_prompt": f"{name} dog"} for name in "abc"
]
TABLE = pa.Table.from_pylist(
    [{"original_image": PICTURE_CELL, "edited_image": PICTURE_CELL, **row} for row in TEXT_ROWS]
)


def _with(name: str, values: pa.Array | pa.ChunkedArray) -> list[pa.Table]:
    return [TABLE.set_column(TABLE.column_names.index(name), name, values)]


def _plain(kind: pa.DataType) -> list[pa.Table]:
    return _with("edited_image", pa.array([PLAIN] * len(TABLE), kind))


SHARDS: dict[str, tuple[Sequence[pa.Table | bytes], str | None]] = {
    "whole": ([TABLE], "abc"),
    "two shards": ([TABLE[:2], TABLE[2:]], "abc"),
    "an empty shard": ([TABLE, TABLE[:0]], "abc"),
    "an empty shard first": ([TABLE[:0], TABLE], "abc"),
    "one more column": ([TABLE[:2], TABLE[2:].append_column("mask", pa.array([PICTURE_CELL]))], "abc"),
    "columns in another order": ([TABLE[:2], TABLE[2:].select(TABLE.column_names[::-1])], "abc"),
    "binary": (_plain(pa.binary()), "abc"),
    "large binary": (_plain(pa.large_binary()), "abc"),
    "binary of one size": (_plain(pa.binary(len(PLAIN))), "abc"),
    "binary views": (_plain(pa.binary_view()), "abc"),
    "dictionaries": (_with("edit_prompt", TABLE["edit_prompt"].dictionary_encode()), "abc"),
    "large strings": (_with("edit_prompt", TABLE["edit_prompt"].cast(pa.large_string())), "abc"),
    "string views": (_with("edit_prompt", TABLE["edit_prompt"].cast(pa.string_view())), "abc"),
    "null as instruction": (_with("edit_prompt", pa.array(["make a", None, "make c"])), "ac"),
    "blank instruction": (_with("edit_prompt", pa.array(["make a", " ", "make c"])), "ac"),
    "cut": ([parquet_of(TABLE)[:-30]], None),
    "cut beside a whole one": ([TABLE, parquet_of(TABLE)[:200]], None),
    "another file": ([b"a text"], None),
    "an empty file": ([b""], None),
    "no row": ([TABLE[:0]], None),
    "no instruction column": ([TABLE.drop_columns(TEXT_ROWS[0])], None),
}
"""Parquet files, and the rows of them that can be used; None if they cannot be read."""

NAMES = (
    *("plain", "[set] one", "two words", "ü 日本", "a*b?", "100% #1"),
    *("{x}", "quote'\"s", "-dash", "trailing.", "~tilde", "a&b;c"),
)
"""Names of folders and files."""
