"""The vision-language judge in the filter: asked about what passes the cheap scores, over real sockets, with faults."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p import rendering, store
from ip2p.config import FilteringConfig, PipelineConfig, ServerConfig, Thresholds, VlmConfig
from ip2p.config.filtering import Selection
from ip2p.filtering import OPEN, UNREAD, check_thresholds
from ip2p.store import RunFolder
from ip2p.uses import is_complete, record_completion
from tests.test_rendering_candidates import write_triplets

ANY = Thresholds(original=-1, edited=-1, direction=-1, image=-1)


class Judge(ThreadingHTTPServer):
    """Scores what was followed by the mean of the edited picture, so that the verdict on each is known."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.questions: list[str] = []
        self.is_down = self.is_garbled = False
        self.answers_before_it_fails = 1 << 30
        self.lock = threading.Lock()

    def config(self, model: str = "judge") -> VlmConfig:
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        return VlmConfig(model=model, server=ServerConfig(base_url=url, first_delay=0.01, max_retries=1, concurrency=2))


class _Handler(BaseHTTPRequestHandler):
    server: Judge

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        *pictures, question = body["messages"][0]["content"]
        with self.server.lock:
            self.server.answers_before_it_fails -= 1
            fails = self.server.is_down or self.server.answers_before_it_fails < 0
            if not fails:
                self.server.questions.append(question["text"])
        level = _level(pictures[-1]["image_url"]["url"])
        scores = {"followed": level, "kept": 7} if len(pictures) == 2 else {"natural": 8, "clean": 9}
        text = "No." if self.server.is_garbled else json.dumps({"why": "it says so", **scores})
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
        content = json.dumps(reply).encode()
        self.send_response(503 if fails else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _level(url: str) -> float:
    return level_of(base64.b64decode(url.removeprefix("data:image/png;base64,")))


def level_of(content: bytes) -> float:
    """What the judge says about a picture."""
    with Image.open(io.BytesIO(content)) as image:
        return round(float(np.asarray(image).mean()) / 25.5, 3)


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def asking(config: PipelineConfig, judge: Judge, **changes: Any) -> PipelineConfig:
    filtering = FilteringConfig(thresholds=replace(ANY, **changes), vlm=judge.config())
    return replace(config, filtering=filtering)


def rows_of(config: PipelineConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(RunFolder(config.out).shard("candidates", 0)).to_pylist()
    return rows


def test_only_what_the_cheap_scores_let_pass_is_asked_about_and_verdicts_are_those_of_the_rule(
    tiny_config: PipelineConfig, judge: Judge
) -> None:
    write_triplets(tiny_config)
    plain = replace(tiny_config, out=tiny_config.out.with_name("plain"))
    write_triplets(plain)
    rendering.write_shard(plain, 0)
    limit = sorted(row["contrast"] for row in rows_of(plain))[2]
    keeping = replace(tiny_config, rendering=replace(tiny_config.rendering, keep_rejected_images=True))
    config = asking(keeping, judge, contrast=limit, vlm_followed=4.9)
    counts = rendering.write_shard(config, 0).counts
    pairs = pq.read_table(RunFolder(config.out).shard("pairs", 0)).to_pylist()
    assert len(pairs) == 6 and counts["low_contrast"] == 2
    for row in pairs:
        level = level_of(row["edited_image"]["bytes"])
        if row["contrast"] < limit:
            assert row["vlm_followed"] is None and row["vlm_judge"] == "" and row["reason"] == "low_contrast"
            continue
        assert (row["vlm_followed"], row["vlm_kept"], row["vlm_quality"]) == (level, 7, 8)
        assert row["reason"] == ("" if level >= 4.9 else "low_vlm_followed")
        assert "it says so" in row["vlm_answer"]
    assert len(judge.questions) == 2 * 4


def test_other_thresholds_ask_nothing_and_another_judge_is_asked(tiny_config: PipelineConfig, judge: Judge) -> None:
    write_triplets(tiny_config)
    config = asking(tiny_config, judge)
    rendering.write_shard(config, 0)
    levels = [row["vlm_followed"] for row in rows_of(config)]
    judge.is_down, num_asked = True, len(judge.questions)
    limit = sorted(levels)[3]
    rendering.refilter(asking(tiny_config, judge, vlm_followed=limit))
    assert [row["accepted"] for row in rows_of(config)] == [level >= limit for level in levels]
    rendering.refilter(config)
    assert all(row["accepted"] for row in rows_of(config)) and len(judge.questions) == num_asked
    judge.is_down = False
    other = replace(config, filtering=replace(config.filtering, vlm=judge.config("another")))
    assert rendering.refilter(other)["accepted"] == 6 and len(judge.questions) == 2 * num_asked


@pytest.mark.parametrize("selection", ["best", "first"])
def test_after_a_failure_and_a_resume_the_result_is_that_of_a_run_without(
    tiny_config: PipelineConfig, judge: Judge, selection: Selection
) -> None:
    write_triplets(tiny_config)
    rendering.write_shard(asking(tiny_config, judge), 0)
    limit = max(row["vlm_followed"] for row in rows_of(tiny_config) if row["candidate"] == 0)
    judge.questions.clear()

    def run(name: str) -> PipelineConfig:
        config = asking(replace(tiny_config, out=tiny_config.out.with_name(name)), judge, vlm_followed=limit)
        filtering = replace(config.filtering, selection=selection, max_pairs_per_triplet=1)
        config = replace(config, filtering=filtering)
        write_triplets(config)
        return config

    whole, broken = run("whole"), run("broken")
    rendering.write_shard(whole, 0)
    assert {row["reason"] for row in rows_of(whole)} >= {"", "low_vlm_followed"}
    asked = sorted(judge.questions)
    judge.questions.clear()
    judge.answers_before_it_fails = 3
    counts = rendering.write_shard(broken, 0).counts
    assert counts[OPEN] >= 1 and rendering.shard_states(broken)[0] == "outdated"
    record_completion(broken, "dataset")
    assert not is_complete(broken, "dataset")
    held = pq.read_table(RunFolder(broken.out).shard("pairs", 0))
    assert pc.sum(pc.equal(held["reason"], OPEN)).as_py() == counts[OPEN]  # their images are kept
    judge.answers_before_it_fails = 1 << 30
    rendering.write_shard(broken, 0)
    assert sorted(judge.questions) == asked  # none twice
    one, two = (pq.read_table(RunFolder(each.out).shard("candidates", 0)) for each in (whole, broken))
    verdicts = ["triplet_id", "candidate", "seed", "accepted", "reason", "vlm_judge", "vlm_kept", "vlm_quality"]
    assert one.select(verdicts).equals(two.select(verdicts))
    if selection == "best":  # the batches were the same, too
        assert one.equals(two)
    assert rendering.shard_states(broken)[0] == "done"


def test_a_server_that_is_away_leaves_all_open_and_is_given_up_soon(
    tiny_config: PipelineConfig, judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    write_triplets(tiny_config)
    judge.is_down = True
    config = asking(tiny_config, judge)
    assert rendering.write_shard(config, 0).counts == {"candidates": 6, "accepted": 0, OPEN: 6}
    assert 1 <= sum("left open" in record.message for record in caplog.records) <= 4
    judge.is_down = False
    assert rendering.refilter(config) == {"candidates": 6, "accepted": 6}


def test_an_answer_without_scores_rejects_and_is_kept(tiny_config: PipelineConfig, judge: Judge) -> None:
    write_triplets(tiny_config)
    judge.is_garbled = True
    config = asking(tiny_config, judge)
    assert rendering.write_shard(config, 0).counts == {"candidates": 6, "accepted": 0, UNREAD: 6}
    assert {row["vlm_answer"] for row in rows_of(config)} == {"No.\nNo."}
    num_asked = len(judge.questions)
    rendering.refilter(config)
    assert len(judge.questions) == num_asked


def test_answers_outlive_a_shard_that_is_rendered_again(tiny_config: PipelineConfig, judge: Judge) -> None:
    write_triplets(tiny_config)
    config = asking(tiny_config, judge, vlm_kept=5)
    rendering.write_shard(config, 0)
    first, num_asked = rows_of(config), len(judge.questions)
    folder = RunFolder(config.out)
    for kind in ("candidates", "pairs"):
        store.sidecar_path(folder.shard(kind, 0)).unlink()
    rendering.write_shard(config, 0)
    assert rows_of(config) == first and len(judge.questions) == num_asked


def test_a_bound_on_a_judge_needs_one() -> None:
    with pytest.raises(ValueError, match=r"filtering\.thresholds\.vlm_kept needs a judge"):
        check_thresholds(FilteringConfig(thresholds=Thresholds(vlm_kept=5)))
