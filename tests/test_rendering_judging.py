"""The vision-language judge in the filter: asked about what passes the cheap scores, over real sockets, with faults."""

from __future__ import annotations

import base64
import io
import json
import math
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
from ip2p.config import DatasetConfig, FilteringConfig, PipelineConfig, ServerConfig, Thresholds, VlmConfig
from ip2p.config.filtering import Selection
from ip2p.dataset import write_dataset
from ip2p.filtering import OPEN, UNREAD, check_thresholds
from ip2p.picture_judge import SHOWN, read_instruction
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
        self.blind_from = math.inf
        """Mean of an edited picture from which on no instruction is named."""
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
        if question["text"] == SHOWN and not self.server.is_garbled:
            text = json.dumps({"instruction": instruction_of(level) if level < self.server.blind_from else ""})
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


def instruction_of(level: float) -> str:
    """What the judge says that a picture was edited by."""
    return f"make it as light as {level}"


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


def rewriting(config: PipelineConfig, judge: Judge, **changes: Any) -> PipelineConfig:
    filtering = FilteringConfig(thresholds=replace(ANY, **changes), vlm=judge.config(), vlm_rewrite=True)
    return replace(config, filtering=filtering, dataset=DatasetConfig(test_fraction=0.0, edit_prompt="shown"))


