"""The tally of accepted draws against counting rows one by one."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p.config import EditTypeRendering, RenderingConfig
from ip2p.filtering import measure_acceptance

CONFIG = RenderingConfig(
    guidance_scale=(3.0, 3.0), p2p=(0.2, 0.6), per_edit_type={"add": EditTypeRendering(p2p=(0.0, 0.0))}
)


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    schema = pa.schema(
        [("edit_type", pa.string()), ("accepted", pa.bool_()), ("p2p", pa.float64()), ("guidance_scale", pa.float64())]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def test_rates_are_those_of_the_rows(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows: list[dict[str, object]] = []
    for _ in range(500):
        kind = rng.choice(["add", "colour", ""])
        p2p = 0.0 if kind == "add" else rng.uniform(0.2, 0.6)
        rows.append({"edit_type": kind, "accepted": rng.random() < p2p, "p2p": p2p})
    tables = [write_table(tmp_path / f"{n}.parquet", rows[n::3]) for n in range(3)]
    found = measure_acceptance([*tables, write_table(tmp_path / "empty.parquet", [])], CONFIG)
    assert set(found) == {"edit_type", "p2p"}  # the only range
    for told in found["edit_type"]:
        same = [row for row in rows if row["edit_type"] == told["name"]]
        accepted = sum(bool(row["accepted"]) for row in same)
        assert (told["candidates"], told["accepted"]) == (len(same), accepted)
        assert told["rate"] == pytest.approx(accepted / len(same), abs=1e-4)
    assert [part["low"] for part in found["p2p"]] == pytest.approx([0.2, 0.28, 0.36, 0.44, 0.52])
    general = [row for row in rows if row["edit_type"] != "add"]  # that type draws from no range
    for part in found["p2p"]:
        same = [row for row in general if part["low"] <= float(str(row["p2p"])) < part["high"]]
        assert part["candidates"] == len(same)
        assert part["accepted"] == sum(bool(row["accepted"]) for row in same)
    assert sum(part["candidates"] for part in found["p2p"]) == len(general)


def test_an_edit_type_with_a_range_of_its_own_is_told_apart(tmp_path: Path) -> None:
    config = RenderingConfig(
        guidance_scale=(7.5, 7.5), p2p=(0.0, 1.0), per_edit_type={"add": EditTypeRendering(p2p=(0.0, 0.5))}
    )
    draws = [(kind, value) for kind in ("add", "size") for value in (0.05, 0.45)]
    rows: list[dict[str, object]] = [
        {"edit_type": kind, "accepted": kind == "add", "p2p": value, "guidance_scale": 7.5} for kind, value in draws
    ]
    found = measure_acceptance([write_table(tmp_path / "t.parquet", rows)], config)
    assert [part["rate"] for part in found["p2p, add"]] == [1.0, None, None, None, 1.0]
    assert [part["rate"] for part in found["p2p"]] == [0.0, None, 0.0, None, None]


def test_without_tables_there_is_nothing_to_tell() -> None:
    found = measure_acceptance([], CONFIG)
    assert found["edit_type"] == []
    assert [part["rate"] for part in found["p2p"]] == [None] * 5
