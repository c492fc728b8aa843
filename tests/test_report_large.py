"""The report of a large run: written in bounded time, memory and size."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ip2p import store
from ip2p.config import PipelineConfig
from ip2p.images import IMAGE_TYPE
from ip2p.scoring import SCORE_COLUMNS

NUM_SHARDS, ROWS = 200, 1000
KINDS = ("colour", "shape", "weather", "style")
MEASURE = """
import sys
from pathlib import Path
from ip2p.config import PipelineConfig
from ip2p.report import write_report
def most():  # unlike getrusage's, this peak is not inherited from the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
before = most()
page = write_report(PipelineConfig(out=Path(sys.argv[1])))
print(page.stat().st_size, most() - before)
"""


def write_large_run(config: PipelineConfig) -> None:
    """200,000 candidates with pictures of 256 x 256, over 20 GB of them: one shard that lies there 200 times."""
    run, rng = store.RunFolder(config.out), random.Random(0)
    pictures = [_noisy(seed) for seed in range(8)]
    rows = [
        {
            "triplet_id": f"t{number}",
            "candidate": 0,
            "edit_type": rng.choice(KINDS),
            "accepted": (good := rng.random() < 0.5),
            "reason": "" if good else rng.choice(("low_direction", "low_image")),
            **{name: rng.random() for name in SCORE_COLUMNS},
            "original_prompt": f"a caption of number {number}",
            "edit_prompt": f"make it number {number}",
            "edited_prompt": f"another caption {number}",
        }
        for number in range(ROWS)
    ]
    table = pa.Table.from_pylist(rows)
    store.write_shard(run.shard("candidates", 0), table, fingerprint="x", seconds=1.0)
    for name in ("original_image", "edited_image"):
        # Every row's bytes differ, so that parquet's dictionary cannot make 1,000 pictures into 8.
        cells = [{"bytes": pictures[index % 8] + index.to_bytes(4, "big"), "path": name} for index in range(ROWS)]
        table = table.append_column(name, pa.array(cells, IMAGE_TYPE))
    store.write_shard(run.shard("pairs", 0), table, fingerprint="x", seconds=1.0)
    for stage in ("candidates", "pairs"):
        for number in range(1, NUM_SHARDS):
            first, path = run.shard(stage, 0), run.shard(stage, number)
            os.link(first, path)
            os.link(store.sidecar_path(first), store.sidecar_path(path))


def _noisy(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is measured as Linux tells it")
def test_the_report_of_200_000_candidates_is_written_in_bounded_memory_and_size(tmp_path: Path) -> None:
    config = PipelineConfig(out=tmp_path / "run")
    write_large_run(config)
    shard = store.RunFolder(config.out).shard("pairs", 0).stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(config.out)], capture_output=True, text=True, check=True, env=os.environ
    )
    size, memory = (float(word) for word in done.stdout.split())
    page = (config.out / "report/index.html").read_text()
    assert size <= 20e6
    assert 20e6 < memory < 600e6 < NUM_SHARDS * shard
    assert "of 200\u202f000" in page and "left out to keep" in page
    assert page.count('class="card"') >= 50
