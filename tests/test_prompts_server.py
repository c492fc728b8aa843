"""The server backend against a real HTTP server: whatever goes wrong on the way, each caption has its answer once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ip2p import store
from ip2p.config import PipelineConfig, ServerConfig, to_dict
from ip2p.prompts import write_shard
from ip2p.prompts.answers import journal_path
from ip2p.prompts.format import JSON_FIELDS
from tests.chat_server import ChatServer, question_of, serving, well_behaved
from tests.processes import wait_until

CAPTIONS = tuple(f"a photo of house number {number} by the sea" for number in range(24))
FAULTS = ("429", "500", "503", "hang", "half", "reset", "empty", "garbage")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


@pytest.fixture
def config(tiny_config: PipelineConfig, tmp_path: Path, server: ChatServer) -> PipelineConfig:
    path = tmp_path / "photos.txt"
    path.write_text("\n".join(CAPTIONS))
    asked = ServerConfig(base_url=server.url, timeout=0.5, first_delay=0.01, max_delay=0.05, concurrency=6)
    prompts = replace(tiny_config.prompts, captions=str(path), shard_size=24, max_prompt_tokens=10_000)
    return replace(tiny_config, prompts=replace(prompts, backend="server", model="some-model", server=asked))


def with_server(config: PipelineConfig, **changed: Any) -> PipelineConfig:
    server = replace(config.prompts.server, **changed)
    return replace(config, prompts=replace(config.prompts, server=server))


def rows_of(config: PipelineConfig) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(store.RunFolder(config.out).shard("triplets", 0)).to_pylist()
    return rows


def check_each_caption_once(config: PipelineConfig) -> None:
    rows = rows_of(config)
    assert [row["caption"] for row in rows] == list(CAPTIONS)
    for row in rows:
        assert row["reason"] == "" and row["edited_prompt"] == f"{row['caption']}, {row['edit_type']}"


def test_each_caption_is_asked_once_and_its_answer_is_its_own(config: PipelineConfig, server: ChatServer) -> None:
    write_shard(config, 0)
    check_each_caption_once(config)
    assert set(server.asked.values()) == {1} and len(server.asked) == 24
    assert {row["source"] for row in rows_of(config)} == {"some-model"}
    assert len({row["edit_type"] for row in rows_of(config)}) > 5


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_no_triplet_is_lost_or_doubled_by(config: PipelineConfig, server: ChatServer, fault: str) -> None:
    server.faults = lambda caption, number: fault if number == 1 and int(caption.split()[5]) % 4 == 0 else ""
    write_shard(config, 0)
    check_each_caption_once(config)
    assert set(server.answered.values()) == {1} or fault in ("hang", "half")
    assert sum(server.asked.values()) == 24 + 6


def test_all_faults_at_once_change_no_triplet(config: PipelineConfig, server: ChatServer, tmp_path: Path) -> None:
    write_shard(config, 0)
    server.asked.clear()
    server.faults = lambda caption, number: FAULTS[(int(caption.split()[5]) + number) % 8] if number <= 3 else ""
    again = replace(config, out=tmp_path / "again")
    write_shard(again, 0)
    assert rows_of(again) == rows_of(config)


def test_only_the_asked_form_of_an_answer_makes_a_shard_of_another_server_be_written_again(
    config: PipelineConfig, server: ChatServer
) -> None:
    done = write_shard(config, 0)
    assert write_shard(with_server(config, timeout=9.0, base_url=f"{server.url}/"), 0) == done
    write_shard(with_server(config, response_format="json_schema"), 0)
    assert sum(server.asked.values()) == 48
    assert server.bodies[-1]["response_format"]["json_schema"]["schema"]["required"] == list(JSON_FIELDS)


def test_no_more_requests_than_allowed_are_under_way(config: PipelineConfig, server: ChatServer) -> None:
    server.seconds = 0.02
    write_shard(with_server(config, concurrency=3), 0)
    assert server.most_at_once == 3


def test_a_server_that_stays_away_is_an_error_and_what_it_answered_is_kept(
    config: PipelineConfig, server: ChatServer
) -> None:
    server.faults = lambda caption, number: "503" if "number 23 " in caption else ""
    patient = with_server(config, max_retries=2, concurrency=1)
    with pytest.raises(RuntimeError, match="no answer in 3 attempts: status 503.*run the same command again"):
        write_shard(patient, 0)
    server.faults = lambda caption, number: ""
    write_shard(patient, 0)
    check_each_caption_once(patient)
    assert sorted(server.asked.values()) == [1] * 23 + [4]


def test_a_wrong_key_is_a_mistake_that_is_not_tried_again(config: PipelineConfig, server: ChatServer) -> None:
    server.faults = lambda caption, number: "401"
    with pytest.raises(ValueError, match=r"status 401.*the key in OPENAI_API_KEY"):
        write_shard(with_server(config, concurrency=1), 0)
    assert sum(server.asked.values()) == 1


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    config: PipelineConfig, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sesame-7")
    keyed = with_server(config, api_key_variable="MY_KEY")
    write_shard(keyed, 0)
    assert server.keys == {"Bearer sesame-7"}
    assert "sesame-7" not in json.dumps(to_dict(keyed))
    assert not any(b"sesame-7" in path.read_bytes() for path in config.out.rglob("*") if path.is_file())


def test_a_refused_caption_is_rejected_with_its_reason_and_not_asked_again(
    config: PipelineConfig, server: ChatServer
) -> None:
    server.faults = lambda caption, number: "400" if "number 5 " in caption else ""
    counts = write_shard(config, 0).counts
    assert (counts["kept"], counts["refused"]) == (23, 1)
    store.RunFolder(config.out).shard("answers", 0).unlink()
    store.RunFolder(config.out).shard("triplets", 0).unlink()
    write_shard(config, 0)
    assert set(server.asked.values()) == {1}


def test_a_server_that_refuses_everything_is_a_mistake(config: PipelineConfig, server: ChatServer) -> None:
    server.faults = lambda caption, number: "400"
    with pytest.raises(ValueError, match=r"refused every request: .*fault 400.*Check prompts\.model"):
        write_shard(config, 0)
    assert not journal_path(config, 0).exists()


def test_an_answer_that_is_not_as_asked_is_mended_once(config: PipelineConfig, server: ChatServer) -> None:
    def answer(messages: list[dict[str, str]]) -> str:
        if "number 3 " in question_of(messages)[0]:
            return "I would rather not."
        return well_behaved(messages) if "Answer again" in messages[-1]["content"] else "Sure! Here it is"

    server.answer = answer
    counts = write_shard(config, 0).counts
    assert (counts["kept"], counts["unparsable"]) == (23, 1)
    assert set(server.asked.values()) == {2}


def test_neither_shards_nor_the_number_of_requests_at_a_time_change_a_triplet(
    config: PipelineConfig, tmp_path: Path
) -> None:
    write_shard(config, 0)
    other = with_server(replace(config, out=tmp_path / "other"), concurrency=2)
    other = replace(other, prompts=replace(other.prompts, shard_size=5))
    found = []
    for number in range(5):
        write_shard(other, number)
        found += pq.read_table(store.RunFolder(other.out).shard("triplets", number)).to_pylist()
    assert found == rows_of(config)


def test_a_line_that_a_kill_cut_short_is_asked_for_again_and_no_other(
    config: PipelineConfig, server: ChatServer
) -> None:
    write_shard(config, 0)
    wanted = rows_of(config)
    journal = journal_path(config, 0)
    journal.write_bytes(journal.read_bytes()[:-20])
    for stage in ("answers", "triplets"):
        store.RunFolder(config.out).shard(stage, 0).unlink()
    write_shard(config, 0)
    assert rows_of(config) == wanted
    assert sum(server.asked.values()) == 25
    assert len(journal.read_bytes().splitlines()) == 25  # the broken line has its end


@pytest.mark.slow
def test_a_killed_process_costs_the_requests_in_flight(config: PipelineConfig, server: ChatServer) -> None:
    server.seconds = 0.1
    slow = with_server(config, concurrency=2, timeout=5.0)
    saved = slow.out / "config.json"
    store.write_json(saved, to_dict(slow))
    code = "import sys; from pathlib import Path; from ip2p.config.files import read_config; "
    code += "from ip2p.prompts import write_shard; write_shard(read_config(Path(sys.argv[1])), 0)"
    with subprocess.Popen([sys.executable, "-c", code, str(saved)], cwd=Path(__file__).parent.parent) as child:
        wait_until(lambda: sum(server.answered.values()) >= 6)
        child.kill()
    server.wait_until_idle()
    server.seconds = 0.0
    write_shard(slow, 0)
    check_each_caption_once(slow)
    assert sum(server.asked.values()) <= 24 + 2 + 1
