"""Measures on one card all that is claimed of a GPU: `make gpu`, or `python -m tests.benchmarks.kit`.

Each part runs in a process of its own with a budget of seconds. A part that fails or takes too long is a row with the
reason, and the others go on; all of them end within `--budget-s`. The table is written as JSON and Markdown after every
part, with the card's name. Models are of the real architectures with random weights, pairs are drawn: nothing is
downloaded. `--script FILE` is diffusers' train_instruct_pix2pix.py, unchanged, to compare with. `--device cpu --tiny`
goes the same way in miniature, to try the kit itself: its figures say nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.benchmarks.kit_parts import PARTS, Figure, Kit, Part, Sizes

TINY = Sizes(
    width=0.1,
    flow_depth=1,
    pixels=64,
    pairs=4,
    batch_size=2,
    flow_batch_size=2,
    steps=1,
    script_steps=2,
    rendered_pixels=64,
    rendered_pairs=2,
    rendering_steps=2,
    matrix=256,
)
VERDICTS = {True: "met", False: "not met", None: "not measured"}
PATIENCE = 20.0
"""How many times as long a part may take where there is no card."""
LONGEST_NOTE = 200
ABOUT = ("card", "torch")
"""What a part finds that stands above the table."""
HEAVY = ("tests.benchmarks.step", "tests.benchmarks.rendering", "tests.benchmarks.architectures")
"""What the parts import. On a CPU their processes are forked from this one, which imports it once; a card is not to be
touched before a fork, so there every process starts afresh."""


@dataclass(frozen=True)
class Row:
    """A figure of a part, or why it has none."""

    part: str
    what: str
    value: float | None = None
    unit: str = ""
    goal: float | None = None
    """The least that is wanted."""
    note: str = ""
    """What there is to say, such as the error."""
    seconds: float = 0.0
    """That the part took."""

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None without a goal or a figure."""
        return None if self.goal is None or self.value is None else self.value >= self.goal


@dataclass
class Table:
    """What has been found so far, written as it grows."""

    folder: Path
    about: dict[str, str]
    rows: list[Row] = field(default_factory=list)

    def add(self, rows: Sequence[Row]) -> None:
        """Takes the rows of a part and writes `table.json` and `table.md`."""
        self.rows += rows
        content = {"about": self.about, "rows": [asdict(row) for row in self.rows]}
        (self.folder / "table.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.folder / "table.md").write_text(self.markdown())

    def markdown(self) -> str:
        """The table, under what it is about."""
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        lines = [about, "", "| part | figure | value | goal | note | part took, s |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            value = "" if row.value is None else f"{row.value:.4g} {row.unit}".strip()
            goal = "" if row.goal is None else f"{row.goal:g}, {VERDICTS[row.is_met]}"
            lines.append(f"| {row.part} | {row.what} | {value} | {goal} | {row.note} | {row.seconds:.0f} |")
        return "\n".join(lines) + "\n"


def run_part(part: Part, kit: Kit, seconds: float) -> list[Row]:
    """Runs a part in a process of its own, which is killed with all that it started if it takes longer."""
    reason = part.obstacle(kit)
    if reason:
        return [Row(part.name, what, goal=goal, note=reason) for what, goal in part.promises]
    context: Any = multiprocessing.get_context("fork" if kit.device == "cpu" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    started = time.monotonic()
    child = context.Process(target=_answer, args=(part, kit, sender))
    child.start()
    sender.close()
    answer: list[Figure] | str = f"took more than {seconds:.0f} s"
    if receiver.poll(seconds):
        try:
            answer = receiver.recv()
        except EOFError:  # it was killed, such as for its memory
            answer = "its process ended without an answer"
    with contextlib.suppress(ProcessLookupError):  # it leads a group of its own, with all that it started
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()
    took = time.monotonic() - started
    if isinstance(answer, str):
        return [Row(part.name, what, goal=goal, note=answer, seconds=took) for what, goal in part.promises]
    goals = dict(part.promises)
    return [Row(part.name, each.what, each.value, each.unit, goals.get(each.what), each.note, took) for each in answer]


def _answer(part: Part, kit: Kit, sender: Connection) -> None:
    """Sends the figures of a part, or its error in a line. What it prints goes to a log of the part's name."""
    os.setsid()
    log = os.open(kit.folder / f"{part.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        sender.send(part.run(kit))
    except BaseException as error:  # also of a script that exits: the other parts go on
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        sender.send(f"{type(error).__name__}: {lines[-1]}".replace("|", "/")[:LONGEST_NOTE])


def run(kit: Kit, names: Sequence[str], budget: float) -> Table:
    """Runs the parts one after another; what one finds is known to those after it."""
    kit.folder.mkdir(parents=True, exist_ok=True)
    if kit.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        for module in HEAVY:
            importlib.import_module(module)
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    table = Table(kit.folder, {"device": kit.device, "date": at} | ({"size": "tiny"} if kit.sizes.width < 1 else {}))
    ends = time.monotonic() + budget
    for name in names:
        patience = PATIENCE if kit.device == "cpu" else 1.0
        rows = run_part(PARTS[name], kit, max(1.0, min(PARTS[name].seconds * patience, ends - time.monotonic())))
        kit.known.update({f"{row.part}: {row.what}": row.value for row in rows if row.value is not None})
        table.about |= {row.what: row.note for row in rows if row.what in ABOUT}
        table.add([row for row in rows if row.what not in ABOUT])
        print(f"{name}: {rows[0].seconds:.0f} s", flush=True)
    return table


def main() -> None:
    """Runs the parts that are asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--script", default="", help="diffusers' train_instruct_pix2pix.py")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    parser.add_argument("--budget-s", type=float, default=530.0, help="for all parts together")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="of training Stable Diffusion 1.5, 64 by default; fewer on a card of less than 128 GiB",
    )
    parser.add_argument("--tiny", action="store_true", help="models, pictures and numbers of steps as small as can be")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="ip2p-gpu-"))
    try:
        sizes = TINY if options.tiny else Sizes()
        sizes = replace(sizes, batch_size=options.batch_size or sizes.batch_size)
        kit = Kit(options.out.resolve(), scratch, options.device, sizes, options.script)
        needed = [name for name in PARTS if name in options.parts or PARTS[name].comes_first]
        print(run(kit, needed, options.budget_s).markdown())
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
