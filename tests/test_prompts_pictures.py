"""Instructions for pictures without captions: a model on a real server looks at each, and each has its answer once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p import prompts, rendering, store
from ip2p.config import PipelineConfig, PromptsConfig, ServerConfig, to_dict
from ip2p.models.seeing import load_seeing_model
from ip2p.prompts import write_shard
from ip2p.prompts.answers import journal_path
from ip2p.prompts.asking import Answer, Request
from ip2p.prompts.backends import open_backend
from ip2p.prompts.backends.seeing import DrawByHash
from ip2p.prompts.captions import read_entries
from ip2p.prompts.format import LOOK_FIELDS
from ip2p.prompts.pictures import read_pictures
from ip2p.shapes.draw import DrawingFiles, Drawings
from ip2p.shapes.language import parse_caption
from ip2p.shapes.oracle import read_scene
from tests.chat_server import ChatServer, colour_of, picture_of, serving, well_behaved
from tests.processes import wait_until
from tests.tiny import write_tiny_vlm

NUM = 12


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


@pytest.fixture
def config(tiny_config: PipelineConfig, tiny_editor: Path, tmp_path: Path, server: ChatServer) -> PipelineConfig:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (NUM, 8, 8, 3), dtype=np.uint8)):
        pixels[..., number % 3] |= 128
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{number:02d}.png")
    asked = ServerConfig(base_url=server.url, timeout=5.0, first_delay=0.01, max_delay=0.05, concurrency=3)
    written = replace(
        tiny_config.prompts,
        pictures=str(folder),
        backend="server",
        model="some-model",
        server=asked,
        shard_size=NUM,
        max_prompt_tokens=10_000,
    )
    made = replace(tiny_config.rendering, backend="editor", model=str(tiny_editor), num_candidates=1)
    return replace(tiny_config, prompts=written, rendering=made)


def rows_of(config: PipelineConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(store.RunFolder(config.out).shard("triplets", 0)).to_pylist()
    return rows


def check_each_picture_once(config: PipelineConfig) -> None:
    stored = read_pictures(config.out, 0)
    rows = rows_of(config)
    assert [row["picture"] for row in rows] == list(stored) and len(rows) == NUM
    for row in rows:
        seen = f"a {colour_of(stored[row['picture']])} thing"
        assert row["reason"] == "" and row["original_prompt"] == seen
        assert row["edited_prompt"] == f"{seen}, {row['edit_type']}"


def test_each_picture_is_looked_at_once_and_its_answer_is_its_own(config: PipelineConfig, server: ChatServer) -> None:
    write_shard(config, 0)
    check_each_picture_once(config)
    assert set(server.asked.values()) == {1} and len(server.asked) == NUM
    stored = read_pictures(config.out, 0)
    assert {picture_of(body["messages"]) for body in server.bodies} == set(stored.values())
    assert len({row["edit_type"] for row in rows_of(config)}) > 3
    before = [path.read_bytes() for path in sorted(config.out.rglob("part-*.parquet"))]
    write_shard(config, 0)
    assert sum(server.asked.values()) == NUM
    assert [path.read_bytes() for path in sorted(config.out.rglob("part-*.parquet"))] == before


def test_the_edit_types_follow_the_configured_mix(config: PipelineConfig, server: ChatServer) -> None:
    mix = (("colour", 1.0), ("add", 3.0), ("style", 0.0))
    several = replace(config, prompts=replace(config.prompts, edit_types=mix, num_triplets_per_caption=2))
    write_shard(several, 0)
    assert Counter(row["edit_type"] for row in rows_of(several)) == {"colour": NUM, "add": NUM}


def test_what_is_wrong_with_an_answer_is_kept_as_a_reason(config: PipelineConfig, server: ChatServer) -> None:
    def answer(messages: list[dict[str, Any]]) -> str:
        good = well_behaved(messages)
        colour = colour_of(picture_of(messages))
        if colour == "red":
            return "I would rather talk about it"
        return (
            good.replace(good.partition('"edited_prompt": ')[2], f'"a {colour} thing"}}') if colour == "blue" else good
        )

    server.answer = answer
    counts = write_shard(config, 0).counts
    reasons = Counter(row["reason"] for row in rows_of(config))
    assert set(reasons) == {"", "unparsable", "no_op"} and reasons.total() == NUM
    assert {name: counts[name] for name in ("unparsable", "no_op")} == {
        name: reasons[name] for name in ("unparsable", "no_op")
    }


def test_a_malformed_answer_is_asked_for_again_with_the_picture(config: PipelineConfig, server: ChatServer) -> None:
    server.answer = lambda messages: "Sure!" if len(messages) == 2 else well_behaved(messages)
    write_shard(config, 0)
    check_each_picture_once(config)
    assert set(server.asked.values()) == {2}
    complaint = server.bodies[-1]["messages"][-1]["content"]
    assert all(name in complaint for name in LOOK_FIELDS)


def test_a_schema_names_the_caption_of_the_picture_too(config: PipelineConfig, server: ChatServer) -> None:
    asked = replace(config.prompts.server, response_format="json_schema")
    write_shard(replace(config, prompts=replace(config.prompts, server=asked)), 0)
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(LOOK_FIELDS)


def test_a_picture_with_a_caption_is_written_about_unseen(
    config: PipelineConfig, server: ChatServer, tmp_path: Path
) -> None:
    (tmp_path / "pictures" / "00.txt").write_text("a caption of mine")
    write_shard(config, 0)
    assert server.asked["a caption of mine"] == 1 and len(server.asked) == NUM
    first = rows_of(config)[0]
    assert first["original_prompt"] == "a caption of mine" and first["picture"]


def test_pairs_are_made_of_what_was_seen(config: PipelineConfig) -> None:
    write_shard(config, 0)
    assert rendering.write_shard(config, 0).counts["candidates"] == NUM


def test_a_model_on_this_machine_looks_too_and_no_answer_depends_on_the_order(
    config: PipelineConfig, tmp_path: Path
) -> None:
    chat = replace(config.prompts, backend="chat", model=str(write_tiny_vlm(tmp_path)), device="cpu", max_new_tokens=8)
    config = replace(config, prompts=chat)
    counts = write_shard(config, 0).counts
    assert counts["unparsable"] == NUM  # its weights are random
    texts = {row["generation"] for row in rows_of(config)}
    shown = read_pictures(config.out, 0)
    requests = [Request("", attempt, picture) for picture in shown for attempt in range(2)]

    def ask(requests: list[Request], **changed: Any) -> list[Answer]:
        backend = open_backend(replace(chat, **changed), tmp_path / "unused", shown)
        return backend.answer(requests, on_answer=lambda num: None)

    answers = ask(requests)
    assert answers == ask(requests[::-1])[::-1] and len({answer.text for answer in answers}) > NUM
    assert {answer.text for answer in answers[::2]} == texts
    assert all(answer.earlier for answer in answers)
    first = Image.new("RGB", (64, 64))
    model = load_seeing_model(chat.model, what="", revision=None, device="cpu", dtype="float32")
    content = [{"type": "image"}, {"type": "text", "text": "a small red circle"}]
    likeliest, drawn = (
        model.answer([{"role": "user", "content": content}], [first], max_new_tokens=8, draw=draw)
        for draw in (None, DrawByHash(replace(chat, temperature=0.0), ("x",)))
    )
    assert likeliest == drawn


@pytest.mark.slow
def test_a_killed_process_costs_the_requests_in_flight(config: PipelineConfig, server: ChatServer) -> None:
    server.seconds = 0.1
    saved = config.out / "config.json"
    store.write_json(saved, to_dict(config))
    code = "import sys; from pathlib import Path; from ip2p.config.files import read_config; "
    code += "from ip2p.prompts import write_shard; write_shard(read_config(Path(sys.argv[1])), 0)"
    with subprocess.Popen([sys.executable, "-c", code, str(saved)], cwd=Path(__file__).parent.parent) as child:
        wait_until(lambda: sum(server.answered.values()) >= 4)
        child.kill()
    server.wait_until_idle()
    server.seconds = 0.0
    write_shard(config, 0)
    check_each_picture_once(config)
    assert len(journal_path(config, 0).read_bytes().splitlines()) >= NUM
    assert sum(server.asked.values()) <= NUM + 3 + 1


def test_a_drawing_shows_its_caption_and_files_hold_the_same(tmp_path: Path) -> None:
    drawings = Drawings()
    for number in range(20):
        described, scene = parse_caption(drawings.caption(number)), read_scene(drawings.picture(number))
        assert described is not None and scene is not None
        assert scene.background == described.background
        assert {thing.attributes for thing in scene.objects} == set(described.objects)
    DrawingFiles(out=tmp_path / "drawings", num=5).write()
    drawn = PromptsConfig(pictures="ip2p.shapes.draw:Drawings", num_captions=5)
    files = PromptsConfig(pictures=str(tmp_path / "drawings"))
    captions = [[entry.caption for entry in read_entries(each)] for each in (drawn, files)]  # type: ignore[union-attr]
    assert captions[0] == captions[1] == [drawings.caption(number) for number in range(5)]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("ip2p.shapes.draw:Drawings", "prompts.num_captions is not set for ip2p.shapes.draw:Drawings"),
        ("ip2p.shapes.draw:Paintings", "cannot be imported"),
        ("nothing.there:Drawings", "cannot be imported"),
    ],
)
def test_code_that_draws_must_be_there_and_be_told_how_much(pictures: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        prompts.num_shards(PipelineConfig(prompts=PromptsConfig(pictures=pictures)))
    assert "\n" not in str(error.value)
