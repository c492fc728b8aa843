"""Damaged files of every kind: each is read, or refused in one line, and nothing is left half written.

The examples are drawn anew from the same seed, so that a failure is found again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ip2p.config import PipelineConfig, to_dict
from ip2p.config.files import read_config
from ip2p.images import open_pixels, plain_file
from ip2p.sources.pairs import SourceRow, read_source
from tests.input_kinds import FORMATS, PICTURES, PLAIN, TABLE, TEXT_ROWS, encode_rows, parquet_of
from tests.test_inputs import (
    Action,
    benchmark_on,
    browse,
    evaluate_on,
    import_prompts,
    outcome_of,
    read_as_captions,
    train_on,
    validate_on,
)

pytestmark = pytest.mark.slow
fuzzed = settings(
    max_examples=250,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BYTES = st.binary(min_size=1, max_size=6) | st.sampled_from(
    [b"\0", b"\xff", b'"', b"{", b"\n", b"NaN", b"\\ud800", b"- "]
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Overwrites, inserts, removes or repeats some bytes, and perhaps cuts the end."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(changed)))
        stop = min(len(changed), start + draw(st.integers(0, 8)))
        changed[start:stop] = draw(BYTES | st.just(bytes(changed[start:stop]) * 2))
    return bytes(changed[: draw(st.none() | st.integers(0, len(changed)))])


def check(action: Action, name: str, content: bytes, *, in_folder: bool = False) -> None:
    """Writes a file beside the picture that tables name, and carries a command out on it or on its folder."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, name)
        source.write_bytes(content)
        Path(folder, "p.png").write_bytes(PLAIN)
        outcome_of(action, source.parent if in_folder else source, Path(folder, "out"))


def read_pairs(source: Path, out: Path) -> list[SourceRow]:
    """Reads what an import would take."""
    return list(read_source(str(source)))


ROWS = [{**row, **dict.fromkeys(("image", "original_image", "edited_image"), "p.png")} for row in TEXT_ROWS]


@pytest.mark.parametrize("action", [train_on, read_pairs, evaluate_on, browse, benchmark_on, read_as_captions])
@given(data=st.data())
@fuzzed
def test_parquet(action: Action, data: st.DataObject) -> None:
    name = "test.parquet" if action is evaluate_on else "train.parquet"
    check(action, name, data.draw(damaged(parquet_of(TABLE))), in_folder=action is not read_as_captions)


@pytest.mark.parametrize("form", [".jsonl", ".csv"])
@pytest.mark.parametrize("action", [train_on, read_as_captions, import_prompts, benchmark_on, validate_on])
@given(data=st.data())
@fuzzed
def test_lines(action: Action, form: str, data: st.DataObject) -> None:
    check(action, f"rows{form}", data.draw(damaged(encode_rows(ROWS, form))))


@pytest.mark.parametrize("form", FORMATS)
@given(data=st.data())
@fuzzed
def test_pictures(form: str, data: st.DataObject) -> None:
    content = data.draw(damaged(PICTURES[f"RGB {form}" if form != "GIF" else "P GIF"].content))
    try:
        pixels = open_pixels(content)
    except ValueError as error:
        assert str(error).startswith("image ")
    else:
        kept, size = plain_file(content)
        assert pixels.shape == (*size[::-1], 3) and (open_pixels(kept) == pixels).all()


@pytest.mark.parametrize("name, write", [("config.json", json.dumps), ("config.yaml", yaml.safe_dump)])
@given(data=st.data())
@fuzzed
def test_configs(name: str, write: Callable[[Any], str], data: st.DataObject) -> None:
    section = data.draw(st.sampled_from(["prompts", "rendering", "filtering", "training", "evaluation"]))
    content = write({section: to_dict(PipelineConfig())[section]}).encode()
    check(lambda source, out: read_config(source), name, data.draw(damaged(content)))