def pairs_of(config: PipelineConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(RunFolder(config.out).shard("pairs", 0)).to_pylist()
    return rows


def dataset_of(config: PipelineConfig) -> dict[tuple[str, int], dict[str, Any]]:
    files = sorted((config.out / "dataset" / "data").glob("*.parquet"))
    return {(row["triplet_id"], row["candidate"]): row for file in files for row in pq.read_table(file).to_pylist()}


def test_only_accepted_pairs_are_asked_what_they_show_and_the_dataset_says_it(
    tiny_config: PipelineConfig, judge: Judge
) -> None:
    write_triplets(tiny_config)
    scoring = asking(tiny_config, judge)
    scoring = replace(scoring, filtering=replace(scoring.filtering, max_pairs_per_triplet=1))
    rendering.write_shard(scoring, 0)
    judge.blind_from = max(row["vlm_followed"] for row in pairs_of(scoring))
    config = rewriting(tiny_config, judge)
    config = replace(config, filtering=replace(config.filtering, max_pairs_per_triplet=1))
    rendering.write_shard(config, 0)
    rows, pairs = rows_of(config), pairs_of(config)
    assert 1 <= len(pairs) == sum(row["accepted"] for row in rows) < len(rows)
    assert judge.questions.count(SHOWN) == len(pairs)
    assert not any(row["shown_prompt"] or row["shown_judge"] for row in rows if not row["accepted"])
    levels = [level_of(row["edited_image"]["bytes"]) for row in pairs]
    shown = [instruction_of(level) if level < judge.blind_from else "" for level in levels]
    assert [row["shown_prompt"] for row in pairs] == shown and {"", *shown} > {""}
    counts = write_dataset(config)
    assert counts["kept_written"] == shown.count("") >= 1
    same = [row["shown_prompt"] == row["edit_prompt"] for row in pairs].count(True)
    told = rendering.summarise(config)["shown"]
    assert told == {"rewritten": len(pairs) - same - shown.count(""), "as_written": same, "unnamed": shown.count("")}
    assert store.read_summary(config.out)["rendering"]["shown"] == told and told["rewritten"]
    written = dataset_of(config)
    for row, text in zip(pairs, shown, strict=True):
        made = written[row["triplet_id"], row["candidate"]]
        assert made["edit_prompt"] == (text or row["edit_prompt"])
        assert (made["written_prompt"], made["shown_prompt"]) == (row["edit_prompt"], text)


def test_a_dataset_of_written_instructions_has_those_that_are_shown_beside_them(
    tiny_config: PipelineConfig, judge: Judge
) -> None:
    write_triplets(tiny_config)
    config = replace(rewriting(tiny_config, judge), dataset=DatasetConfig(test_fraction=0.0))
    rendering.write_shard(config, 0)
    assert "kept_written" not in write_dataset(config) and "shown" not in rendering.summarise(tiny_config)
    rows = dataset_of(config)
    for row in pairs_of(config):
        made = rows[row["triplet_id"], row["candidate"]]
        assert "written_prompt" not in made and made["edit_prompt"] == row["edit_prompt"]
        assert made["shown_prompt"] == row["shown_prompt"] != ""


def test_no_pair_is_asked_twice_what_it_shows(tiny_config: PipelineConfig, judge: Judge) -> None:
    write_triplets(tiny_config)
    rendering.write_shard(asking(tiny_config, judge), 0)
    plain, num_scored = rows_of(tiny_config), len(judge.questions)
    assert not {"shown_judge", "shown_prompt"} & plain[0].keys()
    config = rewriting(tiny_config, judge)
    assert rendering.refilter(config) == {"candidates": 6, "accepted": 6}
    assert judge.questions[num_scored:] == [SHOWN] * 6  # the scores are there
    first = rows_of(config)
    judge.is_down = True
    limit = sorted(row["vlm_followed"] for row in first)[3]
    keeping = replace(config, rendering=replace(config.rendering, keep_rejected_images=True))
    rendering.refilter(keeping)
    strict = rewriting(keeping, judge, vlm_followed=limit)
    assert rendering.refilter(strict)["accepted"] == sum(row["vlm_followed"] >= limit for row in first)
    assert rendering.refilter(keeping)["accepted"] == 6
    assert rows_of(config) == first and len(judge.questions) == num_scored + 6


@pytest.mark.parametrize("num_answers", [0, 2, 8, 13, 15])
@pytest.mark.parametrize("selection", ["best", "first"])
def test_pairs_whose_instruction_had_no_answer_stay_open_and_a_resume_ends_as_a_run_without_the_failure(
    tiny_config: PipelineConfig, judge: Judge, selection: Selection, num_answers: int
) -> None:
    def run(name: str) -> PipelineConfig:
        config = rewriting(replace(tiny_config, out=tiny_config.out.with_name(name)), judge)
        filtering = replace(config.filtering, selection=selection, max_pairs_per_triplet=2)
        config = replace(config, filtering=filtering)
        write_triplets(config)
        return config

    whole, broken = run("whole"), run("broken")
    rendering.write_shard(whole, 0)
    asked = sorted(judge.questions)
    judge.questions.clear()
    judge.answers_before_it_fails = num_answers
    counts = rendering.write_shard(broken, 0).counts
    assert counts[OPEN] >= 1 and rendering.shard_states(broken)[0] == "outdated"
    assert len(pairs_of(broken)) == counts["accepted"] + counts[OPEN]
    judge.answers_before_it_fails = 1 << 30
    rendering.write_shard(broken, 0)
    assert rendering.shard_states(broken)[0] == "done"
    shown, verdicts = ["shown_judge", "shown_prompt"], ["triplet_id", "candidate", "seed", "accepted", "reason"]
    one, two = (pq.read_table(RunFolder(each.out).shard("candidates", 0)) for each in (whole, broken))
    assert one.select([*verdicts, *shown]).equals(two.select([*verdicts, *shown]))
    if num_answers >= 12:  # all scores were there
        assert sorted(judge.questions) == asked and one.equals(two)


def test_the_last_instruction_of_an_answer_is_read_and_anything_else_is_none() -> None:
    assert (
        read_instruction('so {"instruction": "one"} or rather\n{"instruction": " make\\n it  blue "}.')
        == "make it blue"
    )
    for answer in ("make it blue", '{"instruction": 3}', '{"instruction": null}', '{"followed": 3}', '{"instruction'):
        assert read_instruction(answer) == ""


def test_instructions_that_are_shown_need_a_judge_that_is_asked(tiny_config: PipelineConfig) -> None:
    with pytest.raises(ValueError, match=r"filtering\.vlm_rewrite needs a judge"):
        FilteringConfig(vlm_rewrite=True)
    with pytest.raises(ValueError, match=r"Set filtering\.vlm_rewrite"):
        replace(tiny_config, dataset=DatasetConfig(edit_prompt="shown"))
