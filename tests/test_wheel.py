"""The proof that a wheel is enough: built, installed in an empty environment elsewhere, run in an empty folder.

The new environment borrows the installed libraries through a `.pth` line, so that no gigabyte is fetched again. Python
does not follow the `.pth` files of a borrowed folder, so an editable install of the checkout stays out of sight.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent
REDUCED = shlex.split("""
    --prompts.num-captions 8 --prompts.shard-size 4
    --rendering.num-inference-steps 4 --rendering.num-candidates 1
    --filtering.thresholds.original -1 --filtering.thresholds.edited -1
    --filtering.thresholds.direction -1 --filtering.thresholds.image -1
    --training.max-train-steps 2 --training.train-batch-size 2 --training.checkpointing-steps 1
    --evaluation.num-edits 7 --evaluation.num-sweep-edits 7 --evaluation.num-inference-steps 2
    --evaluation.image-guidance-scales 1.0 2.0
""")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Runs a command and returns what it prints; its errors are shown where it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    )
    return done.stdout


def shipped_files() -> dict[str, bytes]:
    """The files of the checkout's `data/` that are not hidden."""
    data = ROOT / "data"
    found = {path.relative_to(data): path for path in data.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes() for name, path in found.items() if not any(p.startswith(".") for p in name.parts)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a source distribution, so that nothing comes from the checkout but what is packaged."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "uv", "build", "--offline", "--no-build-isolation", "--python", sys.executable,
        "--out-dir", out, ROOT, cwd=out)  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and borrows its libraries."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps", "--python", python, wheel, cwd=folder)
    return folder


@pytest.fixture
def surroundings(elsewhere: Path, tmp_path: Path) -> dict[str, str]:
    """Environment variables of a person who has nothing but the wheel."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PREFECT_", "VIRTUAL_ENV"))
    }
    path = os.pathsep.join([str(elsewhere / "bin"), "/usr/bin", "/bin"])
    return {**own, "PATH": path, "PREFECT_HOME": str(tmp_path / "prefect"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_the_wheel_holds_the_data_the_licence_and_both_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    prefix = "ip2p/_data/"
    assert {
        name.removeprefix(prefix): read for name, read in content.items() if name.startswith(prefix)
    } == shipped_files()
    modules = {str(path.relative_to(ROOT)) for package in ("ip2p", "flows") for path in (ROOT / package).rglob("*.py")}
    assert {name for name in content if name.endswith(".py")} == modules
    assert "ip2p/py.typed" in content
    launches = {str(path.relative_to(ROOT)) for path in (ROOT / "ip2p").rglob("*.yaml")}
    assert {name for name in content if name.endswith(".yaml") and not name.startswith(prefix)} == launches
    (licence,) = (read for name, read in content.items() if name.endswith(".dist-info/licenses/LICENSE"))
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_building_leaves_no_data_in_the_source_tree(wheel: Path) -> None:
    assert wheel.exists()
    assert not (ROOT / "ip2p" / "_data").exists()
    assert not (ROOT / "build").exists()


def test_the_installed_package_is_the_wheel_and_finds_its_own_data(
    elsewhere: Path, empty: Path, surroundings: dict[str, str]
) -> None:
    code = (
        "import ip2p, flows; from ip2p.presets import data_folder; print(ip2p.__file__, flows.__file__, data_folder())"
    )
    for place in run("python", "-c", code, cwd=empty, env=surroundings).split():
        assert Path(place).is_relative_to(elsewhere.resolve())


def test_the_installed_command_explains_itself(elsewhere: Path, empty: Path, surroundings: dict[str, str]) -> None:
    shown = run(elsewhere / "bin" / "ip2p", "run", "shapes", "--help", cwd=empty, env=surroundings)
    assert "--prompts.num-captions" in shown
    assert list(empty.iterdir()) == []


def test_the_installed_command_runs_the_default_in_an_empty_folder(
    elsewhere: Path, empty: Path, surroundings: dict[str, str]
) -> None:
    shown = run(elsewhere / "bin" / "ip2p", "run", "shapes", *REDUCED, cwd=empty, env=surroundings)
    result = empty / "runs" / "shapes"
    assert "runs/shapes" in shown
    summary = json.loads((result / "summary.json").read_text())
    assert {"prompts", "rendering", "dataset", "training", "evaluation"} <= set(summary)
    assert sum(pq.read_metadata(path).num_rows for path in (result / "dataset" / "data").glob("*.parquet")) > 0
    assert (result / "model" / "model_index.json").exists()
    assert (result / "report" / "index.html").stat().st_size > 0
    assert str(elsewhere / "lib") in (result / "config.json").read_text()
